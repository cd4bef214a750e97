#include "core/cuda/abs_sum.cuh"
#include "core/ops/adamw.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 4;

__global__ void begin(const double* sums, StepParams* step) {
  begin_kernel();
  StepParams s = *step;
  s.grad_norm = sqrt(sums[0]);
  const bool sound =
      s.grad_norm < kMostNorm && sums[1] < kMostNorm * kMostNorm && isfinite(sums[2] + s.lr + s.decay_factor);
  const bool outlier = s.outlier > 0 && s.norms >= kNormsNeeded && s.grad_norm > s.outlier * s.norm_mean;
  s.skip = !sound ? kSkipUnsound : outlier ? kSkipOutlier : 0;
  if (s.skip == 0) {
    s.updates += 1;
    s.norms += 1;
    s.norm_mean += (s.grad_norm - s.norm_mean) / fmin(s.norms, kNormWindow);
    s.bias1 = 1 - pow(s.beta1, s.updates);
    s.bias2 = 1 - pow(s.beta2, s.updates);
    s.grad_scale = s.clip > 0 ? fmin(1.0, s.clip / (s.grad_norm + 1e-6)) : 1;
  }
  *step = s;
}

/// The scalars of an update, rounded once from f64 to f32.
struct Rates {
  float scale, b1, rest1, b2, rest2, inv1, inv2, lr, eps, keep;
};

__device__ Rates rates_of(const StepParams& s, double lr_factor, double weight_decay) {
  const double lr = __dmul_rn(s.lr, lr_factor);
  const double keep = __dsub_rn(1, __dmul_rn(lr, __dmul_rn(s.decay_factor, weight_decay)));
  return {float(s.grad_scale), float(s.beta1),     float(1 - s.beta1), float(s.beta2), float(1 - s.beta2),
          float(1 / s.bias1),  float(1 / s.bias2), float(lr),          float(s.eps),   float(keep)};
}

/// Updates one element with the roundings of the CPU: intrinsics keep the compiler from making an fma.
__device__ void update(const Rates& r, float grad, float& p, float& m, float& v) {
  const float d = __fmul_rn(grad, r.scale);
  m = __fadd_rn(__fmul_rn(r.b1, m), __fmul_rn(r.rest1, d));
  v = __fadd_rn(__fmul_rn(r.b2, v), __fmul_rn(__fmul_rn(r.rest2, d), d));
  const float size = __fadd_rn(__fsqrt_rn(__fmul_rn(v, r.inv2)), r.eps);
  p = __fsub_rn(__fmul_rn(p, r.keep), __fdiv_rn(__fmul_rn(r.lr, __fmul_rn(m, r.inv1)), size));
}

/// One block of threads per block of parameters.
template <bool kSums>
__global__ void __launch_bounds__(kThreads, 5) update_block(AdamwArgs g) {
  __shared__ float sizes[kSums ? kParamBlock : 1];
  __shared__ float moments[kSums ? kThreads / kWarp : 1];
  __shared__ Rates rates;
  begin_kernel();
  const bool skip = g.step->skip != 0;
  if (skip && !kSums) return;
  if (threadIdx.x == 0) rates = rates_of(*g.step, g.rates[2 * blockIdx.x], g.rates[2 * blockIdx.x + 1]);
  __syncthreads();
  const int64_t first = int64_t(blockIdx.x) * kParamBlock;
  float moment = 0;  // f32 is enough: an overflow gives infinity, which is above the limit too
#pragma unroll 1
  for (int turn = 0; turn < kParamBlock / (kThreads * kWide); ++turn) {
    const int i = (turn * kThreads + int(threadIdx.x)) * kWide;
    float p[kWide], m[kWide], v[kWide], grad[kWide];
    load<kWide>(p, static_cast<float*>(g.values) + first + i);
    load<kWide>(m, static_cast<float*>(g.m) + first + i);
    load<kWide>(v, static_cast<float*>(g.v) + first + i);
    if (!skip) {
      load<kWide>(grad, static_cast<const float*>(g.grads) + first + i);
#pragma unroll
      for (int k = 0; k < kWide; ++k) update(rates, grad[k], p[k], m[k], v[k]);
      store<kWide>(static_cast<float*>(g.values) + first + i, p);
      store<kWide>(static_cast<float*>(g.m) + first + i, m);
      store<kWide>(static_cast<float*>(g.v) + first + i, v);
    }
    if constexpr (kSums) {
      store<kWide>(sizes + i, p);
#pragma unroll
      for (int k = 0; k < kWide; ++k) moment += m[k] * m[k] + fabsf(v[k]);
    }
  }
  if constexpr (kSums) {
    moment = warp_sum(moment);
    if (threadIdx.x % kWarp == 0) moments[threadIdx.x / kWarp] = moment;
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    const double sum = ordered_abs_sum(sizes);
    if (threadIdx.x != 0) return;
    g.abs_sums[blockIdx.x] = sum;
    double all = 0;
    for (float part : moments) all += part;
    g.moment_sums[blockIdx.x] = all;
  }
}

}  // namespace

void adamw_begin(const AdamwBeginArgs& g) {
  launch_kernel(begin, {1, 1}, g.sums, g.step);
  check_launch("adamw_begin");
}

void adamw(const AdamwArgs& g) {
  MMFREE_CHECK(DTypeError, g.dtype == DType::f32, "adamw: expected f32 on a GPU, got ", name_of(g.dtype));
  if (g.blocks == 0) return;
  launch_kernel(g.abs_sums ? update_block<true> : update_block<false>, {unsigned(g.blocks), kThreads}, g);
  check_launch("adamw");
}

}  // namespace mmfree::cuda
