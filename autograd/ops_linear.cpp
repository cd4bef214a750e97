#include <algorithm>

#include "autograd/ops.h"
#include "autograd/plan.h"
#include "autograd/saved_norm.h"
#include "core/ops/ternary_int8.h"

namespace mmfree {
namespace {

/// Indices of a weight matrix' tensors in a node's saved list, relative to its first tensor.
enum MatrixSlot : size_t { kCodes, kScale, kPlain, kMatrixSlots };

/// Indices of a projection's tensors in the saved list of `norm_linear`, relative to its first tensor: the norm weight,
/// the matrix, and, for the first projection of a branch, the rounded activations with their quantization steps, if
/// kept.
enum ProjectionSlot : size_t { kNorm, kMatrix, kValues = kMatrix + kMatrixSlots, kStep, kProjectionSlots };
/// Inputs of a projection: norm weight and latent weights.
enum ProjectionInput : size_t { kNormInput, kLatent, kProjectionInputs };

/// Inputs and saved tensors of `linear`.
enum LinearInput : size_t { kLinearX, kLinearLatent };
enum LinearSlot : size_t { kLinearMatrix, kLinearValues = kLinearMatrix + kMatrixSlots, kLinearStep };

void pack(const WeightMatrix& w, std::vector<SavedTensor>& saved) {
  saved.insert(saved.end(), {w.ternary.codes, w.ternary.scale, w.plain});
}

template <class From>
WeightMatrix unpack(const From& from, size_t first, int64_t cols, Products backward) {
  WeightMatrix w;
  w.backward = backward;
  w.ternary.codes = from.saved(first + kCodes);
  w.ternary.scale = from.saved(first + kScale);
  w.ternary.cols = cols;
  w.plain = from.saved(first + kPlain);
  return w;
}

QuantTensor activations(const Tensor& values, const Tensor& step, DType compute) {
  return step.defined() ? QuantTensor(values, step, compute) : QuantTensor(values, compute);
}

/// What the backward pass of a projection with W [o, k] reads of the gradient of its output.
GradientForm gradient_form(Products products, Device device, int64_t o, int64_t k) {
  if (products != Products::int8 || device == Device::cpu || !int8_input_gradient(device, o, k))
    return GradientForm::values;
  return int8_weight_gradient(device, o, k) ? GradientForm::rows : GradientForm::both;
}
void want_gradient(const Var& y, const WeightMatrix& w) {
  if (y.requires_grad()) y.slot()->wanted = gradient_form(w.backward, y.device(), w.rows(), w.cols());
}

/// What the node of norm_linear stores besides tensors. Its saved list holds the norm's slots, then those of each
/// projection.
struct SavedProjections {
  SavedNorm norm;
  int64_t width;  ///< of the norm's rows
  Rounding roundings[kMaxNormBranches];
  Products products[kMaxNormBranches];  ///< of each projection's backward pass
  uint8_t first[kMaxNormBranches];      ///< of each projection: the first one of its branch
  uint8_t count = 0;

  SavedProjections(const SavedNorm& norm, int64_t width, const std::vector<Projection>& projections)
      : norm(norm), width(width), roundings{}, products{}, first{} {
    MMFREE_CHECK(ShapeError, projections.size() <= kMaxNormBranches, "norm_linear: takes up to ", kMaxNormBranches,
                 " projections, got ", projections.size());
    for (const Projection& p : projections) {
      roundings[count] = p.branch.rounding, products[count] = p.matrix->backward, first[count] = count;
      for (uint8_t other = 0; other < count && !p.branch.weight.defined(); ++other)
        if (!projections[other].branch.weight.defined() && roundings[other] == p.branch.rounding &&
            products[other] == products[count]) {
          first[count] = other;
          break;
        }
      ++count;
    }
  }

  static size_t slot(size_t p, size_t which) { return kNormSlots + p * kProjectionSlots + which; }
  static size_t input(size_t p, size_t which) { return kNormInputs + p * kProjectionInputs + which; }

