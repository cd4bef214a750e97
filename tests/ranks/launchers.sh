#!/usr/bin/env bash
# Trains the same tiny run by each launcher that is installed, and compares the results to the bit:
#   bash tests/ranks/launchers.sh
# mpirun of Open MPI or MPICH; torchrun of PATH or TORCHRUN (`pip install torch`), also where it starts a run again after a rank was
# killed; srun as root, where Slurm's packages are installed. Needs build/mmfree.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/ranks/tiny_run.sh
source tests/slurm/one_machine.sh
slurm_pids=()
work=$(mktemp -d /tmp/mmfree-launchers-XXXXXX)
finish() {
  slurm_stop
  rm -rf "$work"
}
trap finish EXIT
export OMP_WAIT_POLICY=passive
# Open MPI refuses root, and more ranks than cores, unless told.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
torchrun=${TORCHRUN:-$(command -v torchrun || true)}
port=$((23000 + $$ % 5000))

tiny_run "$work" 4 200
build/mmfree train "$work/run.yaml" train.run_dir="$work/one" -q >/dev/null
echo "one rank"

# launched NAME COMMAND...: trains by the command, to which the run is added.
launched() {
  local name=$1
  shift
  printf '%-34s' "$name"
  if ! "$@" build/mmfree train "$work/run.yaml" train.run_dir="$work/$name" --resume >"$work/log" 2>&1; then
    echo "failed"
    tail -n 20 "$work/log"
    exit 1
  fi
  same_run "$work/one" "$work/$name"
}

# kill_one NAME: kills a rank of that run when it has trained some steps.
kill_one() {
  until [ "$(grep -c train/digest "$work/$1/metrics.jsonl" 2>/dev/null || true)" -ge 12 ] 2>/dev/null; do sleep 0.05; done
  kill -KILL "$(pgrep -f "^build/mmfree train .*train.run_dir=$work/$1 " | tail -n 1)"
}

if command -v mpirun >/dev/null; then
  for n in 2 4; do launched "mpirun-$n" mpirun -n $n; done
fi
if [ -n "$torchrun" ]; then
  for n in 2 4; do launched "torchrun-standalone-$n" "$torchrun" --standalone --no-python --nproc-per-node $n; done
  launched torchrun-address-2 "$torchrun" --master-addr 127.0.0.1 --master-port $port --no-python --nproc-per-node 2
  kill_one torchrun-killed-2 &
  launched torchrun-killed-2 "$torchrun" --standalone --max-restarts 2 --no-python --nproc-per-node 2
  grep -o -m 1 'rank [0-9] on .* was lost' "$work/log"
fi
if command -v slurmctld >/dev/null && [ "$(id -u)" -eq 0 ]; then
  slurm_start "$work/slurm" 4
  for n in 2 4; do launched "srun-$n" srun -n $n; done
  command -v mpirun >/dev/null && launched salloc-mpirun-2 salloc -n 2 mpirun -n 2
fi
