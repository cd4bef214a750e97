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
export MMFREE_SOURCE_DIR=$root MMFREE_PROGRAM=$bin/mmfree
status=0
"$bin/mmfree_tests" --gtest_filter='*Cuda*' --gtest_brief=1 || status=1
for argument in "$@"; do
  case $argument in
    --sanitize)
      ops='Cuda*-CudaStep*:*CudaGolden*:CudaProgram*:*Large*'
      for tool in memcheck racecheck initcheck; do
        echo "compute-sanitizer $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
          "$bin/mmfree_tests" --gtest_filter="$ops" --gtest_brief=1 || status=1
      done
      ;;
    --bench)
      "$bin/bench_ternary_mma" || status=1
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
