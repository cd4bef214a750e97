#pragma once
#include <array>
#include <functional>
#include <vector>

#include "core/ranks/gpu_peers.h"
#include "layers/step_context.h"
#include "optim/optimizer.h"
#include "train/run/beside.h"

namespace mmfree {

/// Adds the gradients of all ranks. Those of a rank are a subtree of the leaves' tree, and ranks add in that tree's
/// order, so the bits do not depend on their number. Each rank gets its piece of the flat buffer from all others, chunk
/// by chunk, and adds it: its own piece if the store is divided, else one as large as any.
///
/// GPUs that can read each other's memory do so by copy engines, beside the backward pass: as soon as it is through
/// with some parameters, every rank tells the others, and who owns a piece of them fetches and adds it. What is final
/// last, of the first mixer and the embedding, nothing hides: each rank adds a share of it, from which the owners fetch
/// the sums. Otherwise (NCCL, MPI, TCP) all is exchanged behind the backward pass.
class GradientExchange {
 public:
  /// The store's gradients must be allocated, in the group's exchange_arena where others are to read them.
  GradientExchange(ParamStore& params, Optimizer& optimizer, Group& group);
  GradientExchange(const GradientExchange&) = delete;
  /// Lets GPUs read each other's gradients, and what else the group gathers, if they can. beside: each backward pass
  /// that calls `reached` gives the gradients of a step, whole. Collective, as all that follows; before the first step.
  void open(bool beside);

  /// For LM::loss of the step's last micro-batch: starts to exchange what is final; null: nothing is exchanged there.
  const Reached* reached() const { return beside_ ? &reached_ : nullptr; }
  /// Behind that backward pass: waits for the exchange that it started.
  void join();
  /// Exchanges what was not yet. Afterwards this rank's piece of the store's gradients holds the sums.
  void finish();
  /// The same with a backward pass's gradients as a flat buffer [P], of a store that divides its own.
  void add(const Tensor& gradients);
  /// Between two exchanges: by the first each rank knows that all have finished, by the second that all have settled.
  void settle();
  /// Of an undivided store: gives all ranks all sums.
  void share();

 private:
  bool is_hidden(size_t parameter) const;
  void exchange_from(size_t parameter, bool by_shares);
  void add_from(const Range& range, int mark);
  void take_shares(const Range& span);
  void in_chunks(const Range& range, const std::function<void(size_t way, bool first, const Range& chunk)>& run);
  Range own_part(const Range& range) const;
  void add_chunk(const Tensor& others, const Tensor& mine, const Range& range);
  Range chunk(size_t rank, int64_t i) const;
  std::array<Tensor, 2> make_rooms() const;

  ParamStore& params_;
  Optimizer& optimizer_;
  Group& group_;
  Bounds bounds_;                ///< of the ranks' pieces
  int64_t chunk_;                ///< elements
  gpu::Peers* peers_ = nullptr;  ///< null: not that way
  std::array<Tensor, 2> rooms_;  ///< with peers, or counted in a dry run: see make_rooms
  bool beside_ = false;
  Reached reached_;
  int64_t end_;                 ///< gradients from here on are exchanged or on their way
  int mark_ = 0;                ///< the next one
  Beside side_;                 ///< for marks, or for exchanges without peers
  std::array<Beside, 2> ways_;  ///< of each room, what is fetched and added there
};

}  // namespace mmfree
