#!/usr/bin/env bash
# A job under a real Slurm is preempted, requeued, and ends as a run that nobody disturbed, to the bit:
#   bash tests/slurm/preempt.sh [PREEMPTIONS] [RANKS]     default: 3 preemptions of 2 ranks; as root, on Debian
# The job is train/cluster.sbatch as it is. Needs build/mmfree. Prints what happens; the last line says whether all is equal.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/ranks/tiny_run.sh
source tests/slurm/one_machine.sh
times=${1:-3}
ranks=${2:-2}
work=$(mktemp -d /tmp/mmfree-slurm-XXXXXX)
finish() {
  slurm_stop
  rm -rf "$work"
}
trap finish EXIT
export OMP_WAIT_POLICY=passive

begin=$SECONDS
say() { printf '%4d s  %s\n' $((SECONDS - begin)) "$*"; }

slurm_install
tiny_run "$work" "$ranks" 1500
build/mmfree train "$work/run.yaml" train.run_dir="$work/undisturbed" -q >/dev/null
say "the undisturbed run: one rank, 1500 steps"

slurm_start "$work/slurm" "$ranks"
say "Slurm $(slurmctld -V | sed 's/.* //') runs: munged, slurmctld, slurmd, $ranks processors"
job=$(sbatch --parsable --chdir="$PWD" --output="$work/job.out" --partition=low --ntasks="$ranks" --ntasks-per-node="$ranks" \
  --gpus-per-node=0 --cpus-per-task=1 train/cluster.sbatch "$work/run.yaml" train.run_dir="$work/disturbed")
say "job $job: train/cluster.sbatch with $ranks ranks, in the partition that gives way"

state() { squeue -h -j "$job" -o %T 2>/dev/null || true; }
step() { tail -n 1 "$work/disturbed/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p'; }
# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ $SECONDS -ge $until ]; then
      echo "waited in vain for: $*" >&2
      tail -n 20 "$work/job.out" "$work"/slurm/slurmctld.log >&2
      exit 1
    fi
    sleep 0.2
  done
}
is_past() { [ "$(state)" = RUNNING ] && [ "$(step)" -ge "$1" ] 2>/dev/null; }
is_waiting() { [ "$(state)" = PENDING ]; }
is_gone() { [ -z "$(state)" ]; }

last=0
for ((i = 1; i <= times; i++)); do
  wait_for 300 is_past $((last + 100))
  say "job $job runs and is past step $(step): another job with more rights comes"
  sbatch --parsable --partition=high --ntasks="$ranks" --output=/dev/null --wrap "sleep 2" >/dev/null
  wait_for 120 is_waiting
  last=$(step)
  say "job $job is preempted at step $last and waits again ($(grep -c "preemption grace time for JobId=$job " "$work/slurm/slurmctld.log") times so far in slurmctld's log)"
done
wait_for 600 is_gone
say "job $job is gone from the queue: $(sed -n 's/^\(finished at.*\)/\1/p' "$work/job.out"), after $(grep -c 'stopped early: requeued' "$work/job.out") times 'stopped early: requeued'"
say "$(same_run "$work/undisturbed" "$work/disturbed")"
