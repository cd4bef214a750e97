#pragma once
#include <cstddef>
#include <map>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "autograd/var.h"

namespace mmfree {

/// A plain function object kept by value in a node. It may capture numbers and addresses of what outlives the tape, but
/// no tensor: every tensor goes through a list of saved ones, where it is counted, version-checked and freed.
class Closure {
 public:
  static constexpr size_t kBytes = 96;
  template <class Function>
  explicit Closure(Function function) {
    static_assert(std::is_trivially_copyable_v<Function>,
                  "a backward closure captures plain numbers only; tensors go through `saved`");
    static_assert(sizeof(Function) <= kBytes);
    new (bytes_) Function(function);
  }
  template <class Function>
  const Function& as() const {
    return *std::launder(reinterpret_cast<const Function*>(bytes_));
  }

 private:
  alignas(std::max_align_t) std::byte bytes_[kBytes];
};

/// Whether MMFREE_CHECK_FINITE=1 asks for a check of every value and gradient where it is made, so that the first bad
/// op is named.
bool checking_finite();

/// A tensor kept for the backward pass: itself, with the version it had then, or how to make it again.
class SavedTensor {
 public:
  /// `compute`: that of the value, for BackwardCtx::leaf.
  SavedTensor(Tensor tensor, DType compute = DType::f32)  // NOLINT: list of tensors
      : tensor_(std::move(tensor)), version_(tensor_.version()), compute_(compute) {}
  /// The Var's recipe if it has one, else its tensor.
  SavedTensor(const Var& v)  // NOLINT
      : tensor_(v.recipe() ? Tensor() : v.value()),
        version_(tensor_.version()),
        compute_(v.compute()),
        recipe_(v.recipe()) {}
  /// @throws Error naming `op` if the tensor was modified in place since it was saved
  Tensor get(const char* op) const;
  /// Bytes held, not counting what a recipe shares with other nodes.
  int64_t bytes() const { return tensor_.defined() ? tensor_.bytes() : 0; }
  bool defined() const { return tensor_.defined() || recipe_; }
  DType compute() const { return compute_; }

 private:
  Tensor tensor_;
  uint64_t version_;
  DType compute_;
  std::shared_ptr<const Recipe> recipe_;
};

/// How to compute a value again from saved tensors.
struct Recipe {
  const char* op;
  std::vector<SavedTensor> saved;
  Closure closure;
  Tensor (*call)(const Recipe&);
  Tensor tensor(size_t i) const { return saved[i].get(op); }
};

/// `make(const Recipe&)` computes the value from recipe.tensor(i).
template <class Make>
std::shared_ptr<const Recipe> make_recipe(const char* op, std::vector<SavedTensor> saved, Make make) {
  return std::make_shared<const Recipe>(Recipe{op, std::move(saved), Closure(make),
                                               [](const Recipe& recipe) { return recipe.closure.as<Make>()(recipe); }});
}

/// One recorded operation. Holds gradient slots, never values: what backward needs is in `saved` and nowhere else.
struct Node {
  const char* op;
  std::vector<std::shared_ptr<GradSlot>> inputs, outputs;  ///< null where no gradient is wanted
  std::vector<SavedTensor> saved;
  Closure closure;
  void (*call)(const Closure&, const class BackwardCtx&);
};

/// What a backward function sees of its node.
class BackwardCtx {
 public:
  explicit BackwardCtx(const Node& node) : node_(node) {}
  /// Tensor i of the saved list; one kept as a recipe is computed by each call.
  /// @throws Error if it was modified in place since it was saved
  Tensor saved(size_t i) const { return node_.saved[i].get(node_.op); }
  /// Whether tensor i of the saved list is there at all.
  bool kept(size_t i) const { return node_.saved[i].defined(); }
  /// Input i again, of which saved(i) is the value, saved with its compute dtype: a value of its own whose gradient is
  /// wanted if the input's is.
  Var leaf(size_t i) const;
  /// Whether input i wants a gradient.
  bool needs(size_t i) const { return node_.inputs[i] != nullptr; }
  /// Whether a gradient reached output i.
  bool has(size_t i) const { return node_.outputs[i]->written; }
  /// The gradient of output i; zeros if none reached it.
  Tensor out_grad(size_t i = 0) const;
  /// Destination of input i's gradient; may be called once per node and input, only if needs(i).
  GradTarget grad(size_t i) const { return node_.inputs[i]->target(); }
  /// As grad(i), or an undefined tensor if input i wants none.
  GradTarget grad_if_needed(size_t i) const { return needs(i) ? grad(i) : GradTarget{}; }
  /// Adds `contribution` to input i's gradient; the first contribution is shared, not copied, except by a leaf.
  void pass(size_t i, const Tensor& contribution) const;

