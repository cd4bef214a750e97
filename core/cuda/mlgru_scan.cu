#include "core/cuda/common.cuh"
#include "core/ops/mlgru_scan.h"

namespace mmfree::cuda {
namespace {

// One block computes kWarp · V neighbouring channels of one sequence (V per lane), in chunks of W · S time steps: W
// warps with S consecutive steps each, the warp's stretch.
//   1. Each warp computes the effect of its stretch on the state, and starts its loads of the next chunk.
//   2. The effects of all warps go through shared memory; every warp composes them in the order of time. This gives the
//      state that enters its stretch, and the state at the end of the chunk.
//   3. Each warp computes the states of its stretch from the entering state and stores them.
// At a start of a document f is 0 for the state before, and stays what it is for the candidate. Starts are the same for
// all lanes: each lane loads one step's, and a vote makes them bits of a number. Without starts (`kCut` false) nothing
// of this is compiled.

/// The effect of a stretch of time on the state: out = keep · in + end.
template <int V>
struct alignas(8 * V) Effect {
  float keep[V], end[V];
};

/// Moves `state` from the start of a chunk to its end. `entering`, out: the state that enters this warp's stretch.
template <int V, int W>
__device__ void compose(Effect<V> (&effects)[W][kWarp], const Effect<V>& own, float (&state)[V], float (&entering)[V]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  effects[warp][lane] = own;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const Effect<V> effect = effects[w][lane];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (w == warp) entering[v] = state[v];
      state[v] = fmaf(effect.keep[v], state[v], effect.end[v]);
    }
  }
}

/// V channels of one step in the form of memory: one register, until they are used.
template <class A, int V>
using Raw = std::conditional_t<sizeof(A) * V == 4, uint32_t, uint16_t>;

template <class A>
__device__ float unpack(uint32_t raw, int v) {
  if constexpr (std::is_same_v<A, float>) return __uint_as_float(raw);
  return __uint_as_float(v ? raw & 0xffff0000u : raw << 16);
}

template <class A, int V>
__device__ void store_raw(void* to, int64_t at, const float (&from)[V]) {
  Raw<A, V> raw;
  if constexpr (V == 2) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(from[0], from[1]);
    raw = *reinterpret_cast<const uint32_t*>(&both);
  } else if constexpr (std::is_same_v<A, float>) {
    raw = __float_as_uint(from[0]);
  } else {
    raw = __bfloat16_as_ushort(__float2bfloat16_rn(from[0]));
  }
  *reinterpret_cast<Raw<A, V>*>(static_cast<A*>(to) + at) = raw;
}

/// The first `count` of S steps, `stride` elements apart; zeros for the rest.
template <class A, int V, int S>
__device__ void fetch(Raw<A, V> (&to)[S], const void* from, int64_t at, int stride, int count) {
  const A* source = static_cast<const A*>(from) + at;
#pragma unroll
  for (int s = 0; s < S; ++s)
    to[s] = s < count ? *reinterpret_cast<const Raw<A, V>*>(source + s * stride) : Raw<A, V>(0);
}

/// The starts of a warp's stretch. Lane s has that of step `at` + s · direction, if s < count.
template <bool kCut, int S>
struct Starts {
  uint8_t own = 0;
  __device__ void fetch(const uint8_t* from, int64_t at, int direction, int count) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (kCut) own = lane < min(S, count) ? from[at + direction * lane] : 0;
  }
  /// Bit s: lane s has a start. All lanes call it.
  __device__ uint32_t bits() const {
    if constexpr (kCut) return __ballot_sync(0xffffffffu, own);
    return 0;
  }
};

/// V numbers of an f32 array; zeros if it is null or the lane has no channels.
template <int V>
__device__ void load_optional(float (&to)[V], const void* from, int64_t at, bool live) {
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = from && live ? static_cast<const float*>(from)[at + v] : 0;
}

/// The channels of a thread. A lane beyond the last channel is not `live`: it runs with zero steps, for the barriers.
struct Place {
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t sequence, channel;
  bool live;
  __device__ Place(int64_t d, int width) {
    const int64_t stripes = (d + kWarp * width - 1) / (kWarp * width);
    sequence = blockIdx.x / stripes;
    channel = (blockIdx.x % stripes * kWarp + lane) * width;
    live = channel < d;
  }
};