  void backward(const BackwardCtx& c) const {
    std::vector<QuantTensor> u(count);  // rounded activations of each branch that a weight gradient needs
    {
      std::vector<NormBranchGrad> grads;
      for (size_t p = 0; p < count; ++p)
        if (first[p] == p) branch_gradient(c, p, grads, u[p]);
      norm.backward(c, grads, count);
    }
    for (size_t p = 0; p < count; ++p) {
      if (!c.has(p) || !c.needs(input(p, kLatent))) continue;
      const Gradient dy = c.out_gradient(p);
      const size_t values = slot(first[p], kValues), step = slot(first[p], kStep);
      auto [dw, beta] = c.grad(input(p, kLatent));
      linear_dw(dy, c.kept(values) ? activations(c.saved(values), c.saved(step), dy.dtype()) : u[first[p]], dw, beta,
                products[p]);
      if (ends_branch(p)) u[first[p]] = {};
    }
  }

  /// Whether projection p is the last of its branch.
  bool ends_branch(size_t p) const { return std::find(first + p + 1, first + count, first[p]) == first + count; }

  /// Adds the gradient of the branch whose first projection is `p` to `grads`, if any reached it. `u`, out: where its
  /// rounded activations will be computed again, if they are needed.
  void branch_gradient(const BackwardCtx& c, size_t p, std::vector<NormBranchGrad>& grads, QuantTensor& u) const {
    Tensor dq;
    bool wanted = false, codes = false;
    for (size_t i = p; i < count; ++i) {
      if (first[i] != p || !c.has(i)) continue;
      const Gradient dy = c.out_gradient(i);
      const double beta = dq.defined() ? 1 : 0;
      if (!dq.defined()) dq = Tensor({dy.count(), width}, dy.dtype(), dy.device());
      linear_dx(dy, unpack(c, slot(i, kMatrix), width, products[i]), dq, beta);
      wanted |= c.needs(input(i, kLatent));
      codes |= products[i] == Products::int8 && int8_weight_gradient(dy.device(), dy.width(), width);
    }
    if (!dq.defined()) return;
    if (wanted && !c.kept(slot(p, kValues))) {
      const DType t = value_dtype(roundings[p], dq.dtype());
      if (codes)
        u = {Tensor(dq.shape(), DType::i8, dq.device()), Tensor({dq.dim(0)}, param_dtype(t), dq.device()), t};
      else
        u = {t == dq.dtype() ? dq : Tensor(dq.shape(), t, dq.device()), t};  // overwrites the gradient if dtypes agree
    }
    auto [dweight, beta] = c.grad_if_needed(input(p, kNormInput));
    grads.push_back({c.saved(slot(p, kNorm)), dq, dweight, beta, roundings[p], u.values, u.scale});
  }

