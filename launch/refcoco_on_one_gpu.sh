#!/usr/bin/env bash
# From nothing to a RefCOCO report on one machine: environment, data, training, evaluation, export.
#
#     launch/refcoco_on_one_gpu.sh      # needs one 24 GB GPU and 50 GB of disk
#
# To try all steps on a laptop, which needs the same download:
#
#     S2RM_BERT_VOCAB=vocab.txt JAX=jax CONFIG=configs/refcoco.py:small WORKDIR=runs/trial launch/refcoco_on_one_gpu.sh
#
# A step that is done is skipped: after a failure, or if you stop it, start the script again. Arguments are passed to
# s2rm_jax.train.
#
# Variables: DATA (data/downloads), WORKDIR (runs/refcoco), CONFIG (configs/refcoco.py:one_gpu), SPLITS (val testA
# testB), VENV (.venv), JAX (jax[cuda12]; jax for a CPU), PYTHON (python3 >= 3.11, makes the environment).
# If S2RM_DATA is set, the data is there already and nothing is downloaded. MIRROR is the address of another server to
# download from, as --mirror in data/README.md.
# S2RM_BERT_VOCAB is the vocabulary of `:small`; the other recipes take that of BERT's weights.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data/downloads} workdir=${WORKDIR:-runs/refcoco} config=${CONFIG:-configs/refcoco.py:one_gpu}
venv=${VENV:-.venv} jax=${JAX:-jax[cuda12]}
python=$venv/bin/python installed=$venv/.installed-accelerator # holds what was installed; `make` has a marker of its own

step() { printf '\n== %s\n' "$*"; }

if [[ $(cat "$installed" 2>/dev/null) != "$jax" ]]; then
  step "environment $venv"
  [[ -x $python ]] || "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet --editable . "$jax"
  echo "$jax" >"$installed"
fi
step "devices"
"$python" -c 'import jax; print(*jax.devices())'

if [[ ! -e $workdir/config.json ]]; then # a run that continues has both already
  step "pretrained weights and vocabulary"
  "$python" - --config "$config" --workdir "$workdir" "$@" <<'EOF'
from s2rm_jax import command_line, train
from s2rm_jax.input.pipeline import build_tokenizer
from s2rm_jax.interop.pretrained import find_pretrained, find_vocabulary


def main():
    config = train.CONFIG.value
    for part, path in find_pretrained(config).items():
        print(f"{part}: {path}")
    print(f"vocabulary: {build_tokenizer(config, None, find_vocabulary(config)).size} tokens")


command_line.run_and_exit(main, train.FLAGS, None, required=("config",))
EOF
fi

if [[ -z ${S2RM_DATA-} ]]; then
  export S2RM_DATA=$data
  for name in refcoco images; do
    step "download of $name to $data"
    "$python" -m s2rm_jax.download "$name" --root "$data" --quick ${MIRROR:+--mirror "$MIRROR"}
  done
fi

step "training; workdir $workdir"
stopped=143
S2RM_STOPPED_STATUS=$stopped "$python" -m s2rm_jax.train --config "$config" --workdir "$workdir" "$@" || {
  status=$?
  ((status != stopped)) || echo "error: the training was stopped; start this script again to continue" >&2
  exit "$status"
}

is_current() { [[ $1 -nt $workdir/checkpoints ]]; } # a training that continues changes this folder

for split in ${SPLITS:-val testA testB}; do
  is_current "$workdir/eval-$split-lavt480/index.html" && continue
  step "evaluation on $split"
  "$python" -m s2rm_jax.evaluate --workdir "$workdir" --split "$split" --protocol lavt480
done

if ! is_current "$workdir/pytorch"; then
  step "export to $workdir/pytorch"
  rm -rf "$workdir/pytorch.new"
  "$python" -m s2rm_jax.convert to-pytorch --workdir "$workdir" --out "$workdir/pytorch.new"
  rm -rf "$workdir/pytorch"
  mv "$workdir/pytorch.new" "$workdir/pytorch"
fi

step "done"
for split in ${SPLITS:-val testA testB}; do echo "$workdir/eval-$split-lavt480/index.html"; done
echo "$workdir/pytorch"
