#include "autograd/ops.h"
#include "autograd/saved_norm.h"

namespace mmfree {
namespace {

constexpr size_t kMatrixTensors = 3, kMostProjections = 4;

/// A weight matrix as saved tensors, and back.
void pack(const WeightMatrix& w, std::vector<SavedTensor>& saved) {
  saved.insert(saved.end(), {w.ternary.codes, w.ternary.scale, w.plain});
}

template <class From>
WeightMatrix unpack(const From& from, size_t first, int64_t cols) {
  WeightMatrix w;
  w.ternary.codes = from.saved(first);
  w.ternary.scale = from.saved(first + 1);
  w.ternary.cols = cols;
  w.plain = from.saved(first + 2);
  return w;
}

QuantTensor activations(const Tensor& values, const Tensor& scale, DType compute) {
  return scale.defined() ? QuantTensor(values, scale, compute) : QuantTensor(values);
}

/// norm_linear as its node remembers it. Saved behind the norm's tensors, for each projection: its norm weight, its
/// matrix, and the rounded activations with their scale, if kept.
struct SavedProjections {
  static constexpr size_t kEach = 1 + kMatrixTensors + 2, kEachInput = 2;
  SavedNorm norm;
  Rounding roundings[kMostProjections];
  size_t count;

  static size_t at(size_t p) { return SavedNorm::kSaved + p * kEach; }
  static size_t input(size_t p) { return SavedNorm::kInputs + p * kEachInput; }

  void backward(const BackwardCtx& c) const {
    std::vector<Tensor> u(count);  // rounded activations that weight gradients want and that were not kept
    {
      std::vector<NormBranchGrad> grads;
      for (size_t p = 0; p < count; ++p) {
        if (!c.has(p)) continue;
        const Tensor dy = c.out_grad(p), weight = c.saved(at(p));
        Tensor dq({dy.dim(0), weight.dim(0)}, dy.dtype(), dy.device());
        linear_dx(dy, unpack(c, at(p) + 1, weight.dim(0)), dq, 0);
        if (c.needs(input(p) + 1) && !c.kept(at(p) + 4)) u[p] = dq;  // in its place
        auto [dweight, beta] = c.grad_if_needed(input(p));
        grads.push_back({weight, dq, dweight, beta, roundings[p], u[p]});
      }
      norm.backward(c, grads, count);
    }
    for (size_t p = 0; p < count; ++p) {
      if (!c.has(p) || !c.needs(input(p) + 1)) continue;
      const Tensor dy = c.out_grad(p);
      if (c.kept(at(p) + 4)) u[p] = c.saved(at(p) + 4);
      auto [dw, beta] = c.grad(input(p) + 1);
      linear_dw(dy, activations(u[p], c.saved(at(p) + 5), dy.dtype()), dw, beta);
      u[p] = {};
    }
  }
};

/// A Recipe's saved list under the name that a BackwardCtx gives its own.
struct RecipeView {
  const Recipe& recipe;
  Tensor saved(size_t i) const { return recipe.tensor(i); }
};

}  // namespace

Var linear(const Var& x, const Var& latent, const WeightMatrix& matrix) {
  Tensor y({x.dim(0), matrix.rows()}, x.compute(), x.device());
  linear(x.quant(), matrix, y);
  std::vector<SavedTensor> saved;
  pack(matrix, saved);
  saved.insert(saved.end(), {x.quant().values, x.quant().scale});
  return record("linear", {x, latent}, {y}, std::move(saved), [cols = matrix.cols()](const BackwardCtx& c) {
    const Tensor dy = c.out_grad();
    if (c.needs(0)) {
      auto [dx, beta] = c.grad(0);
      linear_dx(dy, unpack(c, 0, cols), dx, beta);
    }
    if (c.needs(1)) {
      auto [dw, beta] = c.grad(1);
      linear_dw(dy, activations(c.saved(3), c.saved(4), dy.dtype()), dw, beta);
    }
  })[0];
}

std::vector<Var> norm_linear(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                             const std::vector<Projection>& projections, Keep keep) {
  MMFREE_CHECK(Error, projections.size() <= kMostProjections, "norm_linear: ", projections.size(),
               " projections, at most ", kMostProjections, " are supported");
  NormForward f(source, outer);
  std::vector<NormBranch> branches;
  for (const Projection& p : projections) branches.push_back(f.branch(p.branch));
  f.run(eps_outer, eps_inner, branches);

  SavedProjections memory{{source.kind, source.eps, eps_outer, eps_inner}, {}, projections.size()};
  std::vector<Var> inputs = f.inputs();
  std::vector<SavedTensor> saved = f.saved(keep == Keep::nothing);
  std::vector<QuantTensor> outputs;
  for (size_t i = 0; i < projections.size(); ++i) {
    const Projection& p = projections[i];
    const QuantTensor u = f.output(branches[i]);
    Tensor y({u.values.dim(0), p.matrix->rows()}, source.a.compute(), source.a.device());
    linear(u, *p.matrix, y);
    outputs.emplace_back(y);
    memory.roundings[i] = p.branch.rounding;
    inputs.insert(inputs.end(), {p.branch.weight, p.latent});
    saved.emplace_back(p.branch.weight.value());
    pack(*p.matrix, saved);
    saved.emplace_back(keep == Keep::all ? u.values : Tensor());
    saved.emplace_back(keep == Keep::all ? u.scale : Tensor());
    branches[i] = {};
  }
  if (f.x.defined()) outputs.emplace_back(f.x, source.a.compute());
  std::vector<Var> ys =
      record("norm_linear", inputs, std::move(outputs), saved, [memory](const BackwardCtx& c) { memory.backward(c); });
  if (keep != Keep::nothing || !Tape::current()) return ys;
  for (size_t i = 0; i < projections.size(); ++i)
    ys[i].set_recipe(make_recipe("norm_linear", saved, [memory, i, t = ys[i].compute()](const Recipe& recipe) {
      const RecipeView from{recipe};
      const RowSource rows = memory.norm.source(from);
      const size_t at = SavedProjections::at(i);
      const Tensor weight = from.saved(at);
      const bool int8 = memory.roundings[i] == Rounding::int8;
      const int64_t n = rows.rows_count(), d = rows.width();
      const Device device = rows.a.device();
      std::vector<NormBranch> branch = {{weight, memory.roundings[i], Tensor({n, d}, int8 ? DType::i8 : t, device),
                                         int8 ? Tensor({n}, weight.dtype(), device) : Tensor()}};
      memory.norm.again(rows, from.saved(3), branch);
      const WeightMatrix matrix = unpack(from, at + 1, d);
      Tensor y({n, matrix.rows()}, t, device);
      linear(activations(branch[0].out, branch[0].step, t), matrix, y);
      return y;
    }));
  return ys;
}

}  // namespace mmfree