template <class A, int V, int W, int S, bool kCut>
__global__ void __launch_bounds__(W* kWarp, 2) scan_forward(MlgruScanArgs g) {
  __shared__ Effect<V> effects[2][W][kWarp];
  begin_kernel();
  const Place place(g.d, V);
  const int d = int(g.d), total = int(g.t), steps = place.live ? total : 0;
  float gamma[V], state[V];
  load_optional(gamma, g.gamma, place.channel, place.live);
  load_optional(state, g.h0, place.sequence * g.d + place.channel, place.live);
  int t = place.warp * S, turn = 0;
  int64_t at = (place.sequence * g.t + t) * g.d + place.channel;
  Raw<A, V> z[S], a[S];
  Starts<kCut, S> starts;
  fetch<A, V, S>(z, g.z, at, d, steps - t);
  fetch<A, V, S>(a, g.a, at, d, steps - t);
  starts.fetch(g.starts, place.sequence * g.t + t, 1, total - t);
  for (int begin = 0; begin < total; begin += W * S, turn ^= 1) {
    const uint32_t cuts = starts.bits();
    float f[S][V], x[S][V], entering[V];
    Effect<V> own;
#pragma unroll
    for (int v = 0; v < V; ++v) own.keep[v] = 1, own.end[v] = 0;
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float candidate = unpack<A>(a[s], v);
        const float keep = gamma[v] + (1 - gamma[v]) * sigmoid<A>(unpack<A>(z[s], v));
        f[s][v] = t + s < steps ? keep : 1;
        x[s][v] = silu(candidate, sigmoid<A>(candidate)) * (1 - f[s][v]);
        if (cuts >> s & 1) f[s][v] = 0;
        own.keep[v] *= f[s][v];
        own.end[v] = fmaf(f[s][v], own.end[v], x[s][v]);
      }
    const int64_t next = at + W * S * g.d;
    fetch<A, V, S>(z, g.z, next, d, steps - t - W * S);
    fetch<A, V, S>(a, g.a, next, d, steps - t - W * S);
    starts.fetch(g.starts, place.sequence * g.t + t + W * S, 1, total - t - W * S);
    compose<V, W>(effects[turn], own, state, entering);
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int v = 0; v < V; ++v) entering[v] = fmaf(f[s][v], entering[v], x[s][v]);
      if (t + s < steps) store_raw<A, V>(g.h, at + s * d, entering);
    }
    t += W * S;
    at = next;
  }
  if (g.last && place.warp == 0 && place.live)
#pragma unroll
    for (int v = 0; v < V; ++v) static_cast<float*>(g.last)[place.sequence * g.d + place.channel + v] = state[v];
}

/// Inputs of the backward pass for S steps, the latest first.
template <class A, int V, int S, bool kCut>
struct Stretch {
  Raw<A, V> z[S], a[S], dh[S], before[S];
  Starts<kCut, S> starts;
  /// Loads steps t, t-1, ... of the thread's channels; `at` is the index of step t.
  __device__ void read(const MlgruScanBackwardArgs& g, int64_t at, int t, const Place& place) {
    const int count = place.live ? t + 1 : 0, d = int(g.d);
    fetch<A, V, S>(z, g.z, at, -d, count);
    fetch<A, V, S>(dh, g.dh, at, -d, count);
    fetch<A, V, S>(a, g.a, at, -d, count);
    fetch<A, V, S>(before, g.h, at - g.d, -d, count - 1);
    starts.fetch(g.starts, place.sequence * g.t + t, -1, t + 1);
  }
};

/// Adds the sums of the block's warps in order and stores one per channel in `to`.
template <int V, int W>
__device__ void store_sums(const float (&sums)[V], float* to, const Place& place) {
  __shared__ float all[W][kWarp][V];
#pragma unroll
  for (int v = 0; v < V; ++v) all[place.warp][place.lane][v] = sums[v];
  __syncthreads();
  if (place.warp || !place.live) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < W; ++w) sum += all[w][place.lane][v];
    to[v] = sum;
  }
}

template <class A, int V, int W, int S, bool kCut>
__global__ void __launch_bounds__(W* kWarp, 2) scan_backward(MlgruScanBackwardArgs g, float* bound_sums) {
  __shared__ Effect<V> effects[2][W][kWarp];
  begin_kernel();
  const Place place(g.d, V);
  const int d = int(g.d);
  const int64_t state_at = place.sequence * g.d + place.channel;
  float gamma[V], start[V], state[V] = {}, sums[V] = {};
  load_optional(gamma, g.gamma, place.channel, place.live);
  load_optional(start, g.h0, state_at, place.live);
  int t = int(g.t) - 1 - place.warp * S, turn = 0;
  int64_t at = (place.sequence * g.t + t) * g.d + place.channel;
  Stretch<A, V, S, kCut> now, next;
  now.read(g, at, t, place);
  for (int end = int(g.t); end > 0; end -= W * S, turn ^= 1) {
    const uint32_t cuts = now.starts.bits();
    float gate[S][V], entering[V];
    Effect<V> own;
#pragma unroll
    for (int v = 0; v < V; ++v) own.keep[v] = 1, own.end[v] = 0;
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        gate[s][v] = sigmoid<A>(unpack<A>(now.z[s], v));
        const float f = cuts >> s & 1 ? 0 : gamma[v] + (1 - gamma[v]) * gate[s][v];
        own.keep[v] *= f;
        own.end[v] = f * (own.end[v] + unpack<A>(now.dh[s], v));
      }
    next.read(g, at - W * S * g.d, t - W * S, place);
    compose<V, W>(effects[turn], own, state, entering);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      float dz[V], da[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float a = unpack<A>(now.a[s], v), sa = sigmoid<A>(a), sz = gate[s][v];
        const bool cut = cuts >> s & 1;
        const float before = cut ? 0 : s == t ? start[v] : unpack<A>(now.before[s], v);
        const float f = gamma[v] + (1 - gamma[v]) * sz;
        const float grad = entering[v] + unpack<A>(now.dh[s], v);
        const float df = grad * (before - silu(a, sa));
        da[v] = grad * (1 - f) * silu_slope(a, sa);
        dz[v] = df * (1 - gamma[v]) * (sz * (1 - sz));
        sums[v] += s <= t ? df * (1 - sz) : 0;
        entering[v] = cut ? 0 : f * grad;
      }
      if (place.live && s <= t) {
        store_raw<A, V>(g.da, at - s * d, da);
        store_raw<A, V>(g.dz, at - s * d, dz);
      }
    }
    now = next;
    t -= W * S;
    at -= W * S * g.d;
  }
  if (bound_sums) store_sums<V, W>(sums, bound_sums + state_at, place);
}

