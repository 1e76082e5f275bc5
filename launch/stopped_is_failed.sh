#!/usr/bin/env bash
# Run a command, and exit with 143 instead of 0 if SIGTERM stopped it.
#
#     launch/stopped_is_failed.sh python -m s2rm_jax.train --config ... --workdir ...
#
# A run that receives SIGTERM saves and exits with 0. Kubernetes and the loop of tpu_vm.sh take 0 for "done" and would
# not restart it after its machine was preempted. One process that exits with 143 is enough for them.
set -uo pipefail

forward() {
  asked=yes interrupted=yes
  kill -TERM "$!" 2>/dev/null
}
trap forward TERM

asked=
"$@" &
interrupted=yes
while [[ $interrupted ]]; do # a signal ends `wait` before the command has ended
  interrupted=
  wait "$!"
  status=$?
done
[[ $asked && $status == 0 ]] && status=143
case $status in 13[4-9]) # ended by a signal such as SIGABRT or SIGKILL
  echo "error: this process was killed, or aborted by JAX because process 0 was lost:" \
    "started again it continues from the last checkpoint." >&2 ;;
esac
exit "$status"
