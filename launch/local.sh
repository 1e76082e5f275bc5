#!/usr/bin/env bash
# Train with N processes on this machine: the first argument is N, the others are passed to s2rm_jax.train.
#
#     launch/local.sh 2 --config configs/synthetic.py --workdir runs/two
#
# One process drives all GPUs of a machine, so several are useful only to try out a run on several hosts, or if one GPU
# per process is faster. Each process gets a GPU of its own, unless JAX_PLATFORMS=cpu.
# Every line is printed with the number of its process. Ctrl-C and SIGTERM are forwarded: the run saves and ends, and a
# second Ctrl-C ends it at once. The exit status is the highest of the processes.
#
# Needs: bash >= 4.4. Variables: PYTHON (python), S2RM_COORDINATOR_ADDRESS (a free port of this machine).
set -uo pipefail

if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument must be the number of processes: launch/local.sh 2 --config ... --workdir ..." >&2
  exit 2
fi
processes=$1
shift
python=${PYTHON:-python}

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif listed=$(nvidia-smi --query-gpu=index --format=csv,noheader); then # otherwise it lists an error
    read -rd '' -a gpus <<<"$listed"
  fi
  if ((${#gpus[@]} > 0 && ${#gpus[@]} < processes)); then
    echo "error: $processes processes need a GPU each and there are ${#gpus[@]}; JAX_PLATFORMS=cpu uses none." >&2
    exit 2
  fi
fi

early= # a signal that comes before all processes are started
trap 'early=INT' INT
trap 'early=TERM' TERM

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
export S2RM_COORDINATOR_ADDRESS=${S2RM_COORDINATOR_ADDRESS:-127.0.0.1:$("$python" -c "$free_port")}
export S2RM_NUM_PROCESSES=$processes

# Print the output of a process until it ends, also after a Ctrl-C, which the terminal sends to this function too.
label() {
  trap '' INT TERM
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# Job control gives each process its own group; otherwise the terminal would send it a second Ctrl-C.
set -m
running=() labels=()
for ((index = 0; index < processes; index++)); do
  exec {output}> >(label "$index")
  labels+=($!)
  ((${#gpus[@]})) && export CUDA_VISIBLE_DEVICES=${gpus[index]}
  S2RM_PROCESS_ID=$index "$python" -m s2rm_jax.train "$@" </dev/null >&"$output" 2>&1 &
  running+=($!)
  exec {output}>&-
done

forward() {
  interrupted=yes
  kill -s "$1" "${running[@]}" 2>/dev/null
}
trap 'forward INT' INT
trap 'forward TERM' TERM
[[ $early ]] && forward "$early"

worst=0
for process in "${running[@]}"; do
  interrupted=yes
  while [[ $interrupted ]]; do # a signal ends `wait` before the process has ended
    interrupted=
    wait "$process"
    status=$?
  done
  ((status > worst)) && worst=$status
done
wait "${labels[@]}"
case $worst in 13[4-9]) # ended by a signal such as SIGABRT or SIGKILL
  echo "error: a process was killed, or aborted by JAX because process 0 was lost:" \
    "start the same command again; it continues from the last checkpoint." >&2 ;;
esac
exit "$worst"
