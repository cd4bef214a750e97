#include "core/cuda/common.cuh"
#include "core/ops/lower_bounds.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 128;

struct Bounds {
  const float *lambda, *dgamma;
  float* out;
  int64_t layers, d;
  float beta;
};

/// Softmax over the layers of one channel: e^(lambda − shift) · scale.
struct ChannelSoftmax {
  const float* lambda;
  int64_t d;
  float shift, scale;

  __device__ ChannelSoftmax(const Bounds& g, int64_t k) : lambda(g.lambda + k), d(g.d), shift(lambda[0]) {
    for (int64_t l = 1; l < g.layers; ++l) shift = fmaxf(shift, lambda[l * d]);
    float sum = 0;
    for (int64_t l = 0; l < g.layers; ++l) sum += expf(lambda[l * d] - shift);
    scale = 1.0f / sum;
  }
  __device__ float operator()(int64_t l) const { return expf(lambda[l * d] - shift) * scale; }
};

__global__ void forward(const Bounds g) {
  begin_kernel();
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= g.d) return;
  const ChannelSoftmax p(g, k);
  float sum = 0;
  for (int64_t l = 0; l < g.layers; ++l) g.out[l * g.d + k] = sum += l ? p(l) : 0.0f;
}

__global__ void backward(const Bounds g) {
  begin_kernel();
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= g.d) return;
  const ChannelSoftmax p(g, k);
  float sum = 0, mean = 0;
  for (int64_t l = g.layers - 1; l > 0; --l) mean += p(l) * (sum += g.dgamma[l * g.d + k]);
  sum = 0;
  for (int64_t l = g.layers - 1; l >= 0; --l) {
    const float dp = l ? sum += g.dgamma[l * g.d + k] : 0.0f;
    float& out = g.out[l * g.d + k];
    out = (g.beta == 0 ? 0.0f : g.beta * out) + p(l) * (dp - mean);
  }
}

void launch(void (*kernel)(Bounds), const LowerBoundsArgs& g, const char* op) {
  MMFREE_CHECK(DTypeError, g.dtype == DType::f32, op, ": expected f32 on a GPU, got ", name_of(g.dtype));
  if (g.l == 0 || g.d == 0) return;
  const Bounds bounds{static_cast<const float*>(g.lambda),
                      static_cast<const float*>(g.dgamma),
                      static_cast<float*>(g.out),
                      g.l,
                      g.d,
                      float(g.beta)};
  launch_kernel(kernel, {unsigned(ceil_div(g.d, kThreads)), kThreads}, bounds);
  check_launch(op);
}

}  // namespace

void lower_bounds(const LowerBoundsArgs& g) { launch(forward, g, "lower_bounds"); }
void lower_bounds_backward(const LowerBoundsArgs& g) { launch(backward, g, "lower_bounds_backward"); }

}  // namespace mmfree::cuda
