#include "core/cuda/decode_plan.h"

#include <algorithm>

namespace mmfree::cuda::decode {
namespace {

class Planner {
 public:
  explicit Planner(std::vector<DecodeStep> steps) : steps_(std::move(steps)) {}

  std::vector<Op> ops() {
    while (at_ < steps_.size()) {
      const DecodeStep step = steps_[at_++];
      std::visit([&](const auto& s) { add(s); }, step);
    }
    return std::move(ops_);
  }

 private:
  void add(const DecodeEmbed& s) { ops_.emplace_back(s); }
  void add(const DecodeScan& s) {
    Linear* before = ops_.empty() ? nullptr : std::get_if<Linear>(&ops_.back());
    if (before && takes_scan(*before, s))
      before->scan = s;
    else
      ops_.emplace_back(s);
  }
  void add(const DecodeAttend& s) {
    Tensor turns({int64_t(s.turns.size())}, DType::f64, Device::cuda);
    turns.copy_from(Tensor::from(turns.shape(), s.turns.data()));
    ops_.emplace_back(Attend{s, turns});
  }
  void add(const DecodeNorm& s) {
    Linear op;
    op.norm = norm_of(s);
    const DecodeProducts* products = at_ < steps_.size() ? std::get_if<DecodeProducts>(&steps_[at_]) : nullptr;
    MMFREE_CHECK(Error, products && products->at_wanted == s.at_wanted, "decode: a norm without products");
    ++at_;
    add_products(*products, std::move(op));
  }
  void add(const DecodeProducts& s) { add_products(s, {}); }

  void add_products(const DecodeProducts& s, Linear op) {
    op.at_wanted = s.at_wanted;
    for (const DecodeMatrix& m : s.matrices) {
      if (!m.q) {
        op.plain.push_back(m);
        continue;
      }
      Group& g = op.group;
      MMFREE_CHECK(Error, g.count < kMostMatrices && (g.count == 0 || g.k == m.k) && m.q_stride == block_columns(m.k),
                   "decode: products that do not belong together");
      g.matrices[g.count++] = {reinterpret_cast<const uint32_t*>(m.codes),
                               m.bytes,
                               m.scale,
                               m.q,
                               m.step,
                               m.y,
                               m.o,
                               branch_of(op.norm, m.q),
                               int(m.o)};
      g.k = int(m.k), g.words = int(row_words(m.k));
    }
    take_glu(op);
    ops_.emplace_back(std::move(op));
  }

  static int branch_of(const std::optional<Norm>& norm, const int8_t* q) {
    for (int b = 0; norm && b < norm->count; ++b)
      if (norm->branches[b].out == q) return b;
    throw Error("decode: products of codes that the norm before them does not make");
  }

  static Norm norm_of(const DecodeNorm& s) {
    const NormQuantArgs& a = s.args;
    const auto floats = [](const void* p) { return static_cast<const float*>(p); };
    Norm p{};
    p.kind = a.source.kind, p.f = a.source.f;
    p.a = floats(a.source.a), p.b = floats(a.source.b), p.weight = floats(a.source.weight);
    p.stride = a.source.stride;
    p.eps_gate = float(a.source.eps), p.eps_outer = float(a.eps_outer), p.eps_inner = float(a.eps_inner);
    p.outer = floats(a.outer), p.x = static_cast<float*>(a.x);
    p.d = int(a.d), p.count = a.count, p.inverse_d = 1.0f / float(a.d), p.code_stride = block_columns(a.d);
    for (int b = 0; b < a.count; ++b) {
      const NormBranchArgs& from = a.branches[b];
      p.branches[b] = {floats(from.weight), from.rounding, from.step != nullptr, from.out,
                       static_cast<float*>(from.step)};
    }
    return p;
  }

  /// Whether a scan reads the first two of three outputs of one shape, in any order. Puts z and a first.
  static bool takes_scan(Linear& op, const DecodeScan& s) {
    Group& g = op.group;
    if (!op.plain.empty() || op.at_wanted || g.finish != Finish::store || g.count != 3) return false;
    for (int i = 0; i < 3; ++i)
      if (g.matrices[i].rows != s.d) return false;
    const auto find = [&](const float* y) {
      return std::find_if(g.matrices, g.matrices + 3, [y](const Matrix& m) { return m.y == y; });
    };
    Matrix* const end = g.matrices + 3;
    if (find(s.z) == end || find(s.a) == end || s.z == s.a) return false;
    std::swap(*find(s.z), g.matrices[0]);
    std::swap(*find(s.a), g.matrices[1]);
    g.gamma = s.gamma, g.h = s.h, g.state = s.state;
    return true;
  }

  /// If the step behind is a norm whose source is a gated product of all outputs, the products compute that source.
  void take_glu(Linear& op) {
    auto* next = at_ < steps_.size() ? std::get_if<DecodeNorm>(&steps_[at_]) : nullptr;
    Group& g = op.group;
    if (!next || next->args.source.kind != RowSource::glu || !op.plain.empty() || op.at_wanted || next->at_wanted)
      return;
    RowSourceArgs& source = next->args.source;
    const auto* a = static_cast<const float*>(source.a);
    const auto* b = static_cast<const float*>(source.b);
    const int64_t d = next->args.d;
    if (g.count == 1 && g.matrices[0].y == a && b == a + d && g.matrices[0].rows == 2 * d) {
      g.matrices[1] = g.matrices[0];
      g.matrices[1].codes += d * g.words;
      if (g.matrices[1].bytes) g.matrices[1].bytes += d * g.k;
      g.matrices[0].rows = g.matrices[1].rows = int(d);
      g.count = 2;
    } else if (g.count == 2 && g.matrices[1].y == a && g.matrices[0].y == b) {
      std::swap(g.matrices[0], g.matrices[1]);
    }
    if (g.count != 2 || g.matrices[0].y != a || g.matrices[0].rows != d || g.matrices[1].rows != d) return;
    g.finish = Finish::glu, g.f = source.f;
    source.kind = RowSource::rows, source.b = nullptr;
  }

  std::vector<DecodeStep> steps_;
  std::vector<Op> ops_;
  size_t at_ = 0;
};

}  // namespace

std::vector<Op> plan(std::vector<DecodeStep> steps) { return Planner(std::move(steps)).ops(); }

}  // namespace mmfree::cuda::decode
