#include "layers/decode/compiler.h"

#include <map>

#include "autograd/plan.h"
#include "core/ops/check.h"
#include "core/ops/ternary.h"

namespace mmfree {
namespace {

/// Calls read(Var) for what a step reads and write(Var) for what it writes.
template <class Read, class Write>
void for_values(const Plan::Step& step, Read&& read, Write&& write) {
  const auto source = [&](const Source& s) { read(s.a), read(s.b); };
  std::visit(
      [&](const auto& s) {
        using Kind = std::decay_t<decltype(s)>;
        if constexpr (std::is_same_v<Kind, Plan::Embed>) {
          write(s.y);
        } else if constexpr (std::is_same_v<Kind, Plan::Scan>) {
          read(s.z), read(s.a), write(s.h);
        } else if constexpr (std::is_same_v<Kind, Plan::Attend>) {
          read(s.q), read(s.k), read(s.v), write(s.o);
        } else if constexpr (std::is_same_v<Kind, Plan::Norm>) {
          source(s.source);
        } else {
          source(s.source);
          for (const Var& y : s.outputs) write(y);
          if (s.sum.defined()) write(s.sum);
        }
      },
      step);
}

class Compiler {
 public:
  Compiler(const LM& lm, const EngineOptions& options) : lm_(lm), options_(options), device_(lm.device()) {
    const Tensor& norm = lm.parts().norm.value();
    MMFREE_CHECK(DTypeError, norm.dtype() == DType::f32, "engine: parameters must be f32, got ", name_of(norm.dtype()));
  }

  CompiledModel compiled() {
    const Var hidden = lm_.hidden(Tensor::zeros({1}, DType::i32), 1);
    const auto* last = std::get_if<Plan::Norm>(&plan_.steps.back());
    MMFREE_CHECK(Error, last && last->outputs.size() == 1 && last->outputs[0].value().raw() == hidden.value().raw(),
                 "engine: a model must end with the norm of its head");
    for (size_t i = 0; i < plan_.steps.size(); ++i) {
      const auto use = [&](const Var& v) { last_use_[v.value().raw()] = i; };
      for_values(plan_.steps[i], use, use);
    }
    out_.program.most_threads = options_.threads;
    out_.program.device = device_;
    for (const Plan::Step& step : plan_.steps) {
      std::visit([&](const auto& s) { add(s); }, step);
      release();
      ++at_;
    }
    DecodeProgram& p = out_.program;
    if (device_ != Device::cpu) return std::move(out_);
    p.scratch_floats = (3 * widest_ + 15) / 16 * 16;
    p.scratch = memory({p.most_threads, p.scratch_floats});
    return std::move(out_);
  }

 private:
  /// What the first dimension of a branch's output holds, and where.
  struct Rounded {
    int8_t* codes = nullptr;
    float* step = nullptr;
    int32_t* sums = nullptr;
    int64_t stride = 0;
    const float* values = nullptr;
  };

  float* memory(const Shape& shape) {
    out_.buffers.push_back(Tensor::zeros(shape, DType::f32, device_));
    return out_.buffers.back().mut<float>();
  }

  /// The address of a value that a step made.
  float* place(const Var& v) const {
    if (!v.defined()) return nullptr;
    MMFREE_CHECK(Error, places_.count(v.value().raw()), "engine: a step reads what no step computed");
    return places_.at(v.value().raw()).first;
  }

  /// Gives a value a buffer.
  float* make(const Var& v) {
    std::vector<float*>& free = free_[v.dim(1)];
    if (free.empty()) free.push_back(memory({options_.chunk, v.dim(1)}));
    float* p = free.back();
    free.pop_back();
    places_[v.value().raw()] = {p, v.dim(1)};
    return p;
  }

  /// Frees the buffers of values that no later step reads. On a GPU a step may be computed together with the one
  /// before it, so it must not write what that one reads.
  void release() {
    const size_t before = device_ == Device::cpu ? 0 : 1;
    for (auto place = places_.begin(); place != places_.end();) {
      const auto& [at, width] = place->second;
      if (last_use_.at(place->first) + before > at_) {
        ++place;
        continue;
      }
      free_[width].push_back(at);
      place = places_.erase(place);
    }
  }

  void add(const Plan::Embed& s) {
    out_.program.steps.emplace_back(DecodeEmbed{stored_table(s.table.quant()), make(s.y)});
  }

