#include "core/ops/elementwise.h"

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
  switch (g.to) {
    case DType::f64:
      return convert<From, double>(g);
    case DType::f32:
      return convert<From, float>(g);
    case DType::bf16:
      return convert<From, bf16>(g);
    default:
      throw DTypeError(concat("cast: cannot convert to ", name_of(g.to)));
  }
}

}  // namespace

void add(const ElementwiseArgs& g) {
  dispatch_float(g.dtype, "add", [&]<class T>() {
    const T *a = static_cast<const T*>(g.a), *b = static_cast<const T*>(g.b);
    T* y = static_cast<T*>(g.y);
    parallel_for(g.n, kGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
    });
  });
}

void cast(const ElementwiseArgs& g) {
  switch (g.dtype) {
    case DType::f64:
      return convert_from<double>(g);
    case DType::f32:
      return convert_from<float>(g);
    case DType::bf16:
      return convert_from<bf16>(g);
    default:
      throw DTypeError(concat("cast: cannot convert from ", name_of(g.dtype)));
  }
}

double sum_of_squares(const ElementwiseArgs& g) {
  double total = 0;
  dispatch_float(g.dtype, "sum_of_squares", [&]<class T>() {
    const T* x = static_cast<const T*>(g.a);
    total = ordered_sum(g.n, 4096, [x](int64_t begin, int64_t end) {
      return double(lane_sum<T>(end - begin, [=](int64_t i) { return x[begin + i] * x[begin + i]; }));
    });
  });
  return total;
}

}  // namespace mmfree::cpu
