#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "layers/model_config.h"
#include "optim/optim_config.h"
#include "train/config/train_config.h"

namespace mmfree {

/// The whole configuration of a run.
struct RunConfig {
  ModelConfig model;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  std::string source;  ///< file the configuration came from; not a key
  /// Where load_config found each key's value: "configs/8m.yaml:3", "command line", "train.init_from" or "default".
  std::map<std::string, std::string> origins = {};
};

/// For a run with train.init_from: returns the model whose keys are the defaults of the section `model`.
using ModelDefaults = std::function<ModelConfig(const TrainConfig&)>;

/// Reads a YAML file and applies `overrides` ("optim.lr=1e-3"; later ones win; lists and maps as YAML in flow style;
/// "~optim.lr" as if no one had given the key; a length on the command line takes the place of one that the file gives
/// in another unit). A key that neither gives has its default; with train.init_from the defaults of `model` come from
/// `model_defaults`. If they have a head that is not ternary and model.precision makes the model ternary, a rule keeps
/// the head's precision, unless model.precision_rules is given.
/// @throws MissingError if the file cannot be read; ConfigError with every problem on a line of its own, such as
/// `configs/x.yaml:13: unknown key 'optim.lrr' (did you mean 'lr'?)`, or `command line: ...` for an override
RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {},
                      const ModelDefaults& model_defaults = {});

/// The same for YAML in memory; `source` names it in messages and gives the default run_dir.
RunConfig load_config_text(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides = {}, const ModelDefaults& model_defaults = {});

/// Parses `text`, the configuration stored in the file `path`, such as a checkpoint. @throws DataError, one line with
/// the first problem
RunConfig load_stored_config(const std::string& text, const std::string& path);

/// The configuration as YAML, with every key. load_config_text gives an equal configuration back, except that an empty
/// run_dir gets its default.
std::string to_yaml(const RunConfig& config);

/// One key whose value differs between two configurations.
struct ConfigChange {
  std::string key, before, after;
  bool dangerous = false;  ///< a resumed run would not continue the same training: model.*, data order, batch or seed
  std::string text() const { return key + ": " + before + " -> " + after; }
};

/// The changed keys in the order of to_yaml.
std::vector<ConfigChange> compare(const RunConfig& before, const RunConfig& after);

/// The configuration as YAML, with the origin of each value as a comment.
std::string to_yaml_with_origins(const RunConfig& config);

/// What the command line may be completed to: a key, and its values where these are a few words.
struct ConfigKey {
  std::string key, meaning;
  std::vector<std::string> values;
};
std::vector<ConfigKey> config_keys();

/// Every key with its type, default and meaning, as shown by `mmfree train --help-config`.
std::string config_reference();

}  // namespace mmfree
