#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "core/cuda/ternary_mma.h"
#include "tests/bench/int8_backward/blas.cuh"
#include "tests/bench/int8_backward/device.cuh"
#include "tests/bench/int8_backward/inputs.cuh"
#include "tests/bench/int8_backward/product.cuh"
#include "tests/bench/int8_backward/quantisers.cuh"
#include "tests/bench/int8_backward/ways.h"

/// Times of all kernels at the shapes of one projection.
namespace mmfree::int8_backward {

/// What the kernels of a projection read and write: dy [n, o], x [n, k], w [k, o] (wᵀ).
class ProjectionTimer {
 public:
  ProjectionTimer(int64_t n, int64_t o, int64_t k);
  Times operator()() {
    Times t{};
    time_bf16(t);
    time_products(t);
    time_quantisers(t);
    OK(cudaGetLastError());
    return t;
  }

 private:
  struct Set {
    Buffer<Bf16> dy, x, dx;
    Buffer<int8_t> dy_rows, dy_blocks, x_codes, x_blocks;
    Buffer<float> dw;
    Set(int64_t n, int64_t o, int64_t k)
        : dy(n * o),
          x(n * k),
          dx(n * k),
          dy_rows(n * o),
          dy_blocks(n * o),
          x_codes(n * k),
          x_blocks(n * k),
          dw(o * k) {}
  };
  static constexpr int kSets = 2;  // used in turn

  void fill(Set& s, uint32_t seed);
  void time_bf16(Times& t);
  void time_products(Times& t);
  void time_quantisers(Times& t);
  double time(const std::function<void(Set&)>& body) {
    return median_us(25, [&](int i) { body(*sets_[i % kSets]); });
  }
  /// dw with `a` of the set.
  template <bool kTransposed, Scale kScale, bool kTurns = true>
  double time_dw(Buffer<int8_t> Set::*a) {
    return time([&](Set& s) {
      block_mma<kTransposed, kScale, kTurns>((s.*a).data, s.x_blocks.data, scale_.data, parts_.data, s.dw.data, o_, k_,
                                             n_);
    });
  }
  /// Quantises `x` [n, columns], which has its rows and blocks in the set.
  template <Way kWay, class In>
  double time_quantiser(Buffer<In> Set::*x, Buffer<int8_t> Set::*blocks, int64_t columns) {
    return time([&](Set& s) {
      launch_quantise<In, kWay>((s.*x).data, absmax_.data, factor_.data, s.dy_rows.data, (s.*blocks).data, scale_.data,
                                n_, columns);
    });
  }

  int64_t n_, o_, k_;
  Buffer<float> absmax_, factor_, step_, scale_, parts_, one_;
  Buffer<int8_t> w_;
  Buffer<Bf16> w_bf16_;
  std::vector<std::unique_ptr<Set>> sets_;
};

inline ProjectionTimer::ProjectionTimer(int64_t n, int64_t o, int64_t k)
    : n_(n),
      o_(o),
      k_(k),
      absmax_(n),
      factor_(n),
      step_(n),
      scale_(n / 128 * std::max(up(o, 256), up(k, 256))),
      parts_(kMostSplits * o * k),
      one_(1),
      w_(o * k),
      w_bf16_(o * k) {
  fill_weights<<<1024, 256>>>(w_.data, o * k, 3);
  convert<<<1024, 256>>>(w_bf16_.data, w_.data, o * k);
  fill_floats<<<64, 256>>>(factor_.data, n, 4);
  fill_floats<<<64, 256>>>(one_.data, 1, 4);
  for (int i = 0; i < kSets; ++i) {
    sets_.push_back(std::make_unique<Set>(n, o, k));
    fill(*sets_.back(), i);
  }
  OK(cudaDeviceSynchronize());
}

inline void ProjectionTimer::fill(Set& s, uint32_t seed) {
  fill_gradients<<<1024, 256>>>(s.dy.data, n_, o_, 10 + seed);
  find_absmax<<<256, 128>>>(s.dy.data, absmax_.data, n_, o_);
  fill_codes<<<1024, 256>>>(s.x_codes.data, n_ * k_, 20 + seed);
  convert<<<1024, 256>>>(s.x.data, s.x_codes.data, n_ * k_);
  launch_quantise_rows(s.dy.data, s.dy_rows.data, step_.data, n_, o_);
  launch_quantise<Bf16, Way::blocks>(s.dy.data, absmax_.data, factor_.data, s.dy_rows.data, s.dy_blocks.data,
                                     scale_.data, n_, o_);
  launch_quantise<int8_t, Way::blocks>(s.x_codes.data, absmax_.data, factor_.data, nullptr, s.x_blocks.data,
                                       scale_.data, n_, k_);
}

inline void ProjectionTimer::time_bf16(Times& t) {
  {
    BlasProduct dx(k_, n_, o_, false, CUDA_R_16BF);
    t.bf16_dx = dx.tune([&](int i) { dx(w_bf16_.data, sets_[i % kSets]->dy.data, sets_[i % kSets]->dx.data); });
  }
  BlasProduct dw(k_, o_, n_, true, CUDA_R_32F);
  t.bf16_dw = dw.tune([&](int i) {
    Set& s = *sets_[i % kSets];
    dw(s.x.data, s.dy.data, s.dw.data);
  });
}

inline void ProjectionTimer::time_products(Times& t) {
  t.dx = time([&](Set& s) {
    cuda::ternary_mma(s.dy_rows.data, step_.data, w_.data, one_.data, s.dx.data, n_, k_, o_, 0, nullptr);
  });
  t.as_stored = time_dw<false, Scale::rows>(&Set::dy_blocks);
  t.turned_rows = time_dw<true, Scale::rows>(&Set::dy_rows);
  t.turned_columns = time_dw<true, Scale::columns>(&Set::dy_rows);
  t.no_turns = time_dw<true, Scale::columns, false>(&Set::dy_rows);
  t.turned_tile = time_dw<true, Scale::tile>(&Set::dy_rows);
  t.other_side = time([&](Set& s) {
    block_mma<true, Scale::columns>(s.x_codes.data, s.dy_blocks.data, scale_.data, parts_.data, s.dw.data, k_, o_, n_);
  });
}

inline void ProjectionTimer::time_quantisers(Times& t) {
  t.rows = time([&](Set& s) { launch_quantise_rows(s.dy.data, s.dy_rows.data, step_.data, n_, o_); });
  t.both = time_quantiser<Way::both>(&Set::dy, &Set::dy_blocks, o_);
  t.blocks = time_quantiser<Way::blocks>(&Set::dy, &Set::dy_blocks, o_);
  t.tile = time_quantiser<Way::tile>(&Set::dy, &Set::dy_blocks, o_);
  t.again_dy = time_quantiser<Way::blocks>(&Set::dy_rows, &Set::dy_blocks, o_);
  t.again_x = time_quantiser<Way::blocks>(&Set::x_codes, &Set::x_blocks, k_);
  t.copy_x = time_quantiser<Way::copy>(&Set::x_codes, &Set::x_blocks, k_);
}

}  // namespace mmfree::int8_backward
