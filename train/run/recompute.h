#pragma once
#include <cstdint>

#include "train/config/config.h"

namespace mmfree {

/// On the CPU `train.recompute: auto` is `selective` where that saves more than these bytes, and `none` otherwise.
inline constexpr int64_t kAutoSavesAtLeast = 200'000'000;

/// Bytes that `selective` keeps less than `none` on the CPU during a forward pass: the f32 outputs [micro-batch ·
/// seq_len, 2I of a glu or I of an mlp] of the channel mixers' first products, without those of the last
/// train.keep_blocks blocks.
int64_t selective_saves(const RunConfig& config);

/// train.recompute, with `auto` resolved: selective on a GPU, see kAutoSavesAtLeast on the CPU.
Recompute recompute_of(const RunConfig& config, Device device);

}  // namespace mmfree
