#include "core/ops/attention.h"

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

}  // namespace

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
  AttentionBackwardArgs args{same, dout.raw(), dq.raw_mut(), dk.raw_mut(), dv.raw_mut()};
  args.o = const_cast<char*>(o.raw());
  args.lse = const_cast<char*>(lse.raw());
  if (args.b == 0 || args.t == 0) return;
  MMFREE_DISPATCH(q.device(), attention_backward, args);
}

}  // namespace mmfree
