#!/usr/bin/env bash
# Coverage of branches in the code that reads files from outside and in the code that commits files: builds it with
# clang's source-based coverage into build-coverage, runs its tests and the fault programs, and prints a line per file
# and each outcome of a condition that nothing took. Fails if one of those has no reason in tests/faults/readers.md.
#   bash tests/faults/coverage.sh [CASES OF MUTATE]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$PWD/build-coverage
files=(core/system/{files.h,files.cpp,utf8.cpp}
       data/h5/{structure,reader,file,writer}.cpp data/{token_shards,paths,prepare,staging}.cpp
       data/text/{tokenizer_model,tokenizer,decoder,byte_source,line_reader,element_reader,json_scanner,row_parser,text_reader}.cpp
       train/run/{checkpoint,background_save,metrics}.cpp
       train/formats/{safetensors,hf_config,hf_folder,ternary_file,strict_json}.cpp
       train/config/{config,tree,fields}.cpp train/config/fields.h)
tests='/test_(h5|batches|prepare|text_reader|row_parser|paths|tokenizer|files|config|checkpoint|checkpoint_folder|safetensors|hf_folder)[.]cpp$'
tests+='|/test_(ternary_file|model|background_save|metrics)[.]cpp$'
programs=(mmfree_tests mutate fuzz fail_calls kill_save crash_images)
tool() { command -v "$1-14" || command -v "$1"; }

cmake -S . -B "$build" -G Ninja -DMMFREE_CUDA=OFF -DCMAKE_BUILD_TYPE=Coverage "-DMMFREE_TEST_FILES=$tests" \
  "-DCMAKE_C_COMPILER=$(tool clang)" "-DCMAKE_CXX_COMPILER=$(tool clang++)" \
  "-DCMAKE_CXX_FLAGS_COVERAGE=-O1 -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation" \
  > /dev/null
ninja -C "$build" -j "${JOBS:-$(nproc)}" "${programs[@]}"

# %c maps the counters to the file, so that processes that are killed or forked count too.
rm -rf "$build/profiles"
export OMP_WAIT_POLICY=passive LLVM_PROFILE_FILE="$build/profiles/%m%c.profraw"
cd "$build"
./mmfree_tests --gtest_brief=1
./mutate "${1:-6000}" 1
./fuzz 100 1
# Without memory clang's OpenMP library calls itself for ever when the process exits, which these report as failures. The
# cases of file calls come first.
./fail_calls 400 1 || true
for operation in hf prepare metrics; do ./fail_calls 0 1 $operation 0 900 || true; done
./kill_save 40 1
./crash_images 40 1

"$(tool llvm-profdata)" merge profiles/*.profraw -o profiles/all
"$(tool llvm-cov)" export -instr-profile=profiles/all mmfree "${programs[@]/#/-object=}" > profiles/report.json
cd ..
python3 tests/faults/coverage.py build-coverage/profiles/report.json tests/faults/readers.md "${files[@]}"
