#include "core/cuda/column_sums.cuh"
#include "core/cuda/rows.cuh"
#include "core/ops/gate_norm.h"
#include "core/tensor.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 512;

template <class A>
struct Forward {
  const A *a, *b;
  const float* weight;
  A* y;
  float* r;
  int64_t n, d;
  float eps;
};

template <class A>
__global__ __launch_bounds__(kThreads) void forward(const Forward<A> p) {
  __shared__ RowReduction<1, 0> reduce;
  reduce.clear();
  begin_kernel();
  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    const A *a = p.a + n * p.d, *b = p.b + n * p.d;
    A* y = p.y + n * p.d;
    if (!p.weight) {
      each_vector<0, 1>(p.d,
                        [=](int, int64_t k) { y[k] = from_float<A>(to_float(a[k]) * sigmoid<A>(to_float(b[k]))); });
      continue;
    }
    float squares[1] = {};
    each_vector<0, 1>(p.d, [&](int, int64_t k) { squares[0] += to_float(a[k]) * to_float(a[k]); });
    reduce(turn, squares, nullptr);
    const float r = rms_reciprocal(squares[0] / float(p.d), p.eps);
    if (threadIdx.x == 0) p.r[n] = r;
    each_vector<0, 1>(p.d, [=](int, int64_t k) {
      const float gate = to_float(b[k]);
      y[k] = from_float<A>(to_float(a[k]) * r * p.weight[k] * silu(gate, sigmoid<A>(gate)));
    });
  }
}

template <class A>
struct Backward {
  const A *a, *b, *dy;
  const float *weight, *r;
  A *da, *db;
  float* partial;  ///< [blocks, d]: sums for dweight, or null
  float beta_a, beta_b;
  int64_t n, d;
};

/// dst[k] = beta · dst[k] + value; nothing when dst is null.
template <class A>
__device__ void blend(A* dst, float beta, int64_t k, float value) {
  if (dst) dst[k] = from_float<A>(beta == 0 ? value : beta * to_float(dst[k]) + value);
}

template <class A>
__global__ __launch_bounds__(kThreads) void backward(const Backward<A> p) {
  __shared__ RowReduction<1, 0> reduce;
  reduce.clear();
  begin_kernel();
  float* partial = p.partial ? p.partial + int64_t(blockIdx.x) * p.d : nullptr;
  if (partial) each_vector<0, 1>(p.d, [=](int, int64_t k) { partial[k] = 0; });
  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    const A *a = p.a + n * p.d, *b = p.b + n * p.d, *dy = p.dy + n * p.d;
    A *da = p.da ? p.da + n * p.d : nullptr, *db = p.db ? p.db + n * p.d : nullptr;
    if (!p.weight) {
      each_vector<0, 1>(p.d, [=](int, int64_t k) {
        const float s = sigmoid<A>(to_float(b[k])), d = to_float(dy[k]), value = to_float(a[k]);
        blend(da, p.beta_a, k, d * s);
        blend(db, p.beta_b, k, d * value * s * (1.0f - s));
      });
      continue;
    }
    const float r = p.r[n];
    float dot[1] = {};
    each_vector<0, 1>(p.d, [&](int, int64_t k) {
      const float gate = to_float(b[k]), normed = to_float(a[k]) * r;
      const float t = to_float(dy[k]) * silu(gate, sigmoid<A>(gate));
      dot[0] += normed * t * p.weight[k];
      if (partial) partial[k] += t * normed;
    });
    reduce(turn, dot, nullptr);
    const float mean = dot[0] / float(p.d);
    each_vector<0, 1>(p.d, [=](int, int64_t k) {
      const float gate = to_float(b[k]), s = sigmoid<A>(gate), normed = to_float(a[k]) * r, d = to_float(dy[k]);
      blend(db, p.beta_b, k, d * normed * p.weight[k] * silu_slope(gate, s));
      blend(da, p.beta_a, k, r * (d * silu(gate, s) * p.weight[k] - normed * mean));
    });
  }
}

}  // namespace

void gate_norm(const GateNormArgs& g) {
  if (g.n == 0 || g.d == 0) return;
  dispatch_activation(g.dtype, "gate_norm", [&]<class A>() {
    const Forward<A> p{static_cast<const A*>(g.a),
                       static_cast<const A*>(g.b),
                       static_cast<const float*>(g.weight),
                       static_cast<A*>(g.y),
                       static_cast<float*>(g.r),
                       g.n,
                       g.d,
                       float(g.eps)};
    const int threads = threads_for(g.d, kThreads);
    launch_kernel(forward<A>, {unsigned(persistent_blocks<forward<A>>(threads, g.n)), unsigned(threads)}, p);
  });
  check_launch("gate_norm");
}

void gate_norm_backward(const GateNormBackwardArgs& g) {
  dispatch_activation(g.dtype, "gate_norm_backward", [&]<class A>() {
    const int threads = threads_for(g.d, kThreads);
    const int64_t blocks = g.d ? persistent_blocks<backward<A>>(threads, g.n) : 0;
    Tensor partial;
    if (g.weight && g.dweight) partial = Tensor({blocks, g.d}, DType::f32, Device::cuda);
    const Backward<A> p{static_cast<const A*>(g.a),
                        static_cast<const A*>(g.b),
                        static_cast<const A*>(g.dy),
                        static_cast<const float*>(g.weight),
                        static_cast<const float*>(g.r),
                        static_cast<A*>(g.da),
                        static_cast<A*>(g.db),
                        reinterpret_cast<float*>(partial.raw_mut()),
                        float(g.beta_a),
                        float(g.beta_b),
                        g.n,
                        g.d};
    if (blocks) {
      launch_kernel(backward<A>, {unsigned(blocks), unsigned(threads)}, p);
      check_launch("gate_norm_backward");
    }
    if (p.partial)
      finish_column_sums({p.partial, blocks, g.d, 1, {{static_cast<float*>(g.dweight), float(g.beta_weight)}}},
                         "gate_norm_backward");
  });
}

}  // namespace mmfree::cuda
