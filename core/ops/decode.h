#pragma once
#include <functional>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "core/ops/attention.h"
#include "core/ops/embedding.h"
#include "core/ops/norm_quant.h"
#include "core/ops/sample.h"

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
  const uint8_t* codes = nullptr;  ///< as TernaryTensor; on a GPU as pack_decode, with q_stride a multiple of 256
  const int8_t* bytes = nullptr;   ///< the same weights as bytes, [O, K], on a GPU only; or null
  const float* scale = nullptr;
  const float* x = nullptr;  ///< [.., K]
  const float* w = nullptr;  ///< [O, K]; with `bf16_w` bf16, on a GPU only
  bool bf16_w = false;
  float* y = nullptr;  ///< [.., O]
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
/// each lie from its beginning on, and a call appends its own; there must be room. On a GPU the token at position p is
/// at place p modulo C, and `held` is not used.
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
  std::shared_ptr<void> runner;  ///< of a GPU, see prepare_decode
};

/// Makes a program on a GPU ready for calls of up to `most_rows` rows and `most_spans` spans. Call it when the steps
/// are complete and the weights are packed. On the CPU it does nothing.
void prepare_decode(DecodeProgram& program, int64_t most_rows, int64_t most_spans);

/// Bytes of a row of K weights that a program on a GPU multiplies, and the packing of i8 weights [O, K] on the GPU: two
/// bits a weight, in the order of core/cuda/decode.h.
int64_t packed_decode_bytes(int64_t k);
void pack_decode(const Tensor& weights, Tensor& packed);

/// Runs a program. It allocates nothing, and a row's bits depend on the rows of its own sequence alone. On a GPU it
/// only launches.
/// @throws DataError for an id that the table does not have, before anything is changed; DeviceError
void run_decode(const DecodeProgram& program, const DecodeCall& call);

/// What a loop of steps goes on with: R sequences, whose next logits are the first R rows of `logits`.
struct DecodeLoop {
  std::vector<int64_t> slots, positions;  ///< of each sequence: its slot, and its tokens so far
  std::vector<SampleRow> rows;            ///< how each one's tokens are chosen
  std::vector<int32_t> seen;              ///< [R, ceil(V / 32)], see sample(); empty: no penalty
  const float* logits;                    ///< the program's output
  int64_t vocab;
  int64_t steps;         ///< tokens of each sequence
  bool captured = true;  ///< launch a recorded graph per step, not every kernel
  /// Gets the tokens of a step, [R]; false ends the loop.
  std::function<bool(std::span<const int32_t>)> on_tokens;
};

/// Chooses tokens and computes what follows them, step after step, on a GPU: a token does not pass through the host,
/// which reads it some steps later. Returns the number of tokens that each sequence has consumed: where `on_tokens`
/// ends the loop, more than it got. @throws DivergedError if logits are not finite; DeviceError, also for a program on
/// the CPU
int64_t decode_loop(const DecodeProgram& program, const DecodeLoop& loop);

namespace cpu {
void run_decode(const DecodeProgram& program, const DecodeCall& call);
}  // namespace cpu
namespace cuda {
void decode_loop(const DecodeProgram& program, const DecodeLoop& loop, int64_t& consumed);
void run_decode(const DecodeProgram& program, const DecodeCall& call);
void prepare_decode(DecodeProgram& program, int64_t most_rows, int64_t most_spans);
void pack_decode(const int8_t* weights, int64_t rows, int64_t cols, uint8_t* packed);
}  // namespace cuda

}  // namespace mmfree
