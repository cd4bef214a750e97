#pragma once
#include <functional>
#include <string>
#include <vector>

#include "data/h5/h5.h"
#include "optim/optimizer.h"
#include "train/config/config.h"
#include "train/run/loop_state.h"

namespace mmfree {

/// Parameters and what the optimizer remembers of them, as flat buffers of a ParamStore's layout, and the recurrent
/// state that the next step starts from. Of several ranks that share them, this one's pieces.
struct FlatState {
  Tensor values;
  std::vector<OptimizerState> states;  ///< none: a model that is not trained on
  DecodeState carried{};               ///< empty without data.carry_state
  Share share{};
};

/// An upper estimate of the size on the disk of a checkpoint.
int64_t checkpoint_bytes(const ParamStore& layout, const FlatState& flat, const std::string& tokenizer_model);

/// Writes a checkpoint: an h5 file of kind "checkpoint" with datasets param/NAME and STATE/NAME for each state of the
/// optimizer, such as adam_m/NAME and adam_v/NAME (f32), state/LAYER/INDEX of the carried state (f32), `tokenizer` (the
/// SentencePiece model's bytes, if any) and attributes config (YAML), step, updates, skipped_in_row, tokens, data, loop
/// (the rest of LoopState as JSON; absent in older ones).
/// Atomic: on any error an older file at `path` is whole. Memory does not grow with the model. The disk's free space is
/// checked first. `layout` maps names to parts of `flat`, which may be on any device. A NaN or an infinity is refused,
/// so every saved checkpoint is finite. `parameter`: gives parameter i of a flat buffer, of which `flat` may have a
/// piece only; by default that of `layout`.
/// @throws CreateError, IoError, DivergedError
using ParameterOf = std::function<Tensor(size_t i, const Tensor& flat)>;
void save_checkpoint(const std::string& path, const RunConfig& config, const ParamStore& layout, const FlatState& flat,
                     const LoopState& state, const std::string& tokenizer_model, const ParameterOf& parameter = {});

/// A checkpoint opened for reading; its parameters have the shapes its configuration gives, so that a model of that
/// size may be allocated. With Verify::while_reading it is damaged or not only once load() or verify() has returned.
/// @throws MissingError, DataError, IoError
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path, h5::Verify verify = h5::Verify::everything);
  const std::string& path() const { return reader_.path(); }
  const RunConfig& config() const { return config_; }
  const LoopState& state() const { return state_; }
  /// Whether an optimizer's states are there: an imported model has none.
  bool has_states() const;
  /// Bytes of the tokenizer model; empty if the checkpoint has none.
  std::string tokenizer_model() const;
  /// Compares the content with its hash, unless that is done. @throws DataError if the file is damaged, IoError
  void verify() const { reader_.verify_content(); }
  /// Fills every parameter, the optimizer's states when given (of a divided store what it holds), and the tensors of
  /// `carried`, then verifies the file; all in one pass over it. With `all_rows` the tensors are rows of as many, from
  /// `first_row` on.
  /// @throws DataError if it is damaged, or naming a missing or misshapen tensor; ConfigError if it holds no such
  /// carried state. What was filled is then not to be used
  void load(ParamStore& params, Optimizer* optimizer, const DecodeState& carried = DecodeState(), int64_t first_row = 0,
            int64_t all_rows = 0) const;

 private:
  void require(const std::string& name, const Shape& shape) const;
  void read_into(const std::string& name, const Tensor& to) const;
  void read_part(const std::string& name, const ParamStore& params, size_t i, const Tensor& piece) const;
  void read_rows(const std::string& name, int64_t first, const Tensor& to) const;
  h5::Reader reader_;
  RunConfig config_;
  LoopState state_;
  std::vector<ParamSpec> specs_;
};

}  // namespace mmfree
