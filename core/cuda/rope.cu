#include <numbers>

#include "core/cuda/common.cuh"
#include "core/ops/rope.h"

namespace mmfree::cuda {
namespace {

constexpr int kScanThreads = 1024, kScanWarps = kScanThreads / kWarp;

/// One block a sequence, a chunk of kScanThreads tokens at a time. Bits of a vote tell the marks of a warp; of the
/// warps before, each leaves its last mark in shared memory. No mark: -1.
__global__ void __launch_bounds__(kScanThreads) scan_begins(DocumentBeginsArgs g) {
  __shared__ int last[2][kScanWarps];
  begin_kernel();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint8_t* starts = g.starts ? g.starts + blockIdx.x * g.t : nullptr;
  int32_t* begins = g.begins + blockIdx.x * g.t;
  int carry = g.before ? g.before[blockIdx.x] : 0, turn = 0;
  for (int64_t chunk = 0; chunk < g.t; chunk += kScanThreads, turn ^= 1) {
    const int64_t t = chunk + threadIdx.x;
    const uint32_t marks = __ballot_sync(0xffffffffu, starts && t < g.t && starts[t]);
    const int warp_begin = int(g.first + t) - lane;
    if (lane == 0) last[turn][warp] = marks ? warp_begin + (31 - __clz(marks)) : -1;
    __syncthreads();
    const int of_lane = last[turn][lane];
    const int before = __reduce_max_sync(0xffffffffu, lane < warp ? of_lane : -1);
    const int whole = __reduce_max_sync(0xffffffffu, of_lane);
    const uint32_t up_to_here = marks & (0xffffffffu >> (31 - lane));
    const int mark = up_to_here ? warp_begin + (31 - __clz(up_to_here)) : before;
    if (t < g.t) begins[t] = mark >= 0 ? mark : carry;
    if (whole >= 0) carry = whole;
  }
  if (threadIdx.x == 0) g.after[blockIdx.x] = carry;
}
static_assert(kScanWarps == kWarp, "a lane for each warp");

constexpr int kThreads = 256, kAngles = 1024;  // of a block
static_assert(kMostRopePairs <= kAngles);

/// A block rotates as many tokens as have kAngles angles, and computes these once for all heads. V neighbouring pairs
/// are read and written together.
template <class A, int V>
__global__ void __launch_bounds__(kThreads) rotate(RopeArgs g) {
  __shared__ double turns[kMostRopePairs];  // of one position
  __shared__ float2 angles[kAngles];
  begin_kernel();
  const int pairs = int(g.width / 2), most = kAngles / pairs;
  const int64_t first_token = int64_t(blockIdx.x) * most;
  const int tokens = int(min(int64_t(most), g.b * g.t - first_token));
  const double per_pair = -2.0 / double(g.width) * log2(g.theta);
  for (int i = threadIdx.x; i < pairs; i += kThreads) turns[i] = exp2(i * per_pair) * (0.5 * std::numbers::inv_pi);
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * pairs; i += kThreads) {
    const int64_t token = first_token + i / pairs;
    const int64_t position = g.first + token % g.t - (g.begins ? g.begins[token] : 0);
    const double turn = double(position) * turns[i % pairs];
    float2 angle;
    sincospif(2 * float(turn - rint(turn)), &angle.y, &angle.x);
    if (g.back) angle.y = -angle.y;
    angles[i] = angle;
  }
  __syncthreads();
  const A* x = static_cast<const A*>(g.x);
  A* y = static_cast<A*>(g.y);
  const int vectors = pairs / V, heads = int(g.heads);
  for (int i = threadIdx.x; i < tokens * heads * vectors; i += kThreads) {
    const int pair = i % vectors * V, row = i / vectors;
    const int64_t at = (first_token * heads + row) * g.width + pair;
    const float2* angle = angles + row / heads * pairs + pair;
    float low[V], high[V];
    load(low, x + at);
    load(high, x + at + pairs);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float a = low[v], b = high[v];
      low[v] = a * angle[v].x - b * angle[v].y;
      high[v] = b * angle[v].x + a * angle[v].y;
    }
    store(y + at, low);
    store(y + at + pairs, high);
  }
}

}  // namespace

void document_begins(const DocumentBeginsArgs& g) {
  if (g.b == 0) return;
  launch_kernel(scan_begins, {unsigned(g.b), kScanThreads}, g);
  check_launch("document_begins");
}

void rope(const RopeArgs& g) {
  if (g.b * g.t * g.heads * g.width == 0) return;
  dispatch_activation(g.dtype, "rope", [&]<class A>() {
    constexpr int V = 16 / sizeof(A);
    const int64_t pairs = g.width / 2;
    const unsigned blocks = unsigned(ceil_div(g.b * g.t, kAngles / pairs));
    const bool aligned = (reinterpret_cast<uintptr_t>(g.x) | reinterpret_cast<uintptr_t>(g.y)) % 16 == 0;
    if (aligned && pairs % V == 0)
      launch_kernel(rotate<A, V>, {blocks, kThreads}, g);
    else
      launch_kernel(rotate<A, 1>, {blocks, kThreads}, g);
    check_launch("rope");
  });
}

}  // namespace mmfree::cuda
