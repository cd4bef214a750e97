#include "core/ops/mlgru_scan.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

const uint8_t* starts_of(const Tensor& starts) { return starts.defined() ? starts.data<uint8_t>() : nullptr; }

}  // namespace

void mlgru_scan(const Tensor& z, const Tensor& a, const Tensor& gamma, const Tensor& h0, const Tensor& starts,
                Tensor& h, Tensor& last) {
  constexpr const char* op = "mlgru_scan";
  check_float("mlgru_scan", "z", z, 3);
  const int64_t b = z.dim(0), t = z.dim(1), d = z.dim(2);
  check_tensor("mlgru_scan", "a", a, {b, t, d}, z.dtype());
  const DType p = param_dtype(z.dtype());
  check_optional(op, "gamma", gamma, {d}, p);
  check_optional(op, "h0", h0, {b, d}, p);
  check_optional(op, "starts", starts, {b, t}, DType::u8);
  check_optional(op, "last", last, {b, d}, p);
  check_device(op, z.device(), {&a, &gamma, &h0, &starts, &h, &last});
  check_tensor("mlgru_scan", "h", h, {b, t, d}, z.dtype());
  const MlgruScanArgs args{z.raw(),        a.raw(), gamma.raw(), h0.raw(), starts_of(starts), h.raw_mut(),
                           last.raw_mut(), b,       t,           d,        z.dtype()};
  MMFREE_DISPATCH(z.device(), mlgru_scan, args);
}

void mlgru_scan_backward(const Tensor& z, const Tensor& a, const Tensor& gamma, const Tensor& h0, const Tensor& starts,
                         const Tensor& h, const Tensor& dh, Tensor& dz, Tensor& da, Tensor& dgamma, double beta_gamma) {
  check_float("mlgru_scan_backward", "z", z, 3);
  const int64_t b = z.dim(0), t = z.dim(1), d = z.dim(2);
  const Shape full{b, t, d};
  for (auto [name, tensor] :
       {std::pair<const char*, const Tensor*>{"a", &a}, {"h", &h}, {"dh", &dh}, {"dz", &dz}, {"da", &da}})
    check_tensor("mlgru_scan_backward", name, *tensor, full, z.dtype());
  const DType p = param_dtype(z.dtype());
  check_optional("mlgru_scan_backward", "gamma", gamma, {d}, p);
  check_optional("mlgru_scan_backward", "h0", h0, {b, d}, p);
  check_optional("mlgru_scan_backward", "starts", starts, {b, t}, DType::u8);
  check_optional("mlgru_scan_backward", "dgamma", dgamma, {d}, p);
  check_device("mlgru_scan_backward", z.device(), {&a, &gamma, &h0, &starts, &h, &dh, &dz, &da, &dgamma});
  const MlgruScanBackwardArgs args{
      z.raw(),      a.raw(),          gamma.raw(), h0.raw(), h.raw(), dh.raw(), starts_of(starts), dz.raw_mut(),
      da.raw_mut(), dgamma.raw_mut(), beta_gamma,  b,        t,       d,        z.dtype()};
  MMFREE_DISPATCH(z.device(), mlgru_scan_backward, args);
}

}  // namespace mmfree
