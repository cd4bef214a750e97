#!/usr/bin/env bash
# Installs what is missing, builds everything, and runs every test.
#   bash tests/run.sh [ARGUMENTS FOR CTEST]
set -euo pipefail
cd "$(dirname "$0")/.."
source train/setup.sh
mmfree_packages+=(openmpi-bin libopenmpi-dev)  # for runs of several ranks under mpirun
mmfree_install
mmfree_build all
log=build/ctest.log
status=0
ctest --test-dir build --output-on-failure -j "$(nproc)" "$@" 2>&1 | tee "$log" || status=$?
total=$(sed -n 's/.* tests failed out of \([0-9]*\)$/\1/p' "$log")
failed=$(sed -n 's/.*, \([0-9]*\) tests failed out of .*/\1/p' "$log")
if [ -z "$total" ] || [ "$total" -eq 0 ]; then
  echo "no test ran" >&2
  exit 1
fi
skipped=$(grep -c '\*\*\*Skipped' "$log" || true)
echo "$((total - failed - skipped)) passed, $failed failed, $skipped skipped (GPU tests without a GPU, listed above)"
exit "$status"