/// dgamma = beta·dgamma + Σ over sequences, in order.
__global__ void add_bound_sums(const float* sums, float* dgamma, float beta, int64_t b, int64_t d) {
  begin_kernel();
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= d) return;
  float sum = beta == 0 ? 0 : beta * dgamma[k];
#pragma unroll 8
  for (int64_t i = 0; i < b; ++i) sum += sums[i * d + k];
  dgamma[k] = sum;
}

template <int V>
unsigned blocks(int64_t b, int64_t d) {
  return unsigned(b * ceil_div(d, kWarp * V));
}

// The chunk shape follows from the registers. More steps and more warps keep more loads in flight. But a thread holds
// the inputs of all its S steps in registers, and two blocks must fit on a multiprocessor of 65,536 registers. With S =
// 8 and bf16 pairs the forward kernel takes the 80 registers that 12 warps leave, and the backward kernel, which reads
// twice as many arrays and holds two chunks, the 128 that 8 warps leave. 16 steps forward, or 12 backward, spill.
constexpr int kForwardWarps = 12, kForwardSteps = 8, kBackwardWarps = 8, kBackwardSteps = 8;

template <class A, int V, bool kCut>
void forward(const MlgruScanArgs& g) {
  constexpr int W = kForwardWarps, S = kForwardSteps;
  if (g.t <= S)  // short inputs, such as decoding: one warp has all steps
    launch_kernel(scan_forward<A, V, 1, S, kCut>, {blocks<V>(g.b, g.d), kWarp}, g);
  else
    launch_kernel(scan_forward<A, V, W, S, kCut>, {blocks<V>(g.b, g.d), W * kWarp}, g);
  check_launch("mlgru_scan");
}

template <class A, int V, bool kCut>
void backward(const MlgruScanBackwardArgs& g) {
  Tensor sums;
  if (g.dgamma) sums = Tensor({g.b, g.d}, DType::f32, Device::cuda);
  float* bound_sums = g.dgamma ? sums.mut<float>() : nullptr;
  launch_kernel(scan_backward<A, V, kBackwardWarps, kBackwardSteps, kCut>,
                {blocks<V>(g.b, g.d), kBackwardWarps * kWarp}, g, bound_sums);
  check_launch("mlgru_scan_backward");
  if (!g.dgamma) return;
  constexpr int kThreads = 128;
  launch_kernel(add_bound_sums, {unsigned(ceil_div(g.d, kThreads)), kThreads}, bound_sums,
                static_cast<float*>(g.dgamma), float(g.beta_gamma), g.b, g.d);
  check_launch("mlgru_scan_backward");
}

/// Calls body<A, V, kCut>() with V channels of 4 bytes together, so that a warp accesses one line of 128 bytes. If the
/// number of channels is odd, V = 1.
template <class Args, class Body>
void dispatch(const Args& g, const char* op, Body&& body) {
  dispatch_activation(g.dtype, op, [&]<class A>() {
    const auto with_channels = [&]<int V>() {
      g.starts ? body.template operator()<A, V, true>() : body.template operator()<A, V, false>();
    };
    if (g.d % 2)
      with_channels.template operator()<1>();
    else
      with_channels.template operator()<4 / int(sizeof(A))>();
  });
}

}  // namespace

void mlgru_scan(const MlgruScanArgs& g) {
  if (g.b * g.d == 0) return;
  dispatch(g, "mlgru_scan", [&]<class A, int V, bool kCut>() { forward<A, V, kCut>(g); });
}

void mlgru_scan_backward(const MlgruScanBackwardArgs& g) {
  if (g.b * g.d == 0) return;
  dispatch(g, "mlgru_scan_backward", [&]<class A, int V, bool kCut>() { backward<A, V, kCut>(g); });
}

}  // namespace mmfree::cuda
