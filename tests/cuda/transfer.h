#pragma once
#include "tests/support/gpu.h"
#include "tests/support/tensors.h"

/// Moving numbers between the sides that a test compares.
namespace mmfree {

/// Half the distance of neighbouring bf16 numbers, relative to them: the error of one rounding.
inline constexpr double kBf16Rounding = 1.0 / 256;

/// The dtypes of activations on a GPU.
inline constexpr DType kActivations[] = {DType::f32, DType::bf16};

/// f32 numbers that `dtype` holds exactly, so that both sides see the same.
inline Tensor rounded_tensor(Shape shape, DType dtype, uint32_t seed, double scale = 1, double mean = 0) {
  return as_type(random_tensor(shape, dtype, seed, scale, mean), DType::f32);
}

inline Tensor to_gpu(const Tensor& t, DType dtype) { return as_type(t, dtype).to(Device::cuda); }
inline Tensor to_gpu(const Tensor& t) { return t.to(Device::cuda); }

inline Tensor empty_on_gpu(Shape shape, DType dtype) { return Tensor(shape, dtype, Device::cuda); }

/// On the CPU, bf16 widened to f32.
inline Tensor from_gpu(const Tensor& t) {
  const Tensor here = t.to(Device::cpu);
  return here.dtype() == DType::bf16 ? as_type(here, DType::f32) : here;
}

}  // namespace mmfree
