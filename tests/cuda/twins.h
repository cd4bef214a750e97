#pragma once
#include "tests/support/gpu.h"
#include "tests/support/tensors.h"

/// Helpers to compare a GPU kernel with the same op of the CPU in f64. Both sides see the same inputs: numbers that the
/// GPU's dtypes hold exactly. The inline namespace keeps them apart from those of transfer.h: a program has one
/// function of a name, signature and namespace, whichever header a file includes.
namespace mmfree {
inline namespace twins {

/// Random numbers that `dtype` holds, in f64.
inline Tensor random_of(Shape shape, DType dtype, uint32_t seed, double scale = 1, double mean = 0) {
  return as_f64(as_type(random_tensor(shape, DType::f64, seed, scale, mean), dtype));
}

/// On the GPU as `dtype`; an undefined tensor stays undefined.
inline Tensor to_gpu(const Tensor& t, DType dtype) { return t.defined() ? as_type(t, dtype).to(Device::cuda) : t; }

/// From the GPU, in f64.
inline Tensor from_gpu(const Tensor& t) { return as_f64(t.to(Device::cpu)); }

inline Tensor gpu_tensor(Shape shape, DType dtype) { return Tensor(shape, dtype, Device::cuda); }

/// Error allowed relative to the largest expected value. f32: sums of up to 7,000 terms in trees and a few roundings of
/// 2^-24 each, which a difference of nearly equal numbers may magnify ten times. bf16: an output is rounded to 8 bits,
/// by half of 2^-8; the rest is margin for values that lie at the edge of two roundings.
inline double gpu_bound(DType dtype) { return dtype == DType::bf16 ? 0x1p-8 : 2e-5; }

/// Expects two calls of `outputs` (returning a list of GPU tensors) to give the same bits.
template <class Outputs>
void expect_repeatable(Outputs&& outputs) {
  const std::vector<Tensor> first = outputs(), second = outputs();
  for (size_t i = 0; i < first.size(); ++i)
    EXPECT_TRUE(same_bits(first[i].to(Device::cpu), second[i].to(Device::cpu))) << "output " << i;
}

}  // namespace twins
}  // namespace mmfree
