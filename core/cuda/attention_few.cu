#include <bit>

#include "core/cuda/attention.cuh"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPart = 8;    // numbers that a lane loads at once
constexpr int kAtOnce = 4;  // keys that a lane has in flight

/// A block computes one query of one head. `lanes` neighbouring lanes share a key, kParts parts each, and every such
/// team takes keys of its own with a maximum, a sum and an output of its own. The teams' are put together at the end,
/// in order.
template <class A, int kParts>
__global__ void __launch_bounds__(kThreads) attend_one(AttentionArgs g, int lanes) {
  extern __shared__ float memory[];
  const int64_t head = blockIdx.x % g.heads, t = blockIdx.x / g.heads % g.t, sequence = blockIdx.x / g.heads / g.t;
  const tiles::Keys<A> keys(g, sequence, head * g.kv_heads / g.heads);
  const int64_t row = ((sequence * g.t + t) * g.heads + head) * g.width;
  const int parts = int(g.width / kPart), first_part = threadIdx.x % lanes;
  const int team = threadIdx.x / lanes, teams = kThreads / lanes;
  const int low = tiles::lowest_key(g, sequence, t), own = int(t + g.keys - g.t);
  float q[kParts][kPart] = {}, o[kParts][kPart] = {}, most = -INFINITY, sum = 0;
#pragma unroll
  for (int c = 0; c < kParts; ++c)
    if (const int part = first_part + c * lanes; part < parts)
      load(q[c], static_cast<const A*>(g.q) + row + part * kPart);
  const float scale = rsqrtf(float(g.width)) * tiles::kLog2e;
  for (int begin = low; begin <= own; begin += teams * kAtOnce) {
    float k[kAtOnce][kParts][kPart] = {}, v[kAtOnce][kParts][kPart] = {}, s[kAtOnce] = {}, top = most;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int c = 0; c < kParts; ++c) {
        const int key = begin + team + i * teams, part = first_part + c * lanes;
        if (key > own || part >= parts) continue;
        load(k[i][c], keys.k + key * keys.stride + part * kPart);
        load(v[i][c], keys.v + key * keys.stride + part * kPart);
      }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int c = 0; c < kParts; ++c)
#pragma unroll
        for (int w = 0; w < kPart; ++w) s[i] = fmaf(q[c][w], k[i][c][w], s[i]);
      for (int width = lanes / 2; width; width /= 2) s[i] += __shfl_xor_sync(0xffffffffu, s[i], width);
      s[i] = begin + team + i * teams <= own ? s[i] * scale : -INFINITY;
      top = fmaxf(top, s[i]);
    }
    const float base = top == -INFINITY ? 0 : top, fade = exp2f(most - base);
    most = top;
    sum *= fade;
#pragma unroll
    for (int c = 0; c < kParts; ++c)
#pragma unroll
      for (int w = 0; w < kPart; ++w) o[c][w] *= fade;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float e = exp2f(s[i] - base);
      sum += e;
#pragma unroll
      for (int c = 0; c < kParts; ++c)
#pragma unroll
        for (int w = 0; w < kPart; ++w) o[c][w] = fmaf(e, v[i][c][w], o[c][w]);
    }
  }
  float* const outputs = memory;  // [teams, W]
  float* const sums = outputs + teams * g.width;
  float* const tops = sums + teams;
#pragma unroll
  for (int c = 0; c < kParts; ++c)
    if (const int part = first_part + c * lanes; part < parts)
#pragma unroll
      for (int w = 0; w < kPart; ++w) outputs[team * g.width + part * kPart + w] = o[c][w];
  if (first_part == 0) sums[team] = sum, tops[team] = most;
  __syncthreads();
  float top = tops[0], all = 0;
  for (int i = 1; i < teams; ++i) top = fmaxf(top, tops[i]);
  for (int i = 0; i < teams; ++i) all += sums[i] * exp2f(tops[i] - top);
  for (int w = threadIdx.x; w < g.width; w += kThreads) {
    float total = 0;
    for (int i = 0; i < teams; ++i) total += outputs[i * g.width + w] * exp2f(tops[i] - top);
    static_cast<A*>(g.o)[row + w] = from_float<A>(total / all);
  }
  if (g.lse && threadIdx.x == 0)
    static_cast<float*>(g.lse)[(sequence * g.heads + head) * g.t + t] = (top + log2f(all)) * tiles::kLn2;
}

template <class A, int kParts>
void launch(const AttentionArgs& g) {
  const int lanes = int(std::bit_ceil(uint64_t(ceil_div(g.width, kPart * kParts)))), teams = kThreads / lanes;
  const size_t shared = size_t(teams) * size_t(g.width + 2) * sizeof(float);
  attend_one<A, kParts><<<unsigned(g.b * g.t * g.heads), kThreads, shared, stream()>>>(g, lanes);
  check_launch("attention");
}

}  // namespace

void attend_few(const AttentionArgs& g) {
  dispatch_activation(g.dtype, "attention", [&]<class A>() {
    if (g.width <= kWarp * kPart) return launch<A, 1>(g);
    launch<A, 2>(g);
  });
}

}  // namespace mmfree::cuda
