#include "core/ops/elementwise.h"

#include <algorithm>

#include "core/cpu/vec.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;

template <class From, class To>
void convert(const ElementwiseArgs& g) {
  const From* from = static_cast<const From*>(g.a);
  To* to = static_cast<To*>(g.y);
  parallel_for(g.n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if constexpr (std::is_same_v<To, bf16>)
        to[i] = bf16(float(from[i]));
      else
        to[i] = To(from[i]);
    }
  });
}

template <class From>
void convert_from(const ElementwiseArgs& g) {
  switch (g.type_y) {
    case DType::f64:
      return convert<From, double>(g);
    case DType::f32:
      return convert<From, float>(g);
    case DType::bf16:
      return convert<From, bf16>(g);
    default:
      throw DTypeError(concat("cast: cannot convert to ", name_of(g.type_y)));
  }
}

}  // namespace

void add(const ElementwiseArgs& g) {
  dispatch_float(g.type_a, "add", [&]<class T>() {
    const T *a = static_cast<const T*>(g.a), *b = static_cast<const T*>(g.b);
    T* y = static_cast<T*>(g.y);
    parallel_for(g.n, kGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
    });
  });
}

void cast(const ElementwiseArgs& g) {
  switch (g.type_a) {
    case DType::f64:
      return convert_from<double>(g);
    case DType::f32:
      return convert_from<float>(g);
    case DType::bf16:
      return convert_from<bf16>(g);
    default:
      throw DTypeError(concat("cast: cannot convert from ", name_of(g.type_a)));
  }
}

void fill(const FillArgs& g) {
  dispatch_float(g.dtype, "fill", [&]<class T>() { std::fill_n(static_cast<T*>(g.y), g.n, T(g.value)); });
}

void sum(const SumArgs& g) {
  dispatch_float(g.dtype, "sum", [&]<class T>() {
    const T* x = static_cast<const T*>(g.x);
    const double total = ordered_sum(g.n, 4096, [x](int64_t begin, int64_t end) {
      double part = 0;
      for (int64_t i = begin; i < end; ++i) part += double(x[i]);
      return part;
    });
    *g.out = (g.beta == 0 ? 0 : g.beta * *g.out) + g.scale * (g.factor ? *g.factor : 1) * total;
  });
}

void sum_of_squares(const SumArgs& g) {
  dispatch_float(g.dtype, "sum_of_squares", [&]<class T>() {
    const T* x = static_cast<const T*>(g.x);
    *g.out = ordered_sum(g.n, 4096, [x](int64_t begin, int64_t end) {
      return double(lane_sum<T>(end - begin, [=](int64_t i) { return x[begin + i] * x[begin + i]; }));
    });
  });
}

}  // namespace mmfree::cpu