  void add(const Plan::Scan& s) {
    const int64_t d = s.z.dim(1);
    auto own = std::make_unique<EngineRecurrence>();
    own->width = d;
    memory({options_.slots, d});
    own->state = out_.buffers.back();
    const float* bound = nullptr;
    if (s.bound.defined()) {
      out_.buffers.push_back(s.bound.value());
      bound = s.bound.value().data<float>();
    }
    out_.program.steps.emplace_back(DecodeScan{place(s.z), place(s.a), bound, make(s.h), own->state.mut<float>(), d});
    out_.recurrences.push_back(std::move(own));
  }

  void add(const Plan::Attend& s) {
    const AttentionShape& shape = s.shape;
    const int64_t capacity = shape.window ? shape.window - 1 + options_.chunk : options_.context;
    auto own = std::make_unique<EngineCache>();
    own->window = shape.window;
    own->held.resize(size_t(options_.slots));
    for (Tensor* t : {&own->keys, &own->values}) {
      memory({options_.slots, capacity, shape.kv_heads, shape.width});
      *t = out_.buffers.back();
    }
    out_.program.steps.emplace_back(DecodeAttend{
        place(s.q), place(s.k), place(s.v), make(s.o), own->at(own->keys, 0), own->at(own->values, 0), own->held.data(),
        capacity, shape.heads, shape.kv_heads, shape.width, shape.window, rotary_turns(shape.theta, shape.width)});
    out_.caches.push_back(std::move(own));
  }

  /// The norm before the head, for the rows whose logits are wanted, and the head.
  void add(const Plan::Norm& s) {
    MMFREE_CHECK(Error, at_ + 1 == plan_.steps.size(), "engine: only the norm of the head has no product of its own");
    const std::vector<Rounded> rounded =
        add_norm(s.source, s.outer, s.eps_outer, s.eps_inner, s.branches, nullptr, true);
    out_.logits = Tensor::zeros({options_.slots, lm_.config().vocab_size}, DType::f32, device_);
    out_.buffers.push_back(out_.logits);
    out_.program.steps.emplace_back(
        DecodeProducts{{matrix(*lm_.parts().head.matrix, rounded[0], out_.logits.mut<float>())}, true});
  }

  void add(const Plan::NormLinear& s) {
    std::vector<Branch> branches;
    std::vector<size_t> branch_of;
    for (const Projection& p : s.projections) {
      const auto same = std::find_if(branches.begin(), branches.end(), [&](const Branch& b) {
        return !b.weight.defined() && !p.branch.weight.defined() && b.rounding == p.branch.rounding;
      });
      branch_of.push_back(size_t(same - branches.begin()));
      if (same == branches.end()) branches.push_back(p.branch);
    }
    float* sum = s.sum.defined() ? make(s.sum) : nullptr;
    const std::vector<Rounded> rounded = add_norm(s.source, s.outer, s.eps_outer, s.eps_inner, branches, sum, false);
    DecodeProducts products;
    for (size_t i = 0; i < s.projections.size(); ++i)
      products.matrices.push_back(matrix(*s.projections[i].matrix, rounded[branch_of[i]], make(s.outputs[i])));
    out_.program.steps.emplace_back(std::move(products));
  }

  DecodeMatrix matrix(const WeightMatrix& w, const Rounded& x, float* y) {
    DecodeMatrix m;
    m.y = y, m.o = w.rows(), m.k = w.cols();
    if (w.is_ternary()) {
      m.q = x.codes, m.step = x.step, m.sums = x.sums, m.q_stride = x.stride;
      m.codes = codes_of(w.ternary), m.scale = w.ternary.scale.data<float>();
      if (device_ != Device::cpu) m.bytes = w.ternary.codes.data<int8_t>();
    } else {
      m.x = x.values, m.w = reinterpret_cast<const float*>(w.plain.raw()), m.bf16_w = w.plain.dtype() == DType::bf16;
    }
    return m;
  }

  /// The packed codes of a matrix, as the program's device wants them.
  const uint8_t* codes_of(const TernaryTensor& w) {
    if (device_ == Device::cpu) return w.codes.data<uint8_t>();
    Tensor packed({w.rows(), packed_decode_bytes(w.cols)}, DType::u8, device_);
    pack_decode(w.codes, packed);
    out_.buffers.push_back(packed);
    return packed.data<uint8_t>();
  }

