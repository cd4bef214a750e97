#!/usr/bin/env bash
# Cross-compiles the ternary kernels and their test for 64-bit ARM and runs them under qemu-user. By hand, on Debian:
#     apt-get install g++-aarch64-linux-gnu qemu-user libgtest-dev
#     bash tests/run_neon.sh [FOLDER FOR OBJECTS]
set -eu -o pipefail
cd "$(dirname "$0")/.."
out=${1:-build-neon}
gtest=/usr/src/googletest/googletest
mkdir -p "$out"
flags=(-std=c++20 -O2 -fopenmp -ffp-contract=off -fno-math-errno -DMMFREE_CUDA=0 -I. -I$gtest -I$gtest/include)
sources=(core/cpu/ternary.cpp core/cpu/ternary_int8.cpp core/cpu/ternary_neon.cpp core/arena.cpp core/device.cpp
         core/error.cpp core/gpu_absent.cpp core/tensor.cpp core/system/console.cpp core/system/files.cpp core/system/utf8.cpp tests/ops/test_ternary_kernels.cpp $gtest/src/gtest-all.cc
         $gtest/src/gtest_main.cc)
objects=()
for source in "${sources[@]}"; do
  object=$out/$(basename "$source").o
  aarch64-linux-gnu-g++ "${flags[@]}" -c "$source" -o "$object"
  objects+=("$object")
done
# What these files name of the rest of the program is not called.
aarch64-linux-gnu-g++ -static -fopenmp -Wl,--unresolved-symbols=ignore-all "${objects[@]}" -o "$out/ternary_kernels"
QEMU_CPU=max qemu-aarch64 "$out/ternary_kernels"
