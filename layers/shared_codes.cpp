#include "layers/shared_codes.h"

#include <algorithm>

#include "core/op_watch.h"
#include "core/ops/code_bits.h"

namespace mmfree {
namespace {

constexpr int64_t kAlign = 256;

/// The matrices that begin in elements [begin, end) of the flat buffer: first and last + 1.
Range matrices_in(const std::vector<TernaryJob>& matrices, const Range& elements) {
  const auto first_at = [&](int64_t offset) {
    const auto is_before = [](const TernaryJob& job, int64_t at) { return job.offset < at; };
    return std::lower_bound(matrices.begin(), matrices.end(), offset, is_before) - matrices.begin();
  };
  return {first_at(elements.begin), first_at(elements.end)};
}

}  // namespace

SharedCodes::SharedCodes(const Share& share, const std::vector<TernaryJob>& matrices)
    : share_(share), matrices_(matrices.size()) {
  const TernaryTensor& any = matrices.at(0).out;
  const Device device = any.codes.device();
  std::vector<int64_t> begins(matrices.size());
  int64_t bytes = 0;
  for (const Ranges& part : share.parts) {
    code_bounds_.push_back({bytes});
    for (const Range& range : part) {
      const Range in_it = matrices_in(matrices, range);
      for (int64_t i = in_it.begin; i < in_it.end; ++i) {
        begins[size_t(i)] = bytes;
        bytes += (matrices[size_t(i)].out.codes.bytes() + kAlign - 1) / kAlign * kAlign;
      }
      code_bounds_.back().push_back(bytes);
    }
  }
  for (const Range& piece : ranges_of(share.bounds)) scale_pieces_.push_back(matrices_in(matrices, piece));
  codes_ = Tensor::zeros({bytes}, any.codes.dtype(), device);
  if (device == Device::cuda) packed_ = Tensor({bytes / 4}, DType::u8, device);
  scales_ = Tensor({int64_t(matrices.size())}, any.scale.dtype(), device);
  for (size_t i = 0; i < matrices.size(); ++i) {
    matrices_[i] = matrices[i].out;
    Tensor& codes = matrices_[i].codes;
    codes = codes_.slice(begins[i], begins[i] + codes.bytes()).reshape(codes.shape());
    matrices_[i].scale = scales_.slice(int64_t(i), int64_t(i) + 1);
  }
  for (const Ranges& part : share.parts) {
    const Range in_it = matrices_in(matrices, part[size_t(share.group->rank())]);
    mine_.emplace_back();
    for (int64_t i = in_it.begin; i < in_it.end; ++i)
      mine_.back().push_back({matrices[size_t(i)].offset - share.begin(), matrices_[size_t(i)]});
  }
}

void SharedCodes::make(size_t part, const Tensor& values, const Tensor& abs_sums) {
  if (!mine_[part].empty()) ternary_quantise_flat(values, abs_sums, mine_[part]);
  gather(part);
}

void SharedCodes::gather(size_t part) {
  const Bounds& bounds = code_bounds_[part];
  const int64_t begin = bounds.front(), end = bounds.back();
  if (begin == end) return;
  const auto quarter = [](int64_t at) { return at / 4; };
  Bounds sent;
  for (const int64_t at : bounds) sent.push_back(at - begin);
  if (!packed_.defined()) {
    Tensor codes = codes_.slice(begin, end);
    const WatchedRange watched("gather codes");
    return share_.group->all_gather(codes, sent);
  }
  const auto rank = size_t(share_.group->rank());
  const int64_t first = bounds[rank], last = bounds[rank + 1];
  Tensor mine = packed_.slice(quarter(first), quarter(last)), all = packed_.slice(quarter(begin), quarter(end));
  pack_codes(codes_.slice(first, last), mine);
  std::transform(sent.begin(), sent.end(), sent.begin(), quarter);
  {
    const WatchedRange watched("gather codes");
    share_.group->all_gather(all, sent);
  }
  for (const Range& others : {Range{begin, first}, Range{last, end}}) {
    Tensor codes = codes_.slice(others.begin, others.end);
    unpack_codes(packed_.slice(quarter(others.begin), quarter(others.end)), codes);
  }
}

void SharedCodes::share_scales() { share_.group->all_gather(scales_, scale_pieces_); }

}  // namespace mmfree
