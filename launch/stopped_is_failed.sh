#!/usr/bin/env bash
# Runs a command, and exits with 143 and not 0 where SIGTERM stopped it, however well it stopped.
#
#     launch/stopped_is_failed.sh python -m s2rm_jax.train --config ... --workdir ...
#
# A run that is asked to stop saves and exits with 0. Kubernetes, and the loop of tpu_vm.sh, take 0 for "done": they would
# not start it again after its machine was taken away. Of several processes, one that says 143 is enough for them.
set -uo pipefail

pass_on() {
  asked=yes interrupted=yes
  kill -TERM "$!" 2>/dev/null
}
trap pass_on TERM

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
