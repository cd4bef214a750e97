#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "layers/model_config.h"
#include "optim/optim_config.h"

namespace mmfree {

/// How long, how much at once, and what is written down (section `train`).
struct TrainConfig {
  int64_t steps = 1000;            ///< optimizer steps of the whole run
  int64_t batch_size = 16;         ///< sequences per optimizer step
  int64_t micro_batch_size = 0;    ///< sequences per forward pass, divides batch_size; 0: batch_size
  int64_t seed = 1;                ///< of initial weights and data order
  std::string device = "auto";     ///< auto (a GPU if there is one), cpu, cuda or cuda:N
  std::string compute = "auto";    ///< dtype of activations: auto (bf16 on a GPU, f32 on the CPU), f32, bf16
  std::string recompute = "auto";  ///< Recompute, or auto: selective on a GPU, none on the CPU
  bool capture = true;             ///< GPU: record the step as a graph and replay it
  int64_t threads = 0;             ///< OpenMP threads; 0: OpenMP's own default
  int64_t log_every = 10;          ///< steps between lines of progress and metrics
  int64_t eval_every = 0;          ///< steps between evaluations; 0: only at the end
  int64_t eval_tokens = 0;         ///< most tokens per evaluation during training; 0: all
  int64_t save_every = 0;          ///< steps between checkpoints; 0: only at the end
  int64_t keep_last = 3;           ///< checkpoints kept
  std::string resume =
      "false";          ///< false; true: the newest checkpoint of run_dir; auto: the same if there is one; a path
  std::string run_dir;  ///< where everything is written; load_config fills in runs/<stem of the file>
  double max_time = 0;  ///< seconds after which to save and stop; 0: no limit
  std::string on_save_error = "continue";  ///< continue or stop when a checkpoint or metrics cannot be written
  int64_t skip_limit = 10;                 ///< consecutive steps with non-finite loss or gradient before giving up

  /// Sequences per forward pass after the rule above is applied.
  int64_t micro_batch() const { return micro_batch_size > 0 ? micro_batch_size : batch_size; }
};

/// Everything a run is told.
struct RunConfig {
  ModelConfig model;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  std::string source;  ///< file the configuration came from; not a key
};

/// Reads a YAML file and lays `overrides` ("optim.lr=1e-3"; later ones win; lists and maps as YAML in flow style) over
/// it. Keys that neither names keep their defaults. Throws MissingError if the file cannot be read and otherwise
/// ConfigError with every problem found, each on one line: `configs/x.yaml:13: unknown key 'optim.lrr' (did you mean
/// 'lr'?)`; problems of overrides are located at `command line`.
RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {});

/// The same for YAML in memory; `source` names it in messages and gives the default run_dir.
RunConfig load_config_text(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides = {});

/// The configuration inside the file `path`. @throws DataError, one line with the first problem
RunConfig load_stored_config(const std::string& text, const std::string& path);

/// Every key with its value; load_config_text reads back an equal configuration (an empty run_dir gets its default).
std::string to_yaml(const RunConfig& config);

/// One key whose value differs between two configurations.
struct ConfigChange {
  std::string key, before, after;
  bool dangerous = false;  ///< a resumed run would not continue the same training: model.*, data order, batch or seed
  std::string text() const { return key + ": " + before + " -> " + after; }
};

/// The changed keys in the order of to_yaml.
std::vector<ConfigChange> compare(const RunConfig& before, const RunConfig& after);

/// Every key with its type, default and meaning, as shown by `mmfree train --help-config`.
std::string config_reference();

}  // namespace mmfree
