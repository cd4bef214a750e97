#include "core/ops/attention.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

AttentionArgs checked(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int64_t keys,
                      const Positions& positions, int64_t window, const Tensor& o, const Tensor& lse) {
  check_float(op, "q", q, 4);
  check_float(op, "k", k, 4);
  const int64_t b = q.dim(0), t = q.dim(1), heads = q.dim(2), width = q.dim(3);
  const int64_t capacity = k.dim(1), kv_heads = k.dim(2);
  MMFREE_CHECK(ShapeError, width % 8 == 0, op, ": the width of a head must be a multiple of 8, got ", q.describe());
  MMFREE_CHECK(ShapeError, kv_heads > 0 && heads % kv_heads == 0, op, ": ", kv_heads, " heads of keys do not divide ",
               heads, " heads");
  MMFREE_CHECK(ShapeError, t <= keys && keys <= capacity, op, ": ", keys, " keys for ", t, " queries in ",
               k.describe());
  MMFREE_CHECK(ShapeError, positions.first >= keys - t && window >= 0, op, ": ", keys - t,
               " keys of earlier tokens, but only ", positions.first, " came before");
  check_tensor(op, "k", k, {b, capacity, kv_heads, width}, q.dtype());
  check_tensor(op, "v", v, k.shape(), q.dtype());
  check_optional(op, "begins", positions.begins, {b, t}, DType::i32);
  check_tensor(op, "o", o, q.shape(), q.dtype());
  check_optional(op, "lse", lse, {b, heads, t}, param_dtype(q.dtype()));
  check_device(op, q.device(), {&k, &v, &positions.begins, &o, &lse});
  return {q.raw(),  k.raw(),         v.raw(), positions.begins.defined() ? positions.begins.data<int32_t>() : nullptr,
          nullptr,  nullptr,         b,       t,
          heads,    kv_heads,        width,   keys,
          capacity, positions.first, window,  q.dtype()};
}

/// What cuDNN may take for the sequences that it does at once, if they are more than one.
constexpr int64_t kFusedBytes = int64_t(512) << 20;
/// Beyond this, one sequence is too much for cuDNN.
constexpr int64_t kMostFusedBytes = int64_t(4) << 30;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

AttentionScratch attention_scratch(const AttentionArgs& p) {
  AttentionScratch s{round_up(p.b * p.heads * p.t * 4, 256), 0, 0};
  const bool whole = !p.begins && p.t > 1 && p.t == p.keys && p.t == p.capacity;
  if (p.dtype != DType::bf16 || !whole || p.width > 256) return s;
  const int64_t rows = round_up(p.t, 128);
  int64_t bytes = p.heads * rows * rows * 2;                            // ds
  if (p.kv_heads < p.heads) bytes += 2 * p.heads * rows * p.width * 2;  // dk and dv of each head
  if (bytes > kMostFusedBytes) return s;
  s.per_sequence = round_up(bytes, 256);
  const int64_t most = std::clamp<int64_t>(kFusedBytes / s.per_sequence, 1, p.b);
  const int64_t calls = (p.b + most - 1) / most;
  s.at_once = (p.b + calls - 1) / calls;
  return s;
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t keys, const Positions& positions,
               int64_t window, Tensor& o, Tensor& lse) {
  AttentionArgs args = checked("attention", q, k, v, keys, positions, window, o, lse);
  args.o = o.raw_mut();
  args.lse = lse.raw_mut();
  if (args.b == 0 || args.t == 0) return;
  MMFREE_DISPATCH(q.device(), attention, args);
}

void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t keys, const Positions& positions,
                        int64_t window, const Tensor& o, const Tensor& lse, const Tensor& dout, Tensor& dq, Tensor& dk,
                        Tensor& dv) {
  constexpr const char* op = "attention_backward";
  const AttentionArgs same = checked(op, q, k, v, keys, positions, window, o, lse);
  MMFREE_CHECK(ShapeError, lse.defined(), op, ": lse is undefined");
  const Shape own{q.dim(0), q.dim(1), k.dim(2), q.dim(3)};
  check_tensor(op, "dout", dout, q.shape(), q.dtype());
  check_tensor(op, "dq", dq, q.shape(), q.dtype());
  check_tensor(op, "dk", dk, own, q.dtype());
  check_tensor(op, "dv", dv, own, q.dtype());
  check_device(op, q.device(), {&dout, &dq, &dk, &dv});
  AttentionBackwardArgs args{same, dout.raw(), dq.raw_mut(), dk.raw_mut(), dv.raw_mut(), nullptr};
  args.o = const_cast<char*>(o.raw());
  args.lse = const_cast<char*>(lse.raw());
  if (args.b == 0 || args.t == 0) return;
  Tensor scratch;  // made here and not by the backend, so that a dry run counts it
  if (q.device() == Device::cuda) scratch = Tensor({attention_scratch(args).bytes()}, DType::u8, Device::cuda);
  args.scratch = scratch.raw_mut();
  MMFREE_DISPATCH(q.device(), attention_backward, args);
}

}  // namespace mmfree
