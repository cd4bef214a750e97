#!/usr/bin/env bash
# Branch coverage of the code that reads files from outside and of the code that commits files: builds both with --coverage
# into build-coverage, runs their tests, `mutate` and the replay of the fuzzing seeds, and prints a line per file and the
# branches that nothing took.
#   bash tests/faults/coverage.sh [CASES OF MUTATE]
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=passive
files=(data/h5_structure data/h5_reader data/h5_file data/h5_writer data/token_shards data/tokenizer_model data/tokenizer
       data/text_reader train/checkpoint train/safetensors train/hf_config train/hf_folder train/ternary_file train/config
       train/config_tree train/config_fields train/strict_json core/files core/utf8)
tests='/test_(h5|batches|prepare|tokenizer|files|config|checkpoint|checkpoint_folder|safetensors|hf_folder|ternary_file|model)[.]cpp$'
cmake -S . -B build-coverage -G Ninja -DMMFREE_CUDA=OFF -DCMAKE_BUILD_TYPE=Coverage \
  -DCMAKE_CXX_FLAGS_COVERAGE="-O0 --coverage" "-DMMFREE_TEST_FILES=$tests" > /dev/null
ninja -C build-coverage -j "${JOBS:-$(nproc)}" mmfree_tests mutate fuzz
find build-coverage -name '*.gcda' -delete
build-coverage/mmfree_tests --gtest_brief=1
build-coverage/mutate "${1:-6000}" 1
build-coverage/fuzz 100 1
for file in "${files[@]}"; do
  room=${file%%/*}
  gcov --branch-probabilities --json-format --stdout "build-coverage/CMakeFiles/mmfree_$room.dir/$file.cpp.gcda" 2> /dev/null
done | python3 tests/faults/coverage.py "${files[@]}"
