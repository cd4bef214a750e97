#pragma once
#include "autograd/parameter.h"
#include "layers/model_config.h"
#include "train/config/train_config.h"
#include "train/run/checkpoint.h"

namespace mmfree {

/// How train.shard divides the parameters of a model among the ranks; not at all with Shard::none, or for a run's only
/// rank. A matrix has one owner; embedding table and head may have several, unless they are ternary.
Division divide(const ModelConfig& model, Group& group, Shard shard);

/// Rank 0's view of pieces that other ranks own, for a checkpoint; they must be in send_parts meanwhile. One thread of
/// each rank uses it beside training.
class Collector {
 public:
  explicit Collector(const Share& share) : share_(share) {}
  /// Ends send_parts in all other ranks.
  ~Collector();
  Collector(const Collector&) = delete;
  /// Parameter i of the flat buffer of which `mine` is rank 0's piece; on the host if others have a part in it.
  Tensor parameter(const ParamStore& layout, size_t i, const Tensor& mine);

 private:
  Share share_;
};

/// Sends rank 0 this rank's pieces of `flat`, in the order in which save_checkpoint wants them, until it has all or
/// wants no more.
void send_parts(const ParamStore& layout, const FlatState& flat);

}  // namespace mmfree
