#include "core/cuda/decode.h"
#include "core/cuda/rows.cuh"

/// Attention of decode programs: every row's own kernel block per head, so that its bits do not depend on the rows
/// beside it. The token at position p of a slot is at place p modulo C of its cache, which has room for all that a
/// call's rows may see.
namespace mmfree::cuda::decode {
namespace {

constexpr int kOwnThreads = 128, kWarps = kOwnThreads / kWarp;
constexpr int kMostWidth = 512;

/// DecodeAttend without what a kernel cannot hold.
struct AttendArgs {
  float *q, *k;
  const float* v;
  float *o, *keys, *values;
  int64_t capacity, heads, kv_heads, width, window;
  explicit AttendArgs(const DecodeAttend& a)
      : q(a.q),
        k(a.k),
        v(a.v),
        o(a.o),
        keys(a.keys),
        values(a.values),
        capacity(a.capacity),
        heads(a.heads),
        kv_heads(a.kv_heads),
        width(a.width),
        window(a.window) {}
};

/// A block has one row: rotates its queries, and stores its rotated keys and its values in the cache.
__global__ void __launch_bounds__(kOwnThreads)
    append(AttendArgs a, const double* turns, const int32_t* slots, const int32_t* positions) {
  __shared__ float2 angles[kMostWidth / 2];
  begin_kernel();
  const int64_t row = blockIdx.x, position = positions[row];
  const int half = int(a.width / 2);
  for (int i = threadIdx.x; i < half; i += kOwnThreads) {
    const double turn = double(position) * turns[i];
    sincospif(2 * float(turn - rint(turn)), &angles[i].y, &angles[i].x);
  }
  __syncthreads();
  const auto rotate = [&](const float* x, float* y, int64_t heads) {
    for (int i = threadIdx.x; i < heads * half; i += kOwnThreads) {
      const int64_t low = i / half * a.width + i % half;
      const float2 angle = angles[i % half];
      const float left = x[low], right = x[low + half];
      y[low] = left * angle.x - right * angle.y;
      y[low + half] = right * angle.x + left * angle.y;
    }
  };
  const int64_t group = a.kv_heads * a.width;
  const int64_t at = (slots[row] * a.capacity + position % a.capacity) * group;
  float* q = a.q + row * a.heads * a.width;
  rotate(q, q, a.heads);
  rotate(a.k + row * group, a.keys + at, a.kv_heads);
  for (int i = threadIdx.x; i < group; i += kOwnThreads) a.values[at + i] = a.v[row * group + i];
}

/// Σ p_j v_j, Σ p_j and the largest score of some keys. Columns lane, lane + 32, … of a head are a lane's.
template <int kParts>
struct Softmax {
  float values[kParts] = {}, sum = 0, most = -INFINITY;

  /// Adds others, whose largest score is `score`: factor · (their values, their sum).
  template <class Value>
  __device__ void add(float score, float their_sum, Value&& value) {
    const float top = fmaxf(most, score);
    const float mine = most == top ? 1.0f : expf(most - top), theirs = score == top ? 1.0f : expf(score - top);
    sum = fmaf(sum, mine, __fmul_rn(their_sum, theirs));
#pragma unroll
    for (int i = 0; i < kParts; ++i) values[i] = fmaf(values[i], mine, __fmul_rn(value(i), theirs));
    most = top;
  }
};

/// A block has one head of one row. Warp w takes the keys w, w + kWarps, … of those that the row sees, in order; then
/// the warps are added.
template <int kParts>
__global__ void __launch_bounds__(kOwnThreads)
    attend_rows(AttendArgs a, const int32_t* slots, const int32_t* positions) {
  __shared__ float values[kWarps][kParts * kWarp], sums[kWarps], tops[kWarps];
  begin_kernel();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = int(a.width);
  const int64_t row = blockIdx.x / a.heads, head = blockIdx.x % a.heads, of = head * a.kv_heads / a.heads;
  const int64_t position = positions[row], first = a.window ? max(int64_t(0), position - a.window + 1) : 0;
  const int64_t cache = slots[row] * a.capacity;
  const float* q = a.q + (row * a.heads + head) * width;
  const float scale = rsqrtf(float(width));
  float query[kParts];
  const auto inside = [&](int i) { return i * kWarp + lane < width; };
#pragma unroll
  for (int i = 0; i < kParts; ++i) query[i] = inside(i) ? q[i * kWarp + lane] * scale : 0.0f;
  Softmax<kParts> own;
  for (int64_t j = first + warp; j <= position; j += kWarps) {
    const int64_t at = ((cache + j % a.capacity) * a.kv_heads + of) * width + lane;
    float score = 0, value[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const bool live = inside(i);
      score = fmaf(query[i], live ? a.keys[at + i * kWarp] : 0.0f, score);
      value[i] = live ? a.values[at + i * kWarp] : 0.0f;
    }
    own.add(warp_sum(score), 1.0f, [&](int i) { return value[i]; });
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) values[warp][i * kWarp + lane] = own.values[i];
  if (lane == 0) sums[warp] = own.sum, tops[warp] = own.most;
  __syncthreads();
  if (warp) return;
  for (int w = 1; w < kWarps; ++w)
    if (sums[w] > 0) own.add(tops[w], sums[w], [&](int i) { return values[w][i * kWarp + lane]; });
  float* o = a.o + (row * a.heads + head) * width;
#pragma unroll
  for (int i = 0; i < kParts; ++i)
    if (inside(i)) o[i * kWarp + lane] = own.values[i] / own.sum;
}

}  // namespace

void attend(const DecodeAttend& a, const double* turns, const Rows& rows) {
  MMFREE_CHECK(ShapeError, a.width <= kMostWidth, "decode: heads of ", a.width, " elements, at most ", kMostWidth);
  AttendArgs args(a);
  launch_kernel(append, {unsigned(rows.rows), kOwnThreads}, args, turns, rows.slots, rows.positions);
  check_launch("decode");
  const auto run = [&](auto kernel) {
    launch_kernel(kernel, {unsigned(rows.rows * a.heads), kOwnThreads}, args, rows.slots, rows.positions);
    check_launch("decode");
  };
  const int64_t parts = ceil_div(a.width, kWarp);
  parts <= 1   ? run(attend_rows<1>)
  : parts <= 2 ? run(attend_rows<2>)
  : parts <= 4 ? run(attend_rows<4>)
               : run(attend_rows<16>);
}

}  // namespace mmfree::cuda::decode
