#pragma once
#include <optional>
#include <string>
#include <vector>

#include "data/h5/h5.h"
#include "optim/optimizer.h"
#include "train/config/config.h"

namespace mmfree {

/// Where training stands, besides parameters and moments. Everything that the next step depends on.
struct LoopState {
  int64_t step = 0;     ///< optimizer steps done; 0 in an imported model
  int64_t updates = 0;  ///< of these, updates not skipped
  int64_t skipped_in_row = 0;
  int64_t tokens = 0;  ///< target tokens trained on
  std::string data;    ///< fingerprint of the training shards
};

/// Parameters and what the optimizer remembers of them, as flat buffers of a ParamStore's layout.
struct FlatState {
  Tensor values;
  std::vector<OptimizerState> states;  ///< none: a model that is not trained on
};

/// What a checkpoint with `states` states of the optimizer will take on the disk, a little more rather than less.
int64_t checkpoint_bytes(const ParamStore& layout, size_t states, const std::string& tokenizer_model);

/// Writes a checkpoint: an h5 file of kind "checkpoint" with datasets param/NAME and STATE/NAME for each state of the
/// optimizer, such as adam_m/NAME and adam_v/NAME (f32, in the published state dict's names and shapes), `tokenizer`
/// (the SentencePiece model's bytes, if any) and attributes config (YAML), step, updates, skipped_in_row, tokens, data.
/// Atomic: on any error an older file at `path` is whole. Needs the same memory for a model of any size. The disk's
/// free space is checked first. `layout` says where `flat`, on any device, holds what. A NaN or an infinity in it is
/// refused: what is saved is good.
/// @throws CreateError, IoError, DivergedError
void save_checkpoint(const std::string& path, const RunConfig& config, const ParamStore& layout, const FlatState& flat,
                     const LoopState& state, const std::string& tokenizer_model);

/// A checkpoint opened for reading, verified against its hash; its parameters have the shapes its configuration gives,
/// so that a model of that size may be allocated. @throws MissingError, DataError, IoError
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path);
  const RunConfig& config() const { return config_; }
  const LoopState& state() const { return state_; }
  /// Whether an optimizer's states are there: an imported model has none.
  bool has_states() const;
  /// Bytes of the tokenizer model; empty if the checkpoint has none.
  std::string tokenizer_model() const;
  /// Fills every parameter, and the optimizer's states when given. @throws DataError naming a missing or misshapen
  /// tensor
  void load(ParamStore& params, Optimizer* optimizer) const;

 private:
  void require(const std::string& name, const Shape& shape) const;
  void read_into(const std::string& name, const Tensor& to) const;
  h5::Reader reader_;
  RunConfig config_;
  LoopState state_;
  std::vector<ParamSpec> specs_;
};

/// checkpoints/step-00001000.h5 inside a run folder.
std::string checkpoint_path(const std::string& run_dir, int64_t step);

/// Steps of the checkpoints in a run folder, ascending; damaged ones included. None if there is no such folder.
/// @throws IoError if it cannot be listed
std::vector<int64_t> checkpoint_steps(const std::string& run_dir);

/// The newest intact checkpoint of a run folder; one line per damaged one goes to `warnings`. Empty if there is none.
/// @throws IoError as checkpoint_steps
std::optional<std::string> newest_checkpoint(const std::string& run_dir, std::vector<std::string>& warnings);

/// Of the checkpoints up to step `newest`, which was just written, removes all but the last `keep`, once `newest` reads
/// back intact. Later ones stay and do not count, and so does what cannot be removed.
/// @throws what Checkpoint throws if `newest` is not intact; then none is removed
void retain_checkpoints(const std::string& run_dir, int64_t newest, int64_t keep);

/// Renames the checkpoints of later steps than `step`, which could not be read, to NAME.damaged or a name like it that
/// is free: one that turns up again would have gaps in its metrics, and none of them counts as one to keep. One that
/// cannot be renamed stays. Returns the new names. @throws IoError
std::vector<std::string> set_aside(const std::string& run_dir, int64_t step);

/// Removes the temporary files that killed saves left beside the checkpoints. No save may be under way in this folder.
void remove_unfinished_checkpoints(const std::string& run_dir);

}  // namespace mmfree
