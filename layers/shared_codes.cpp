#include "layers/shared_codes.h"

#include <algorithm>

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
    scale_pieces_.emplace_back();
    for (const Range& range : part) {
      const Range in_it = matrices_in(matrices, range);
      scale_pieces_.back().push_back(in_it);
      for (int64_t i = in_it.begin; i < in_it.end; ++i) {
        begins[size_t(i)] = bytes;
        bytes += (matrices[size_t(i)].out.codes.bytes() + kAlign - 1) / kAlign * kAlign;
      }
      code_bounds_.back().push_back(bytes);
    }
  }
  codes_ = Tensor::zeros({bytes}, any.codes.dtype(), device);
  if (device == Device::cuda) lay_out_packed();
  scales_ = share.zeros({int64_t(matrices.size())}, any.scale.dtype(), device);
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

void SharedCodes::lay_out_packed() {
  int64_t end = 0;
  for (const Bounds& bounds : code_bounds_) {
    int64_t longest = 0;
    for (const Range& piece : ranges_of(bounds)) longest = std::max(longest, piece.size() / 4);
    packed_pieces_.emplace_back();
    for (int r = 0; r < share_.group->size(); ++r, end += longest)
      packed_pieces_.back().push_back({end, end + longest});
  }
  packed_ = share_.zeros({end}, DType::u8, Device::cuda);
}

/// The codes of rank r in a part, packed.
Tensor SharedCodes::packed_of(size_t part, size_t r) const {
  const int64_t begin = packed_pieces_[part][r].begin;
  return packed_.slice(begin, begin + (code_bounds_[part][r + 1] - code_bounds_[part][r]) / 4);
}

std::vector<Group::Gather> SharedCodes::offer(size_t part, const Tensor& values, const Tensor& abs_sums) {
  if (!mine_[part].empty()) ternary_quantise_flat(values, abs_sums, mine_[part]);
  const Group::Gather scales{scales_, scale_pieces_[part]};
  const Bounds& bounds = code_bounds_[part];
  if (!packed_.defined()) return {{codes_, ranges_of(bounds)}, scales};
  const auto rank = size_t(share_.group->rank());
  Tensor mine = packed_of(part, rank);
  pack_codes(codes_.slice(bounds[rank], bounds[rank + 1]), mine);
  return {{packed_, packed_pieces_[part]}, scales};
}

void SharedCodes::take(size_t part) {
  if (!packed_.defined()) return;
  const Bounds& bounds = code_bounds_[part];
  for (size_t r = 0; r + 1 < bounds.size(); ++r) {
    if (int(r) == share_.group->rank()) continue;
    Tensor codes = codes_.slice(bounds[r], bounds[r + 1]);
    unpack_codes(packed_of(part, r), codes);
  }
}

}  // namespace mmfree
