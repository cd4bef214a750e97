#pragma once
#include <variant>
#include <vector>

#include "core/ops/attention.h"
#include "core/ops/embedding.h"
#include "core/ops/norm_quant.h"

namespace mmfree {

/// Consecutive tokens of one sequence, `count` rows of a call from `row` on. The sequence's state is in `slot`, and
/// `position` tokens came before.
struct DecodeSpan {
  int64_t row, count, slot, position;
};

/// What a program computes: N rows, one per token, and logits for some of them.
struct DecodeCall {
  const int32_t* ids;  ///< [N]
  int64_t rows;        ///< N
  const DecodeSpan* spans;
  int64_t span_count;
  const int64_t* wanted;  ///< rows whose logits are computed, ascending
  int64_t wanted_count;
  int64_t wanted_first;  ///< row of the products' output where the first of them goes
  int threads;           ///< at least 1, at most those of the program; the bits do not depend on them
};

/// The steps of a program. Each names the buffers that it reads and writes: row n of a buffer belongs to row n of the
/// call, or with `at_wanted` row n of an output to row wanted[n]. Formulas are those of the ops of the same names;
/// everything is f32.
struct DecodeEmbed {
  StoredTableArgs table;  ///< [V, D] in any store
  float* y;
};

/// norm_quant. `args` has the addresses of row 0 and n = 1; r0, r1, r2 are null or not, the rest follows.
struct DecodeNorm {
  struct Output {
    int64_t stride;  ///< bytes from a row of `out` to the next; what follows a row's codes must be zeros already
    int32_t* sums;   ///< of the codes of each row; null: values
  };
  NormQuantArgs args;
  Output outputs[kMaxNormBranches];
  bool at_wanted = false;
};

/// y = x Wᵀ of one matrix: codes of a DecodeNorm times a ternary matrix, or values times a plain one.
struct DecodeMatrix {
  const int8_t* q = nullptr;  ///< rows q_stride bytes apart; null: plain
  const float* step = nullptr;
  const int32_t* sums = nullptr;
  int64_t q_stride = 0;
  const uint8_t* codes = nullptr;  ///< as TernaryTensor
  const float* scale = nullptr;
  const float* x = nullptr;  ///< [.., K]
  const float* w = nullptr;  ///< [O, K]
  float* y = nullptr;        ///< [.., O]
  int64_t o = 0, k = 0;
};
/// Several products that do not depend on each other. With `at_wanted` row i of y is row wanted_first + i.
struct DecodeProducts {
  std::vector<DecodeMatrix> matrices;
  bool at_wanted = false;
};

/// mlgru_scan. `state` [slots, D] is read and updated.
struct DecodeScan {
  const float *z, *a, *gamma;  ///< gamma may be null
  float *h, *state;
  int64_t d;
};

/// rope of q (in place) and k, and attention. keys, values [slots, C, G, W] are the slots' caches: held[slot] tokens of
/// each lie from its beginning on, and a call appends its own; there must be room.
struct DecodeAttend {
  float *q, *k;
  const float* v;
  float *o, *keys, *values;
  const int64_t* held;
  int64_t capacity;  ///< C
  int64_t heads, kv_heads, width, window;
  std::vector<double> turns;  ///< rotary_turns(theta, width)
};

using DecodeStep = std::variant<DecodeEmbed, DecodeNorm, DecodeProducts, DecodeScan, DecodeAttend>;

/// A model as a list of steps over buffers that somebody else owns.
struct DecodeProgram {
  Device device = Device::cpu;
  std::vector<DecodeStep> steps;
  float* scratch = nullptr;    ///< [most_threads, scratch_floats]
  int64_t scratch_floats = 0;  ///< at least 3 · D of the widest norm
  int most_threads = 1;
};

/// Runs a program. It allocates nothing, and a row's bits depend on the rows of its own sequence alone.
/// @throws DataError for an id that the table does not have, before anything is changed; DeviceError: programs run on
/// the CPU
void run_decode(const DecodeProgram& program, const DecodeCall& call);

namespace cpu {
void run_decode(const DecodeProgram& program, const DecodeCall& call);
}  // namespace cpu

}  // namespace mmfree