  /// Computes output p again, in the compute dtype t. `From` gives access to the node's saved list, in which the
  /// rounded activations may be kept.
  template <class From>
  Tensor output(const From& from, size_t p, DType t) const {
    const RowSource rows = norm.source(from);
    const int64_t n = rows.rows_count();
    const Device device = rows.a.device();
    Tensor values = from.saved(slot(first[p], kValues)), step = from.saved(slot(first[p], kStep));
    if (!values.defined()) {
      std::vector<NormBranch> branch = {make_branch(from.saved(slot(p, kNorm)), roundings[p], n, width, t, device)};
      norm.again(rows, from.saved(kOuter), branch);
      values = branch[0].out, step = branch[0].step;
    }
    const WeightMatrix matrix = unpack(from, slot(p, kMatrix), width, products[p]);
    Tensor y({n, matrix.rows()}, t, device);
    linear(activations(values, step, t), matrix, y);
    return y;
  }
};

/// Whether every projection multiplies the source's own rows: there is no norm, and no rounding that changes a value.
bool passes_through(const Source& source, const Var& outer, const std::vector<Projection>& projections) {
  const DType t = source.a.compute();
  bool as_it_is = source.kind == RowSource::rows && !outer.defined() && source.a.value().dtype() == t;
  for (const Projection& p : projections)
    as_it_is &= !p.branch.weight.defined() && ((p.branch.rounding == Rounding::none && t == param_dtype(t)) ||
                                               (p.branch.rounding == Rounding::bf16 && t == DType::bf16));
  return as_it_is;
}

std::vector<Var> planned(Plan& plan, Plan::NormLinear step) {
  const DType t = step.source.a.compute();
  for (const Projection& p : step.projections) step.outputs.push_back(plan.value(p.matrix->rows(), t));
  std::vector<Var> outputs = step.outputs;
  if (step.source.kind == RowSource::sum) outputs.push_back(step.sum = plan.value(step.source.a.dim(1), t));
  plan.steps.emplace_back(std::move(step));
  return outputs;
}

/// Gives a Recipe the member `saved` of a BackwardCtx.
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
  const auto backward = [cols = matrix.cols(), products = matrix.backward](const BackwardCtx& c) {
    const Gradient dy = c.out_gradient();
    if (c.needs(kLinearX)) {
      auto [dx, beta] = c.grad(kLinearX);
      linear_dx(dy, unpack(c, kLinearMatrix, cols, products), dx, beta);
    }
    if (c.needs(kLinearLatent)) {
      auto [dw, beta] = c.grad(kLinearLatent);
      linear_dw(dy, activations(c.saved(kLinearValues), c.saved(kLinearStep), dy.dtype()), dw, beta, products);
    }
  };
  const Var out = record("linear", {x, latent}, {y}, std::move(saved), backward)[0];
  want_gradient(out, matrix);
  return out;
}

std::vector<Var> norm_linear(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                             const std::vector<Projection>& projections, Keep keep) {
  if (Plan* plan = Plan::current()) return planned(*plan, {source, outer, eps_outer, eps_inner, projections, {}, {}});
  if (passes_through(source, outer, projections)) {
    std::vector<Var> ys;
    for (const Projection& p : projections) ys.push_back(linear(source.a, p.latent, *p.matrix));
    return ys;
  }
  NormForward f(source, outer);
  SavedProjections node(SavedNorm(source, eps_outer, eps_inner), f.source.width(), projections);
  std::vector<NormBranch> branches;
  std::vector<size_t> branch_of(projections.size());
  for (size_t i = 0; i < projections.size(); ++i) {
    branch_of[i] = node.first[i] == i ? branches.size() : branch_of[node.first[i]];
    if (node.first[i] == i) branches.push_back(f.branch(projections[i].branch));
  }
  f.run(eps_outer, eps_inner, branches);

  std::vector<Var> inputs = f.inputs();
  std::vector<SavedTensor> saved = f.saved(keep == Keep::terms || keep == Keep::codes);
  std::vector<QuantTensor> outputs, rounded(projections.size());
  for (size_t i = 0; i < projections.size(); ++i) {
    const Projection& p = projections[i];
    const QuantTensor u = f.output(branches[branch_of[i]]);
    if (node.first[i] == i) f.show(p.matrix, branches[branch_of[i]]);
    Tensor y({u.values.dim(0), p.matrix->rows()}, source.a.compute(), source.a.device());
    linear(u, *p.matrix, y);
    outputs.emplace_back(y);
    inputs.insert(inputs.end(), {p.branch.weight, p.latent});
    saved.emplace_back(p.branch.weight.value());
    pack(*p.matrix, saved);
    const bool kept = keep == Keep::all && node.first[i] == i;
    saved.emplace_back(kept ? u.values : Tensor());
    saved.emplace_back(kept ? u.scale : Tensor());
    if (keep == Keep::codes && node.first[i] == i && u.quantised()) rounded[i] = u;
    if (node.ends_branch(i)) branches[branch_of[i]] = {};
  }
  if (f.x.defined()) outputs.emplace_back(f.x, source.a.compute());
  std::vector<Var> ys =
      record("norm_linear", inputs, std::move(outputs), saved, [node](const BackwardCtx& c) { node.backward(c); });
  for (size_t i = 0; i < projections.size(); ++i) want_gradient(ys[i], *projections[i].matrix);
  if (keep != Keep::codes || !Tape::current()) return ys;
  for (size_t i = 0; i < projections.size(); ++i) {
    const size_t slot = SavedProjections::slot(i, 0);
    saved[slot + kValues] = rounded[i].values, saved[slot + kStep] = rounded[i].scale;
  }
  for (size_t i = 0; i < projections.size(); ++i)
    ys[i].set_recipe(make_recipe("norm_linear", saved, [node, i, t = ys[i].compute()](const Recipe& recipe) {
      return node.output(RecipeView{recipe}, i, t);
    }));
  return ys;
}

}  // namespace mmfree
