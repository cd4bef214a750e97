#pragma once
#include <functional>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "layers/model_config.h"
#include "optim/optim_config.h"
#include "train/config/train_config.h"

namespace mmfree {

/// Everything a run is told.
struct RunConfig {
  ModelConfig model;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  std::string source;  ///< file the configuration came from; not a key
};

/// The model whose keys hold where neither file nor overrides give a `model` key, for a run with train.init_from.
using ModelDefaults = std::function<ModelConfig(const TrainConfig&)>;

/// Reads a YAML file and lays `overrides` ("optim.lr=1e-3"; later ones win; lists and maps as YAML in flow style) over
/// it. Keys that neither names keep their defaults; those of `model` come from `model_defaults` if train.init_from is
/// given. Throws MissingError if the file cannot be read and otherwise ConfigError with every problem found, each on
/// one line: `configs/x.yaml:13: unknown key 'optim.lrr' (did you mean 'lr'?)`; problems of overrides are located at
/// `command line`.
RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {},
                      const ModelDefaults& model_defaults = {});

/// The same for YAML in memory; `source` names it in messages and gives the default run_dir.
RunConfig load_config_text(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides = {}, const ModelDefaults& model_defaults = {});

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