 private:
  const Node& node_;
};

/// Linear tape: while one is alive, operations on this thread that involve a wanted gradient are appended to it.
/// Creation order is a topological order, so `backward` pops from the end until nothing is left and memory falls as it
/// goes. Without a live Tape nothing is recorded.
class Tape {
 public:
  Tape() : Tape(true) {}
  ~Tape();
  Tape(const Tape&) = delete;
  static Tape* current();

  /// Propagates the gradient of Σ weights_i · losses_i, each loss of one element, to every leaf; empties the tape.
  /// @throws Error, ShapeError
  void backward(const std::vector<Var>& losses, const std::vector<double>& weights);
  void backward(const Var& loss) { backward({loss}, std::vector<double>{1}); }
  /// The same from any outputs with the gradients given; an undefined gradient: none reaches that output.
  void backward(const std::vector<Var>& outputs, const std::vector<Tensor>& gradients);
  size_t size() const { return nodes_.size(); }
  /// Bytes kept for the backward pass, by op name.
  std::map<std::string, int64_t> saved_bytes() const;

 private:
  friend class NoTape;
  friend std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs);
  explicit Tape(bool recording);
  std::vector<Node> nodes_;
  bool recording_;
  Tape* outer_;
};

/// While alive, nothing is recorded on this thread.
class NoTape {
 public:
  NoTape() : tape_(false) {}

 private:
  Tape tape_;
};

std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs);

/// Turns computed outputs into Vars; if a Tape is alive and an input wants a gradient, records `backward` for them.
template <class Backward>
std::vector<Var> record(const char* op, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs,
                        std::vector<SavedTensor> saved, Backward backward) {
  const auto call = [](const Closure& closure, const BackwardCtx& ctx) { closure.as<Backward>()(ctx); };
  return record_node(Node{op, {}, {}, std::move(saved), Closure(backward), call}, inputs, std::move(outputs));
}

/// Calls `f(inputs)` (outputs: vector of Var) without keeping anything but the inputs: the backward pass calls it
/// again. `f` captures plain numbers and addresses only. Gradients of parameters that `f` uses on its own arrive as
/// usual.
template <class Function>
std::vector<Var> recompute(const char* op, const std::vector<Var>& inputs, Function f) {
  bool wanted = false;
  for (const Var& in : inputs) wanted |= in.requires_grad();
  if (!Tape::current() || !wanted) return f(inputs);
  std::vector<QuantTensor> outputs;
  std::vector<SavedTensor> saved;
  {
    const NoTape quiet;
    for (const Var& y : f(inputs)) outputs.push_back(y.quant());
  }
  for (const Var& in : inputs) saved.emplace_back(in.value(), in.compute());
  const size_t count = outputs.size();
  return record(op, inputs, std::move(outputs), std::move(saved), [f, count, n = inputs.size()](const BackwardCtx& c) {
    std::vector<Var> leaves;
    for (size_t i = 0; i < n; ++i) leaves.push_back(c.leaf(i));
    Tape tape;
    const std::vector<Var> ys = f(leaves);
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < count; ++i) gradients.push_back(c.has(i) ? c.out_grad(i) : Tensor());
    tape.backward(ys, gradients);
    for (size_t i = 0; i < n; ++i)
      if (const Tensor g = leaves[i].grad(); g.defined()) c.pass(i, g);
  });
}

}  // namespace mmfree
