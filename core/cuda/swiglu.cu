#include "core/cuda/common.cuh"
#include "core/ops/swiglu.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;

/// Calls body(first, i) for each of n rows of i columns: `first` is the place of the gate in x, i that in y.
template <class Body>
__device__ void each_element(int64_t n, int64_t inner, Body&& body) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n * inner; i += int64_t(gridDim.x) * kThreads)
    body(i + i / inner * inner, i);
}

template <class A>
__global__ void forward(const A* x, A* y, int64_t n, int64_t inner) {
  each_element(n, inner, [=](int64_t gate, int64_t i) {
    const float g = to_float(x[gate]), up = to_float(x[gate + inner]);
    y[i] = from_float<A>(silu(g, sigmoid<A>(g)) * up);
  });
}

template <class A>
__global__ void backward(const A* x, const A* dy, A* dx, int64_t n, int64_t inner) {
  each_element(n, inner, [=](int64_t gate, int64_t i) {
    const float g = to_float(x[gate]), up = to_float(x[gate + inner]), d = to_float(dy[i]), s = sigmoid<A>(g);
    dx[gate] = from_float<A>(d * up * silu_slope(g, s));
    dx[gate + inner] = from_float<A>(d * silu(g, s));
  });
}

unsigned blocks_for(const SwigluArgs& g) {
  return unsigned(std::min<int64_t>(ceil_div(g.n * g.i, kThreads), 8 * multiprocessors()));
}

}  // namespace

void swiglu(const SwigluArgs& g) {
  if (g.n == 0 || g.i == 0) return;
  dispatch_activation(g.dtype, "swiglu", [&]<class A>() {
    forward<A><<<blocks_for(g), kThreads, 0, stream()>>>(static_cast<const A*>(g.x), static_cast<A*>(g.out), g.n, g.i);
  });
  check_launch("swiglu");
}

void swiglu_backward(const SwigluArgs& g) {
  if (g.n == 0 || g.i == 0) return;
  dispatch_activation(g.dtype, "swiglu_backward", [&]<class A>() {
    backward<A><<<blocks_for(g), kThreads, 0, stream()>>>(static_cast<const A*>(g.x), static_cast<const A*>(g.dy),
                                                          static_cast<A*>(g.out), g.n, g.i);
  });
  check_launch("swiglu_backward");
}

}  // namespace mmfree::cuda
