#!/usr/bin/env bash
# From nothing to a RefCOCO report on one machine: environment, data, data check, training, evaluation, export.
#
#     launch/refcoco_on_one_gpu.sh                                        # needs one GPU of 24 GB and 50 GB of disk
#     CONFIG=configs/refcoco.py:small launch/refcoco_on_one_gpu.sh        # tries all steps on a laptop
#
# A step that is done is skipped, so start the script again after any failure. Arguments are passed to s2rm_jax.train.
#
# Variables: DATA (data), WORKDIR (runs/refcoco), CONFIG (configs/refcoco.py:one_gpu), SPLITS (val testA testB),
# VENV (.venv), JAX (jax[cuda12]; jax for a CPU), PYTHON (python3 >= 3.11, makes the environment).
# If S2RM_DATA is set, the data is there already and nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data/downloads} workdir=${WORKDIR:-runs/refcoco} config=${CONFIG:-configs/refcoco.py:one_gpu}
venv=${VENV:-.venv}
python=$venv/bin/python

step() { printf '\n== %s\n' "$*"; }

if [[ ! -e $venv/.installed ]]; then
  step "environment $venv"
  [[ -x $python ]] || "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet --editable . "${JAX:-jax[cuda12]}"
  touch "$venv/.installed"
fi

if [[ -z ${S2RM_DATA-} ]]; then
  export S2RM_DATA=$data
  for name in refcoco images; do
    step "download of $name to $data"
    "$python" -m s2rm_jax.download "$name" --root "$data" --quick
  done
fi

step "training; workdir $workdir"
"$python" -m s2rm_jax.train --config "$config" --workdir "$workdir" "$@" # continues, or ends at once if it is done

for split in ${SPLITS:-val testA testB}; do
  [[ -e $workdir/eval-$split/index.html ]] && continue
  step "evaluation on $split"
  "$python" -m s2rm_jax.evaluate --workdir "$workdir" --split "$split"
done

if [[ ! -e $workdir/pytorch ]]; then
  step "export to $workdir/pytorch"
  "$python" -m s2rm_jax.convert to-pytorch --workdir "$workdir" --out "$workdir/pytorch"
fi

step "done"
for split in ${SPLITS:-val testA testB}; do echo "$workdir/eval-$split/index.html"; done
echo "$workdir/pytorch"
