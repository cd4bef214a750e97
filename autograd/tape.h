#pragma once
#include <cstddef>
#include <map>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "autograd/var.h"

namespace mmfree {

/// A tensor kept for the backward pass, with the version it had then.
struct SavedTensor {
  Tensor tensor;
  uint64_t version;
};

/// One recorded operation. Holds gradient slots, never values: what backward needs is in `saved` and nowhere else.
struct Node {
  static constexpr size_t kClosureBytes = 64;
  const char* op;
  std::vector<std::shared_ptr<GradSlot>> inputs, outputs;  ///< null where no gradient is wanted
  std::vector<SavedTensor> saved;
  alignas(std::max_align_t) std::byte closure[kClosureBytes];
  void (*call)(const std::byte* closure, const class BackwardCtx&);
};

/// What a backward function sees of its node.
class BackwardCtx {
 public:
  explicit BackwardCtx(const Node& node) : node_(node) {}
  /// Tensor i of the saved list. @throws Error if it was modified in place since it was saved.
  const Tensor& saved(size_t i) const;
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
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  static Tape* current();

  /// Propagates d(loss) = 1 from a one-element loss to every leaf; empties the tape. @throws Error, ShapeError
  void backward(const Var& loss);
  size_t size() const { return nodes_.size(); }
  /// Bytes kept for the backward pass, by op name.
  std::map<std::string, int64_t> saved_bytes() const;

 private:
  friend std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs,
                                      const std::vector<Tensor>& saved);
  std::vector<Node> nodes_;
  Tape* outer_;
};

std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs,
                             const std::vector<Tensor>& saved);

/// Turns computed outputs into Vars; if a Tape is alive and an input wants a gradient, records `backward` for them.
/// `backward(const BackwardCtx&)` may capture plain numbers only: every tensor it needs goes through `saved`, where it
/// is counted, version-checked and freed.
template <class Backward>
std::vector<Var> record(const char* op, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs,
                        const std::vector<Tensor>& saved, Backward backward) {
  static_assert(std::is_trivially_copyable_v<Backward>,
                "a backward closure captures plain numbers only; tensors go through `saved`");
  static_assert(sizeof(Backward) <= Node::kClosureBytes);
  Node node;
  node.op = op;
  new (node.closure) Backward(backward);
  node.call = [](const std::byte* closure, const BackwardCtx& ctx) {
    (*std::launder(reinterpret_cast<const Backward*>(closure)))(ctx);
  };
  return record_node(std::move(node), inputs, std::move(outputs), saved);
}

}  // namespace mmfree
