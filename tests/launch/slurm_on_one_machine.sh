#!/usr/bin/env bash
# Runs a command beside a SLURM cluster of one node, this machine, and takes the cluster down when the command ends.
#
#     tests/launch/slurm_on_one_machine.sh bash     # then: sinfo, srun, sbatch launch/slurm.sbatch ...
#
# The cluster lives in a temporary directory: its own key, its own ports, nothing left behind, no service touched.
# The command finds SLURM_CONF in its environment. The node is called localhost and pretends to have 16 CPUs.
#
# Needs: apt-get install slurm-wlm munge; root. Exit status: that of the command, or 1 with what the daemons logged.
set -euo pipefail

cluster=$(mktemp -d)

# Lists the command, the daemons and all that they have started, which may be in sessions of their own.
ours() (
  unset SLURM_CONF # or grep would find itself
  grep --files-with-matches --null-data --fixed-strings --line-regexp "SLURM_CONF=$cluster/slurm.conf" \
    /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3
)

none_left() { [[ -z $(ours) ]]; }
no_job() { [[ -z $(timeout 5 squeue --noheader) ]]; }

within() { # SECONDS COMMAND...
  for ((tenths = 0; tenths < 10 * $1; tenths++)); do
    "${@:2}" >/dev/null 2>&1 && return
    sleep 0.1
  done
  return 1
}

take_down() {
  status=$?
  trap '' INT TERM
  set +e
  timeout 5 scancel --user "$(id -un)" 2>/dev/null
  within 10 no_job
  for signal in TERM KILL; do
    mapfile -t left < <(ours)
    ((${#left[@]})) && kill -s "$signal" "${left[@]}" 2>/dev/null
    within 5 none_left
  done
  rm -rf "$cluster"
  exit "$status"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "error: $1; what the daemons said:" >&2
  tail -n 20 "$cluster"/*.log >&2
  exit 1
}

within_20_seconds() {
  within 20 "$@" || fail "'$*' did not succeed within 20 s"
}

# Below the ports that the kernel gives to clients, one of which may get a free one before a daemon opens it.
free_ports() {
  python3 - <<'END'
import random
import socket

free = []
while len(free) < 2:
    try:
        free.append(socket.socket())
        free[-1].bind(("", random.randrange(20_000, 32_000)))
    except OSError:
        free.pop()
print(*(each.getsockname()[1] for each in free))
END
}
read -r controller_port node_port < <(free_ports)

umask 022
chmod 755 "$cluster" # munged refuses a socket in a directory that nobody else can enter
head -c 128 /dev/urandom >"$cluster/munge.key"
chmod 400 "$cluster/munge.key"
cat >"$cluster/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A job that is put back waits this long before it starts again; SLURM itself takes 120 seconds, and 5 at least.
AuthInfo=socket=$cluster/munge.socket,cred_expire=5
StateSaveLocation=$cluster/controller
SlurmdSpoolDir=$cluster/node
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.pid
# What needs no cgroups and no root namespaces:
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
END
mkdir "$cluster/controller" "$cluster/node"
export SLURM_CONF=$cluster/slurm.conf

munged --foreground --num-threads=2 --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
  --pid-file="$cluster/munge.pid" --log-file="$cluster/munge.log" --seed-file="$cluster/munge.seed" 2>>"$cluster/munge.log" &
within_20_seconds munge --socket="$cluster/munge.socket" --no-input
slurmctld -D -c >"$cluster/slurmctld.log" 2>&1 &
slurmd -D -N localhost >"$cluster/slurmd.log" 2>&1 &
within_20_seconds timeout 10 srun --time=1 true # srun alone would wait for a node forever

"$@" <&0 & # and not in the foreground, where it would keep signals from taking the cluster down
wait "$!"
