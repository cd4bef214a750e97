#!/usr/bin/env bash
# Sourced by tests/slurm/preempt.sh: a Slurm of Debian's packages on this machine alone, started by hand in a folder of its own, without
# systemd and without control groups. It needs root, as slurmd does.
#   slurm_start FOLDER CORES     starts munged, slurmctld and slurmd; two partitions: `low`, whose jobs give way and are requeued,
#                                and `high`
#   slurm_stop                   ends these three

slurm_packages=(slurmctld slurmd slurm-client munge)

slurm_install() {
  local missing=() p
  for p in "${slurm_packages[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null
}

slurm_start() {
  slurm=$1
  local cores=$2 host
  host=$(hostname -s)
  slurm_pids=()
  mkdir -p "$slurm"/{munge,state,spool}
  chmod 755 "$slurm"
  chmod 700 "$slurm/munge"
  head -c 128 /dev/urandom >"$slurm/munge/key"
  chmod 400 "$slurm/munge/key"
  # The socket is where Slurm looks for it: munge's own is left alone, if one runs.
  munged --force --foreground --key-file="$slurm/munge/key" --socket="$slurm/munge.socket" --pid-file="$slurm/munge/pid" \
    --seed-file="$slurm/munge/seed" --log-file="$slurm/munge/log" >"$slurm/munged.out" 2>&1 &
  slurm_pids+=($!)
  cat >"$slurm/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((21000 + $$ % 1000))
SlurmdPort=$((22000 + $$ % 1000))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SlurmctldDebug=debug
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdLogFile=$slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000
JobRequeue=1
KillWait=30
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 OverSubscribe=NO MaxTime=INFINITE
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF OverSubscribe=NO MaxTime=INFINITE
END
  export SLURM_CONF=$slurm/slurm.conf
  slurmctld -D -f "$SLURM_CONF" >"$slurm/slurmctld.out" 2>&1 &
  slurm_pids+=($!)
  slurmd -D -f "$SLURM_CONF" >"$slurm/slurmd.out" 2>&1 &
  slurm_pids+=($!)
  local i
  for ((i = 0; i < 100; i++)); do
    [ "$(sinfo -h -p low -o %T 2>/dev/null)" = idle ] && return
    sleep 0.3
  done
  echo "Slurm does not start; its logs are in $slurm" >&2
  tail -n 5 "$slurm"/*.out "$slurm"/*.log >&2
  return 1
}

slurm_stop() {
  local p
  for p in "${slurm_pids[@]}"; do kill "$p" 2>/dev/null; done
  for p in "${slurm_pids[@]}"; do wait "$p" 2>/dev/null; done
  slurm_pids=()
}
