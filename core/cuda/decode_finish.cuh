#pragma once
#include "core/cuda/decode_norm.cuh"

/// What products of many rows make of their sums.
namespace mmfree::cuda::decode {

__host__ __device__ constexpr int parts_of(Finish finish) {
  return finish == Finish::store ? 1 : finish == Finish::glu ? 2 : 3;
}

/// Columns of blocks that the products take with `outputs` outputs in each. `first`: where each matrix begins among
/// them; the matrices of a gate or a scan share them.
template <Finish kFinish>
int64_t block_columns_of(const Group& group, int outputs, int (&first)[kMostMatrices]) {
  int64_t sum = 0;
  for (int i = 0; i < (kFinish == Finish::store ? group.count : 1); ++i) {
    first[i] = int(sum);
    sum += ceil_div(group.matrices[i].rows, outputs);
  }
  return sum;
}

/// Calls body(gate), where gate(a, b) is f(a) ⊙ b with glu. The activation is chosen out here: code for all of them in
/// every place that needs one is more than the instruction caches hold.
template <Finish kFinish, class Body>
__device__ void with_gate(Activation f, Body&& body) {
  if constexpr (kFinish == Finish::glu)
    with_activation(f, [&]<Activation kF>() { body([](float a, float b) { return gated<kF>(a, b); }); });
  else
    body([](float, float) { return 0.0f; });
}

/// Stores what two neighbouring outputs of one row give; the second may be past the end. `gate` as with_gate says.
template <Finish kFinish, int kParts, class Gate>
__device__ void finish_pair(const Gate& gate, const Group& p, const Matrix& first, int row, int output,
                            const float (&y)[2][kParts]) {
  const bool both = output + 1 < first.rows;
  const auto place = [&](const Matrix& m) { return m.y + (p.first_row + row) * m.stride + output; };
  const auto put = [&](float* to, float left, float right) {
    if (both && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
      *reinterpret_cast<float2*>(to) = {left, right};
    } else {
      to[0] = left;
      if (both) to[1] = right;
    }
  };
  if constexpr (kFinish == Finish::store) {
    put(place(first), y[0][0], y[1][0]);
  } else if constexpr (kFinish == Finish::glu) {
    put(place(first), gate(y[0][0], y[0][1]), gate(y[1][0], y[1][1]));
  } else {
    const int64_t d = first.rows;
    float *state = p.state + p.slots[row] * d + output, h[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = i == 0 || both;
      h[i] = Gates(y[i][0], y[i][1], p.gamma && inside ? p.gamma[output + i] : 0.0f).next(inside ? state[i] : 0.0f);
    }
    put(state, h[0], h[1]);
    put(p.h + row * d + output, h[0], h[1]);
    put(place(p.matrices[2]), y[0][2], y[1][2]);
  }
}

}  // namespace mmfree::cuda::decode
