#!/usr/bin/env bash
# Runs every GPU test, on a machine with a GPU: from the bundle (tests/ beside bin/) or from a build in build/.
#   bash tests/run_gpu.sh                tests
#   bash tests/run_gpu.sh --sanitize     the op tests under compute-sanitizer too: memcheck, racecheck, initcheck
#   bash tests/run_gpu.sh --bench        the benchmarks too: kernels, products and whole steps
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin
[ -x "$bin/mmfree_tests" ] || bin=$root/build
if [ ! -x "$bin/mmfree_tests" ]; then
  echo "no tests in $root/bin or $root/build; build with -DMMFREE_BENCH=ON, or unpack the bundle made that way" >&2
  exit 1
fi
export MMFREE_SOURCE_DIR=$root MMFREE_PROGRAM=$bin/mmfree OMP_NUM_THREADS=2
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
status=0

# run_tests FILTER [COMMAND PREFIX ...]: the tests in eight processes at once; prints what failed and how many passed.
run_tests() {
  local filter=$1 shard failed=0
  shift
  for shard in 0 1 2 3 4 5 6 7; do
    GTEST_TOTAL_SHARDS=8 GTEST_SHARD_INDEX=$shard "$@" "$bin/mmfree_tests" --gtest_filter="$filter" \
      >"$logs/$shard" 2>&1 || echo failed >"$logs/$shard.failed" &
  done
  wait
  if ls "$logs"/*.failed >/dev/null 2>&1; then
    failed=1
    for shard in "$logs"/*.failed; do
      grep -hE 'Failure|FAILED|rror|========= ' -A6 "${shard%.failed}" | head -n 60
    done
    rm -f "$logs"/*.failed
  fi
  echo "$(cat "$logs"/? | grep -c '^\[       OK') passed, $(cat "$logs"/? | grep -c '^\[  SKIPPED.*ms)') skipped"
  return $failed
}

run_tests '*Cuda*' || status=1
for argument in "$@"; do
  case $argument in
    --sanitize)
      ops='Cuda*-CudaStep*:CudaTrainer*:CudaErrors*:CudaProgram*'
      for tool in memcheck racecheck initcheck; do
        echo "compute-sanitizer $tool"
        filter=$ops
        # initcheck does not see what cuBLASLt's s8 products store, and calls reading it uninitialised.
        [ "$tool" = initcheck ] && filter=$ops:CudaTernary.LinearOfMoreSumsThanFitTheScratch
        # racecheck reports cuBLASLt's own split-K kernels, whose results CudaMatmul compares to the bit.
        [ "$tool" = racecheck ] && filter=$ops:CudaMatmul*
        run_tests "$filter" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 || status=1
      done
      ;;
    --bench)
      "$bin/bench_ternary_mma" || status=1
      "$bin/bench_attention" || status=1
      "$bin/bench_decode" || status=1
      for run in "50M 32" "370M 8" "370M 16" "1.3B 8"; do
        # shellcheck disable=SC2086
        "$bin/bench_step" $run || status=1
      done
      command -v ncu >/dev/null && python3 "$root/tests/bench/profile.py" "$bin/bench_step" 370M 16
      ;;
    *)
      echo "unknown argument $argument" >&2
      exit 2
      ;;
  esac
done
exit $status
