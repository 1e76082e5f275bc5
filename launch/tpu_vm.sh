#!/usr/bin/env bash
# Train on all hosts of a TPU slice of Google Cloud: create the slice if there is none, install, run, and restart.
#
#     TPU=s2rm ZONE=us-west4-a TYPE=v5litepod-16 launch/tpu_vm.sh \
#         --config configs/refcoco.py --workdir gs://BUCKET/runs/refcoco --config.input.source.root=/mnt/refer
#
# The arguments are passed to s2rm_jax.train, which finds the other hosts in the metadata of the slice. Of local files
# only configs/ is copied. The workdir must be on storage that all hosts share and that outlives them, such as a bucket;
# data and weights must be at the same path on every host. PREPARE is a command for that, run on every host before each
# start, such as this one, where gcsfuse is installed:
#
#     PREPARE='mountpoint -q /mnt/refer || { sudo mkdir -p /mnt/refer &&
#         sudo gcsfuse --implicit-dirs -o ro,allow_other DATA_BUCKET /mnt/refer; }'
#
# A preempted slice is created again, a stopped one started, and the run continues from its last checkpoint, up to TRIES
# times. Each time, up to WAITS attempts to get a slice are made, one a minute. Run this script in tmux on a small
# machine. When it is restarted, it first stops the run on the slice.
# It deletes only a slice that was preempted or terminated. To delete the slice at the end:
#
#     gcloud compute tpus tpu-vm delete $TPU --zone $ZONE
#
# Needs: gcloud with a project and quota, an SSH key for it, this environment (it builds the wheel).
# Variables: TPU, ZONE, TYPE; RUNTIME (v2-alpha-tpuv5-lite), CREATE_FLAGS (such as --spot), PREPARE, TRIES (20),
# WAITS (1440), PYTHON (python).
set -uo pipefail

: "${TPU:?the name of the slice, such as s2rm}" "${ZONE:?such as us-west4-a}" "${TYPE:?such as v5litepod-16}"
tries=${TRIES:-20} waits=${WAITS:-1440}
cd "$(dirname "$0")/.." || exit

tpu_vm() { # COMMAND ARGUMENTS...
  gcloud compute tpus tpu-vm "$1" --zone="$ZONE" "${@:2}"
}

make_slice() {
  local state
  state=$(tpu_vm describe "$TPU" --format='value(state)' 2>/dev/null) || state=
  case $state in
    READY) ;;
    STOPPED) tpu_vm start "$TPU" ;;
    PREEMPTED | TERMINATED) tpu_vm delete "$TPU" --quiet && create_slice ;;
    '') create_slice ;;
    *) # such as STARTING, and may be ready at the next try
      echo "the slice is $state" >&2
      return 1
      ;;
  esac
}

create_slice() {
  # shellcheck disable=SC2086  # CREATE_FLAGS may hold several
  tpu_vm create "$TPU" --accelerator-type="$TYPE" --version="${RUNTIME:-v2-alpha-tpuv5-lite}" ${CREATE_FLAGS-}
}

# Install the wheel on every host in an environment with Python 3.12; the Python of the image is too old.
install() {
  tpu_vm ssh "$TPU" --worker=all --command="$stop_run && rm -rf s2rm && mkdir s2rm" &&
    tpu_vm scp --recurse "$wheel" configs "$TPU:s2rm/" --worker=all &&
    tpu_vm ssh "$TPU" --worker=all --command="python3 -m pip install --quiet --user uv &&
      python3 -m uv venv --quiet --clear --python 3.12 venv &&
      python3 -m uv pip install --quiet --python venv/bin/python 's2rm/$(basename "$wheel")[tpu]'" &&
    { [[ -z ${PREPARE-} ]] || tpu_vm ssh "$TPU" --worker=all --command="$PREPARE"; }
}

# After its connection broke, a run goes on until it prints its next line.
stop_run='if [ -e train.pid ] && kill -TERM $(cat train.pid) 2>/dev/null; then
  while kill -0 $(cat train.pid) 2>/dev/null; do sleep 1; done; fi'

train() {
  tpu_vm ssh "$TPU" --worker=all --command="
    cd s2rm && echo \$\$ > ../train.pid
    export S2RM_STOPPED_STATUS=143 # of a run that SIGTERM stopped, which is not done
    exec ../venv/bin/python -m s2rm_jax.train ${arguments[*]@Q}"
}

arguments=("$@")
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
"${PYTHON:-python}" -m pip wheel --quiet --no-deps --wheel-dir "$built" . || exit
wheel=$(echo "$built"/*.whl)

wait_for_slice() {
  local attempt
  for ((attempt = 1; ; attempt++)); do
    make_slice && return
    if ((attempt == waits)); then
      echo "no slice after $waits attempts" >&2
      return 1
    fi
    echo "no slice yet; the next attempt is in a minute" >&2
    sleep "${PAUSE:-60}"
  done
}

for ((try = 1; try <= tries; try++)); do
  wait_for_slice || exit
  if install; then
    train
    status=$?
    # Done, or a user error; all else may be temporary, also a 2 of gcloud or uv.
    case $status in 0 | 2) exit "$status" ;; esac
  fi
  ((try == tries)) && break
  echo "try $try of $tries ended with an error; the next starts in a minute" >&2
  sleep "${PAUSE:-60}"
done
echo "error: try $tries of $tries ended with an error; run the same command again to continue" >&2
exit 1
