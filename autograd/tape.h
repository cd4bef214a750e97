#pragma once
#include <cstddef>
#include <map>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "autograd/var.h"

namespace mmfree {

/// A function object, stored by value in a node. It may capture numbers, and addresses of objects that outlive the
/// tape, but no tensors: those are in the node's saved list, where their bytes are counted, changes are found, and they
/// are freed.
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

/// Whether MMFREE_CHECK_FINITE=1 is set: then every output and gradient is checked when it is computed, and the error
/// names the op that first gave a NaN or an infinity.
bool checking_finite();

/// A tensor saved for the backward pass: either the tensor and its version, or a recipe that computes it again.
class SavedTensor {
 public:
  /// `compute`: the compute dtype of the value, for BackwardCtx::leaf.
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

/// A function that computes a value again, with the saved tensors that it needs.
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

/// One recorded operation, or without outputs a place in the recording. It has no values but those in `saved`, and the
/// slots of gradients.
struct Node {
  const char* op;
  std::vector<std::shared_ptr<GradSlot>> inputs, outputs;  ///< null where no gradient is wanted
  std::vector<SavedTensor> saved;
  Closure closure;
  void (*call)(const Closure&, const class BackwardCtx&);
};

/// Access of a backward function to its node.
class BackwardCtx {
 public:
  explicit BackwardCtx(const Node& node) : node_(node) {}
  /// Tensor i of the saved list; a recipe computes it in each call.
  /// @throws Error if it was modified in place since it was saved
  Tensor saved(size_t i) const { return node_.saved[i].get(node_.op); }
  /// Whether tensor i of the saved list is defined.
  bool kept(size_t i) const { return node_.saved[i].defined(); }
  /// A new Var with the value saved(i), which must be that of input i. It requires a gradient if input i does.
  Var leaf(size_t i) const;
  /// Whether input i wants a gradient.
  bool needs(size_t i) const { return node_.inputs[i] != nullptr; }
  /// Whether a gradient reached output i.
  bool has(size_t i) const { return node_.outputs[i]->written; }
  /// The gradient of output i; zeros if none reached it.
  Tensor out_grad(size_t i = 0) const;
  /// The same in the form that the node's maker set as `wanted`: rows in 8 bits are made here if the contributor did
  /// not write them.
  Gradient out_gradient(size_t i = 0) const;
  /// Destination of input i's gradient; may be called once per node and input, only if needs(i).
  GradTarget grad(size_t i) const { return node_.inputs[i]->target(); }
  /// As grad(i), or an undefined tensor if input i wants none.
  GradTarget grad_if_needed(size_t i) const { return needs(i) ? grad(i) : GradTarget{}; }
  /// Takes the sum of the contributions to input i's gradient so far, to which the caller adds its own before it
  /// rounds: the sum of both goes to `pass`. Undefined if there is none, or input i wants no gradient.
  Tensor take(size_t i) const;
  /// The form in which input i's gradient is wanted, if it comes from this node alone; otherwise `values`.
  GradientForm wanted(size_t i) const;
  /// Adds `contribution` to input i's gradient. The first contribution is shared, not copied, unless input i is a leaf.
  /// It may have rows, or be rows alone, if `wanted` says so.
  void pass(size_t i, const Gradient& contribution) const;

 private:
  const Node& node_;
};

/// The list of recorded operations. While a Tape is alive, operations of this thread with an input that requires a
/// gradient are appended to it; without one nothing is recorded. The order of recording is a topological order, so
/// `backward` takes nodes from the end, and frees the memory of each node after its use.
class Tape {
 public:
  Tape() : Tape(true) {}
  ~Tape();
  Tape(const Tape&) = delete;
  static Tape* current();

  /// Computes the gradient of Σ weights_i · losses_i for every leaf; each loss has one element. Empties the tape.
  /// @throws ShapeError; Error if a loss requires no gradient, or has a fixed weight other than 1 (see head_loss)
  void backward(const std::vector<Var>& losses, const std::vector<double>& weights);
  void backward(const Var& loss) { backward({loss}, std::vector<double>{1}); }
  /// The same from any outputs with given gradients; an undefined gradient counts as zero.
  void backward(const std::vector<Var>& outputs, const std::vector<Tensor>& gradients);
  size_t size() const { return nodes_.size(); }
  /// Bytes kept for the backward pass, by op name.
  std::map<std::string, int64_t> saved_bytes() const;

 private:
  friend class NoTape;
  friend std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs);
  friend void record_place(Node&& node);
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
void record_place(Node&& node);

/// Has the backward pass call `f` when it comes back to this place: of what is recorded later, all is done then, and of
/// what came before, nothing. `f` may capture numbers and addresses only. Without a Tape it is never called.
template <class Function>
void on_return(Function f) {
  if (!Tape::current()) return;
  const auto call = [](const Closure& closure, const BackwardCtx&) { closure.as<Function>()(); };
  record_place(Node{"return", {}, {}, {}, Closure(f), call});
}

/// Makes Vars of computed outputs. If there is a current Tape and an input requires a gradient, records a node with
/// `backward`.
template <class Backward>
std::vector<Var> record(const char* op, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs,
                        std::vector<SavedTensor> saved, Backward backward) {
  const auto call = [](const Closure& closure, const BackwardCtx& ctx) { closure.as<Backward>()(ctx); };
  return record_node(Node{op, {}, {}, std::move(saved), Closure(backward), call}, inputs, std::move(outputs));
}

/// Returns `f(inputs)`, a vector of Vars, and saves only the inputs: the backward pass calls `f` again. `f` may capture
/// numbers and addresses only. Parameters that `f` uses without being inputs get their gradients too.
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