  /// Adds a norm_quant, unless every branch is the source itself. Returns where the branches' outputs are.
  std::vector<Rounded> add_norm(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                                const std::vector<Branch>& branches, float* sum, bool at_wanted) {
    const RowSource rows{source.kind, source.a.value(), source.b.value(), source.weight.value(), source.eps, source.f};
    static float present;  // marks a statistic that is computed
    DecodeNorm norm{};
    NormQuantArgs& a = norm.args;
    const float* weight = rows.weight.defined() ? rows.weight.data<float>() : nullptr;
    float* from = place(source.a);
    a.source = {rows.kind, rows.f,        from,     rows.halved() ? from + rows.width() : place(source.b),
                weight,    rows.a.dim(1), rows.eps, DType::f32};
    a.outer = outer.defined() ? outer.value().data<float>() : nullptr;
    a.eps_outer = eps_outer, a.eps_inner = eps_inner, a.n = 1, a.d = rows.width(), a.dtype = DType::f32, a.x = sum;
    if (rows.kind == RowSource::gate && weight) a.r0 = &present;
    if (a.outer) a.r1 = &present;
    norm.at_wanted = at_wanted;
    widest_ = std::max(widest_, a.d);
    std::vector<Rounded> outputs;
    for (const Branch& branch : branches) {
      const bool itself = rows.kind == RowSource::rows && !a.outer && !branch.weight.defined() && !at_wanted &&
                          branch.rounding == Rounding::none;
      if (itself) {
        outputs.push_back({nullptr, nullptr, nullptr, 0, from});
        continue;
      }
      const size_t b = size_t(a.count++);
      const Rounded out = branch_memory(b, branch.rounding, a.d);
      if (branch.weight.defined()) a.r2 = &present;
      void* to = out.codes ? static_cast<void*>(out.codes) : const_cast<float*>(out.values);
      a.branches[b] = {branch.weight.defined() ? branch.weight.value().data<float>() : nullptr,
                       branch.rounding,
                       to,
                       out.step,
                       nullptr,
                       nullptr,
                       0};
      norm.outputs[b] = {out.codes ? out.stride : a.d * int64_t(sizeof(float)), out.sums};
      outputs.push_back(out);
    }
    MMFREE_CHECK(Error, a.count > 0 || !sum, "engine: a sum without a norm");
    if (a.count > 0) out_.program.steps.emplace_back(norm);
    return outputs;
  }

  /// Memory of branch number b. All norms share it: a norm's outputs are read by the products that follow it only.
  Rounded branch_memory(size_t b, Rounding rounding, int64_t d) {
    Rounded out;
    const size_t kind = rounding == Rounding::int8;
    std::map<int64_t, Rounded>& all = branches_[b][kind];
    if (const auto found = all.find(d); found != all.end()) return found->second;
    const int64_t chunk = options_.chunk;
    if (kind) {
      out.stride =
          device_ == Device::cpu ? (d + kTernaryBlock - 1) / kTernaryBlock * kTernaryBlock : 4 * packed_decode_bytes(d);
      Tensor codes = Tensor::zeros({chunk, out.stride}, DType::i8, device_),
             sums = Tensor::zeros({chunk}, DType::i32, device_);
      out.codes = codes.mut<int8_t>(), out.sums = sums.mut<int32_t>(), out.step = memory({chunk});
      out_.buffers.insert(out_.buffers.end(), {codes, sums});
    } else {
      out.values = memory({chunk, d});
    }
    return all[d] = out;
  }

  const LM& lm_;
  const EngineOptions& options_;
  Device device_;
  Plan plan_;
  CompiledModel out_;
  std::map<const char*, size_t> last_use_;
  std::map<const char*, std::pair<float*, int64_t>> places_;                 ///< and their widths
  std::map<int64_t, std::vector<float*>> free_;                              ///< by width
  std::map<size_t, std::map<size_t, std::map<int64_t, Rounded>>> branches_;  ///< by number, kind and width
  size_t at_ = 0;
  int64_t widest_ = 0;
};

}  // namespace

CompiledModel compile_decode(const LM& lm, const EngineOptions& options) { return Compiler(lm, options).compiled(); }

}  // namespace mmfree
