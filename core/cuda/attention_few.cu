#include <bit>

#include "core/cuda/attention.cuh"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPart = 8;    // numbers that a lane loads at once
constexpr int kAtOnce = 4;  // keys that a lane has in flight

/// The block's query and head.
struct Place {
  int64_t head, t, sequence;
  __device__ explicit Place(const AttentionArgs& g)
      : head(blockIdx.x % g.heads), t(blockIdx.x / g.heads % g.t), sequence(blockIdx.x / g.heads / g.t) {}
  __device__ int64_t row(const AttentionArgs& g) const { return ((sequence * g.t + t) * g.heads + head) * g.width; }
};

/// Puts the teams' outputs [teams, W], sums and maxima together and stores the result.
template <class A>
__device__ void combine_teams(const AttentionArgs& g, const float* outputs, const float* sums, const float* tops,
                              int teams) {
  const Place at(g);
  float top = tops[0], all = 0;
  for (int i = 1; i < teams; ++i) top = fmaxf(top, tops[i]);
  for (int i = 0; i < teams; ++i) all += sums[i] * exp2f(tops[i] - top);
  for (int w = threadIdx.x; w < g.width; w += kThreads) {
    float total = 0;
    for (int i = 0; i < teams; ++i) total += outputs[i * g.width + w] * exp2f(tops[i] - top);
    static_cast<A*>(g.o)[at.row(g) + w] = from_float<A>(total / all);
  }
  if (g.lse && threadIdx.x == 0)
    static_cast<float*>(g.lse)[(at.sequence * g.heads + at.head) * g.t + at.t] = (top + log2f(all)) * tiles::kLn2;
}

/// A block computes one query of one head. `lanes` neighbouring lanes share a key, kParts parts each, and every such
/// team takes keys of its own with a maximum, a sum and an output of its own. The teams' are put together at the end,
/// in order.
template <class A, int kParts>
__global__ void __launch_bounds__(kThreads) attend_one(AttentionArgs g, int lanes) {
  begin_kernel();
  extern __shared__ float outputs[];  // [teams, W], then the sums and the maxima [teams]
  const Place at(g);
  const tiles::Keys<A> keys(g, at.sequence, at.head * g.kv_heads / g.heads);
  const int parts = int(g.width / kPart), first_part = threadIdx.x % lanes, own = int(at.t + g.keys - g.t);
  const int team = threadIdx.x / lanes, teams = kThreads / lanes;
  float q[kParts][kPart] = {}, o[kParts][kPart] = {}, most = -INFINITY, sum = 0;
#pragma unroll
  for (int c = 0; c < kParts; ++c)
    if (const int part = first_part + c * lanes; part < parts)
      load(q[c], static_cast<const A*>(g.q) + at.row(g) + part * kPart);
  const float scale = rsqrtf(float(g.width)) * tiles::kLog2e;
  for (int begin = tiles::lowest_key(g, at.sequence, at.t); begin <= own; begin += teams * kAtOnce) {
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
  float *const sums = outputs + teams * g.width, *const tops = sums + teams;
#pragma unroll
  for (int c = 0; c < kParts; ++c)
    if (const int part = first_part + c * lanes; part < parts)
#pragma unroll
      for (int w = 0; w < kPart; ++w) outputs[team * g.width + part * kPart + w] = o[c][w];
  if (first_part == 0) sums[team] = sum, tops[team] = most;
  __syncthreads();
  combine_teams<A>(g, outputs, sums, tops, teams);
}

template <class A, int kParts>
void launch(const AttentionArgs& g) {
  const int lanes = int(std::bit_ceil(uint64_t(ceil_div(g.width, kPart * kParts)))), teams = kThreads / lanes;
  const size_t shared = size_t(teams) * size_t(g.width + 2) * sizeof(float);
  launch_kernel(attend_one<A, kParts>, {unsigned(g.b * g.t * g.heads), kThreads, shared}, g, lanes);
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
