#pragma once
#include <cstdint>
#include <vector>

#include "core/ops/decode.h"

/// Arguments of the kernels that run a decode program on a GPU. Rows are the tokens of a call, everything is f32.
///
/// The bits of a row depend on its own sequence alone. Norms are computed by one function with one order of sums,
/// wherever it is called (decode_norm.cuh); sums of ternary products are integers, so they do not depend on how the
/// product is divided; plain products add in an order that depends on K alone; the recurrence goes token by token.
namespace mmfree::cuda::decode {

/// Threads of a block of every kernel that computes norms: the order of sums depends on it.
inline constexpr int kThreads = 256;
/// Most rows of a call that is computed by chains (decode_chain.h).
inline constexpr int kFewRows = 4;
/// Fewest rows of a call whose products read weights of a byte each.
inline constexpr int kDenseRows = 96;
inline constexpr int kMostMatrices = int(kMaxNormBranches);

/// Packed weights: a row is a number of blocks of 256 columns, 16 words of 16 weights each, two bits a weight: 0, 1, 2
/// for -1, 0, 1. Word 4 t + i of a block has its columns 64 i + 16 t + c for c < 16 at bit 16 (c / 4 % 2) + 2 (c / 8) +
/// 4 (c % 4). So a lane of a tensor core's four gets 16 neighbouring columns of each 64 by one access of 16 bytes, and
/// one `prmt` makes four weights in bytes of four codes.
inline constexpr int kBlockColumns = 256, kBlockWords = 16;
constexpr int64_t block_columns(int64_t k) { return (k + kBlockColumns - 1) / kBlockColumns * kBlockColumns; }
constexpr int64_t row_words(int64_t k) { return block_columns(k) / 16; }

/// norm_quant, see core/ops/norm_quant.h.
struct Norm {
  struct Branch {
    const float* weight;  ///< null: no norm
    Rounding rounding;
    bool codes;  ///< `out` is codes, `stride` of them from a row to the next; else f32
    void* out;
    float* step;  ///< of codes
  };
  RowSource::Kind kind;
  Activation f;
  const float *a, *b, *weight;
  int64_t stride;  ///< elements from a row of a and b to the next
  float eps_gate, eps_outer, eps_inner;
  const float* outer;
  float* x;  ///< value of a sum, [N, D]; or null
  int d, count;
  float inverse_d;      ///< 1 / d
  int64_t code_stride;  ///< block_columns(d)
  Branch branches[kMostMatrices];
  const int32_t* wanted;  ///< output row n is that of source row wanted[n]; null: of n
};

/// A ternary matrix of a group.
struct Matrix {
  const uint32_t* codes;
  const int8_t* bytes;  ///< the same weights, [O, K]; or null
  const float* scale;
  const int8_t* q;  ///< code rows of its branch
  const float* step;
  float* y;
  int64_t stride;  ///< elements from a row of y to the next
  int branch;
  int rows;  ///< O
};

/// What becomes of the sums.
enum class Finish {
  store,  ///< y of each matrix
  glu,    ///< two matrices of the same shape: y of the first is f(y0) ⊙ y1
  scan,   ///< three: y0 and y1 are z and a of a step of mlgru_scan, of which h is stored; y2 is stored
};

/// Products of the same K whose rows were normalised by one norm.
struct Group {
  Matrix matrices[kMostMatrices];
  int count, k, words;
  Finish finish;
  Activation f;
  const float* gamma;  ///< scan: or null
  float *h, *state;
  const int32_t* slots;  ///< of each row
  int64_t first_row;     ///< of y
  /// Outputs that are computed together: those of all matrices one after the other, or of the same number in each.
  int units() const {
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += matrices[i].rows;
    return finish == Finish::store ? sum : matrices[0].rows;
  }
};

/// The products from the codes that `norm` stored.
void tiles(const Group& group, int rows);
/// The same for many rows on Hopper, from weights of a byte each; `finish` is not scan.
bool fits_dense(const Group& group, int rows);
void dense(const Group& group, int rows);

void embed(const DecodeEmbed& embed, const int32_t* ids, int rows);
void norm(const Norm& norm, int rows);
/// y [rows, O] = x [rows, K] wᵀ, w f32 or bf16; y starts at row `first_row`.
void plain(const DecodeMatrix& m, int rows, int64_t first_row);

/// Where the rows of a call belong to, on the device.
struct Rows {
  const int32_t *ids, *slots, *positions;  ///< [N]
  const int32_t* wanted;
  const int32_t* spans;  ///< first row and number of rows of each
  int rows, span_count, wanted_count;
};
void scan(const DecodeScan& s, const Rows& rows);
/// `turns` on the device.
void attend(const DecodeAttend& a, const double* turns, const Rows& rows);

/// i8 codes [O, K] -> packed weights [O, row_words(K)].
void pack(const int8_t* codes, int64_t rows, int64_t cols, uint32_t* packed);

}  // namespace mmfree::cuda::decode
