#include "core/cuda/decode.h"

#include <algorithm>
#include <optional>

#include "core/cuda/context.h"
#include "core/device.h"
#include "core/ops/ternary.h"

namespace mmfree::cuda {
namespace {

using decode::Finish;
using decode::Group;
using decode::Norm;
using decode::Rows;

/// A norm, if there is one, and the products that follow it.
struct Linear {
  std::optional<Norm> norm;
  Group group{};  ///< the ternary products
  std::vector<DecodeMatrix> plain;
  bool at_wanted = false;
  /// The recurrence behind it, which a step of one token per sequence computes with the products.
  std::optional<DecodeScan> scan;
};

struct Attend {
  DecodeAttend step;
  Tensor turns;
};

using Op = std::variant<DecodeEmbed, Linear, DecodeScan, Attend>;

/// Turns the steps of a program into ops: norms with their products, products with what is computed from their outputs.
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
      MMFREE_CHECK(
          Error,
          g.count < decode::kMostMatrices && (g.count == 0 || g.k == m.k) && m.q_stride == decode::block_columns(m.k),
          "decode: products that do not belong together");
      g.matrices[g.count++] = {reinterpret_cast<const uint32_t*>(m.codes),
                               m.scale,
                               m.q,
                               m.step,
                               m.y,
                               m.o,
                               branch_of(op.norm, m.q),
                               int(m.o)};
      g.k = int(m.k), g.words = int(decode::row_words(m.k));
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
    p.d = int(a.d), p.count = a.count, p.code_stride = decode::block_columns(a.d);
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
      return std::find_if(g.matrices, g.matrices + 3, [y](const decode::Matrix& m) { return m.y == y; });
    };
    decode::Matrix* const end = g.matrices + 3;
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

/// A program on a GPU: its ops, and the memory that tells kernels which rows a call has.
class Runner {
 public:
  Runner(const DecodeProgram& program, int64_t most_rows, int64_t most_spans)
      : ops_(Planner(program.steps).ops()),
        most_rows_(most_rows),
        most_spans_(most_spans),
        host_(size_t(3 * most_rows + 3 * most_spans)),
        device_({int64_t(host_.size())}, DType::i32, Device::cuda) {}

  void run(const DecodeCall& call) {
    int32_t *ids = host_.data(), *slots = ids + most_rows_, *positions = slots + most_rows_,
            *wanted = positions + most_rows_, *spans = wanted + most_spans_;
    MMFREE_CHECK(Error, call.rows <= most_rows_ && call.span_count <= most_spans_ && call.wanted_count <= most_spans_,
                 "decode: a call of ", call.rows, " rows in ", call.span_count, " spans, prepared for ", most_rows_,
                 " and ", most_spans_);
    std::copy_n(call.ids, call.rows, ids);
    bool single = true;
    for (int64_t s = 0; s < call.span_count; ++s) {
      const DecodeSpan& span = call.spans[s];
      spans[2 * s] = int32_t(span.row), spans[2 * s + 1] = int32_t(span.count);
      single &= span.count == 1;
      for (int64_t i = 0; i < span.count; ++i) {
        slots[span.row + i] = int32_t(span.slot);
        positions[span.row + i] = int32_t(span.position + i);
      }
    }
    for (int64_t i = 0; i < call.wanted_count; ++i) wanted[i] = int32_t(call.wanted[i]);
    check(cudaMemcpyAsync(device_.raw_mut(), host_.data(), host_.size() * sizeof(int32_t), cudaMemcpyHostToDevice,
                          stream()),
          "decode: a copy");
    Rows rows = this->rows();
    rows.rows = int(call.rows), rows.span_count = int(call.span_count), rows.wanted_count = int(call.wanted_count);
    launch(rows, single, call.wanted_first);
  }

  void launch(const Rows& rows, bool single, int64_t wanted_first) {
    for (const Op& op : ops_)
      std::visit(
          [&](const auto& o) {
            using Kind = std::decay_t<decltype(o)>;
            if constexpr (std::is_same_v<Kind, DecodeEmbed>)
              decode::embed(o, rows.ids, rows.rows);
            else if constexpr (std::is_same_v<Kind, DecodeScan>)
              decode::scan(o, rows);
            else if constexpr (std::is_same_v<Kind, Attend>)
              decode::attend(o.step, o.turns.template data<double>(), rows);
            else
              linear(o, rows, single, wanted_first);
          },
          op);
  }

  Rows rows() const {
    const int32_t* ids = device_.data<int32_t>();
    return {ids, ids + most_rows_, ids + 2 * most_rows_, ids + 3 * most_rows_, ids + 3 * most_rows_ + most_spans_, 0, 0,
            0};
  }

 private:
  void linear(const Linear& op, const Rows& rows, bool single, int64_t wanted_first) {
    const int count = op.at_wanted ? rows.wanted_count : rows.rows;
    const int64_t first = op.at_wanted ? wanted_first : 0;
    if (count == 0) return;
    Norm norm = op.norm.value_or(Norm{});
    norm.wanted = op.at_wanted ? rows.wanted : nullptr;
    Group group = op.group;
    group.slots = rows.slots, group.first_row = first;
    if (op.scan && single) group.finish = Finish::scan;
    if (count <= decode::kFewRows && op.plain.empty() && decode::fits_few(norm, group)) {
      decode::few(norm, group, count);
    } else {
      if (op.norm) decode::norm(norm, count);
      if (group.count) decode::tiles(group, count);
      for (const DecodeMatrix& m : op.plain) decode::plain(m, count, first);
    }
    if (op.scan && !single) decode::scan(*op.scan, rows);
  }

  std::vector<Op> ops_;
  int64_t most_rows_, most_spans_;
  std::vector<int32_t> host_;  ///< ids, slots, positions, wanted rows, spans
  Tensor device_;
};

}  // namespace

void prepare_decode(DecodeProgram& program, int64_t most_rows, int64_t most_spans) {
  program.runner = std::make_shared<Runner>(program, most_rows, most_spans);
  check(cudaStreamSynchronize(stream()), "decode");  // products read packed weights before they wait for a kernel
}

void pack_decode(const int8_t* codes, int64_t rows, int64_t cols, uint8_t* packed) {
  decode::pack(codes, rows, cols, reinterpret_cast<uint32_t*>(packed));
}

void run_decode(const DecodeProgram& program, const DecodeCall& call) {
  static_cast<Runner*>(program.runner.get())->run(call);
}

}  // namespace mmfree::cuda
