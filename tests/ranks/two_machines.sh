#!/usr/bin/env bash
# Trains a tiny run on two machines that are made of one: two network and name spaces with a cable between them, so that ranks
# have other hosts' names and addresses, no common loopback and no way but the cable. Compares with one rank's, to the bit:
#   bash tests/ranks/two_machines.sh
# As root, with iproute2 and util-linux. By hand's variables, by torchrun of PATH or TORCHRUN, and by mpirun, which starts
# its other machine through nsenter in place of ssh. Needs build/mmfree.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/ranks/tiny_run.sh
work=$(mktemp -d /tmp/mmfree-machines-XXXXXX)
holders=()
finish() {
  for pid in "${holders[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
export OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
torchrun=${TORCHRUN:-$(command -v torchrun || true)}

# Machine m is what lives in the spaces of process holders[m].
for name in east west; do
  unshare --net --uts --mount bash -c "hostname $name; exec sleep 100000" &
  holders+=($!)
done
sleep 0.5
on() { nsenter --net --uts --mount -t "${holders[$1]}" "${@:2}"; }
ip link add mmf0 netns "${holders[0]}" type veth peer name mmf1 netns "${holders[1]}"
for m in 0 1; do
  printf '127.0.0.1 localhost\n10.77.0.1 east\n10.77.0.2 west\n' >"$work/hosts"
  on $m mount --bind "$work/hosts" /etc/hosts
  on $m ip link set lo up
  on $m ip addr add 10.77.0.$((m + 1))/24 dev mmf$m
  on $m ip link set mmf$m up
done

tiny_run "$work" 4 200
build/mmfree train "$work/run.yaml" train.run_dir="$work/one" -q >/dev/null
echo "one rank"

# The ranks of NAME, two on each machine: launched NAME COMMAND MACHINE, for both machines.
launched() {
  local name=$1 pids=() m failed=0
  printf '%-28s' "$name"
  for m in 0 1; do
    "start_$name" $m "$PWD/build/mmfree" train "$work/run.yaml" train.run_dir="$work/$name" --resume >"$work/log$m" 2>&1 &
    pids+=($!)
  done
  for m in "${pids[@]}"; do wait "$m" || failed=1; done
  [ $failed = 0 ] || { echo failed; tail -n 5 "$work"/log?; exit 1; }
  same_run "$work/one" "$work/$name"
  grep -h -o '[0-9]* ranks on .*' "$work"/log? | head -n 1
}

start_variables() {
  local m=$1 r pids=() failed=0
  shift
  for r in 0 1; do
    on "$m" env RANK=$((2 * m + r)) WORLD_SIZE=4 LOCAL_RANK=$r LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.77.0.1 MASTER_PORT=29711 "$@" &
    pids+=($!)
  done
  for r in "${pids[@]}"; do wait "$r" || failed=1; done
  return $failed
}
start_torchrun() {
  on "$1" "$torchrun" --nnodes 2 --node-rank "$1" --nproc-per-node 2 --rdzv-backend static --master-addr 10.77.0.1 \
    --master-port 29712 --no-python "${@:2}"
}
start_mpirun() {
  [ "$1" = 0 ] || return 0
  printf '#!/bin/bash\nshift\nexec nsenter --net --uts --mount -t %s bash -c "$*"\n' "${holders[1]}" >"$work/agent"
  chmod +x "$work/agent"
  on 0 mpirun --host east:2,west:2 --mca plm_rsh_agent "$work/agent" --mca oob_tcp_if_include 10.77.0.0/24 \
    --mca btl_tcp_if_include 10.77.0.0/24 -n 4 "${@:2}"
}
launched variables
if [ -n "$torchrun" ]; then launched torchrun; fi
if command -v mpirun >/dev/null && mpirun --version | grep -q 'Open MPI'; then launched mpirun; fi

# The cable is cut when the run has made some steps: both machines end. Then it is there again, and the run goes on.
start_cut() { start_variables "$@"; }
cut_cable() {
  until [ "$(grep -c train/digest "$work/cut/metrics.jsonl" 2>/dev/null || true)" -ge 6 ] 2>/dev/null; do sleep 0.02; done
  on 1 ip link set mmf1 down
}
cut_cable &
for m in 0 1; do
  MMFREE_RANK_TIMEOUT=5 start_cut $m "$PWD/build/mmfree" train "$work/run.yaml" train.run_dir="$work/cut" >"$work/log$m" 2>&1 &
  starts[m]=$!
done
for m in 0 1; do
  if wait "${starts[m]}"; then echo "machine $m ended as if nothing was"; exit 1; fi
  echo "cut, machine $m: $(grep -h -o -m 1 'rank .* was lost.*' "$work/log$m")"
done
on 1 ip link set mmf1 up
launched cut
