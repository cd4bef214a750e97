#include "train/config/config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <optional>
#include <set>

#include "core/error.h"
#include "optim/schedule.h"
#include "train/config/fields.h"
#include "train/config/tree.h"

namespace mmfree {
namespace {

/// Line of "section.key"; if the key is not given, the line of its section; without that Problems::kNoLine. For
/// "section.list[2].key" the line of the list.
int line_of(const ConfigNode& root, const std::string& path) {
  const size_t dot = path.find('.');
  const ConfigNode* section = root.find(path.substr(0, dot));
  if (!section) return Problems::kNoLine;
  const ConfigNode* node = section->find(path.substr(dot + 1, path.find('[') - dot - 1));
  return node ? node->line : section->key_line;
}

/// Whether the file or an override gives "section.key".
bool given(const ConfigNode& root, const std::string& path) {
  const size_t dot = path.find('.');
  const ConfigNode* section = root.find(path.substr(0, dot));
  const ConfigNode* node = section && !section->reset ? section->find(path.substr(dot + 1)) : nullptr;
  return node && !node->reset;
}

/// RunConfig::origins. `inherited`: train.init_from gives the model's defaults.
std::map<std::string, std::string> origins_of(RunConfig config, const ConfigNode& root, const std::string& source,
                                              bool inherited) {
  std::map<std::string, std::string> origins;
  all_fields(config, [&](const std::string& path, const auto&, const auto&, const char*) {
    const bool of_source = inherited && path.starts_with("model.");
    const int line = line_of(root, path);
    origins[path] = !given(root, path) ? (of_source ? "train.init_from" : "default")
                    : line == 0        ? "command line"
                                       : concat(source, ":", line);
  });
  return origins;
}

/// One of the keys that give the same length in several units.
struct LengthKey {
  const char* key;
  bool asks;  ///< whether it has a value that gives the length
  std::function<void()> take_back;
};

/// Takes the others back if one of `keys` is on the command line. Returns by which each was replaced.
std::map<std::string, std::string> prefer_command_line(const ConfigNode& root, const std::vector<LengthKey>& keys) {
  const auto typed = [&](const LengthKey& k) { return k.asks && given(root, k.key) && line_of(root, k.key) == 0; };
  const auto winner = std::find_if(keys.begin(), keys.end(), typed);
  std::map<std::string, std::string> replaced;
  if (winner == keys.end()) return replaced;
  for (const LengthKey& k : keys) {
    if (!k.asks || typed(k)) continue;
    k.take_back();
    replaced[k.key] = winner->key;
  }
  return replaced;
}

/// The same for the lengths of the run and of its warm-up.
std::map<std::string, std::string> prefer_typed_lengths(RunConfig& config, const ConfigNode& root) {
  TrainConfig& t = config.train;
  OptimConfig& o = config.optim;
  std::map<std::string, std::string> replaced =
      prefer_command_line(root, {{"train.steps", t.steps > 0, [&] { t.steps = 0; }},
                                 {"train.tokens", t.tokens > 0, [&] { t.tokens = 0; }},
                                 {"train.epochs", t.epochs > 0, [&] { t.epochs = 0; }}});
  replaced.merge(
      prefer_command_line(root, {{"optim.warmup_steps", o.warmup_steps >= 0, [&] { o.warmup_steps = -1; }},
                                 {"optim.warmup_tokens", o.warmup_tokens > 0, [&] { o.warmup_tokens = 0; }}}));
  return replaced;
}

/// Checks the weights of sources and stages.
template <class Rule>
void check_mixture(const DataConfig& data, const Rule& rule) {
  constexpr size_t kMostSources = 1024;
  const size_t sources = data.sources.size();
  double sum = 0;
  for (const DataSource& source : data.sources) sum += source.weight;
  rule("data.sources", "data.sources", sources <= kMostSources && (sources == 0 || sum > 0), sources,
       " sources of weight ", sum, " in all, expected at most ", kMostSources, " and one or more weights above 0");
  int64_t before = 0;
  for (size_t i = 0; i < data.stages.size(); ++i) {
    const DataStage& stage = data.stages[i];
    const double weight = std::accumulate(stage.weights.begin(), stage.weights.end(), 0.0);
    rule("data.stages", "data.sources", stage.weights.size() == sources && weight > 0, "stage ", i, " has ",
         stage.weights.size(), " weights of sum ", weight, ", expected one for each of ", sources,
         " sources and one or more above 0");
    rule("data.stages", "data.stages", stage.from_tokens > before, "stage ", i, " begins at token ", stage.from_tokens,
         ", expected more than ", before);
    before = stage.from_tokens;
  }
}

/// Checks the names of the evaluation sets, which become parts of keys.
template <class Rule>
void check_eval_sets(const DataConfig& data, const Rule& rule) {
  constexpr size_t kMostSets = 64, kMostName = 64;
  rule("data.eval_sets", "data.valid", data.eval_sets.empty() || !data.valid.empty(),
       "they are evaluated with data.valid, which is empty");
  rule("data.eval_sets", "data.eval_sets", data.eval_sets.size() <= kMostSets, data.eval_sets.size(),
       " sets, expected at most ", kMostSets);
  std::set<std::string> names;
  for (const EvalSet& set : data.eval_sets) {
    const bool plain = std::all_of(set.name.begin(), set.name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
             c == '-';
    });
    rule("data.eval_sets", "data.eval_sets", plain && !set.name.empty() && set.name.size() <= kMostName, "name ",
         quote(set.name), ", expected up to ", kMostName, " letters, digits, '.', '_' and '-'");
    rule("data.eval_sets", "data.eval_sets", names.insert(set.name).second, "two sets are called ", quote(set.name));
  }
}

/// Checks the lengths of the run and of its warm-up, each in one unit.
template <class Rule>
void check_length(const RunConfig& config, const Rule& rule) {
  const TrainConfig& t = config.train;
  const char* other = t.tokens > 0 ? "train.tokens" : "train.epochs";
  rule("train.epochs", "train.tokens", t.tokens == 0 || t.epochs == 0,
       "train.tokens gives the length too; remove one of them");
  rule("train.steps", other, t.steps == 0 || (t.tokens == 0 && t.epochs == 0), other,
       " gives the length too; remove one of them");
  rule("train.steps", other, t.steps > 0 || t.tokens > 0 || t.epochs > 0,
       "0, expected 1 or more, or a length in train.tokens or train.epochs");
  rule("optim.warmup_steps", "train.steps", t.steps == 0 || config.optim.warmup_steps <= t.steps,
       config.optim.warmup_steps, " is more than train.steps (", t.steps, ")");
  rule("optim.warmup_tokens", "optim.warmup_steps", config.optim.warmup_tokens == 0 || config.optim.warmup_steps < 0,
       "optim.warmup_steps gives the length of the warm-up too; remove one of them");
}

/// Checks rules between keys. A rule is skipped if one of its keys already has a problem.
void check_relations(const RunConfig& config, const ConfigNode& root, Problems& problems) {
  const auto rule = [&](const char* key, const char* other, bool holds, const auto&... message) {
    if (!holds && !problems.failed(key) && !problems.failed(other))
      problems.add(line_of(root, key), key, concat(key, ": ", message...));
  };
  const TrainConfig& train = config.train;
  rule("train.leaves", "train.batch_size", train.leaves == 0 || train.splits_into(train.leaves), train.leaves,
       " is no power of two that divides train.batch_size (", train.batch_size, ")");
  rule("train.micro_batch_size", "train.batch_size", train.leaf_rows() % train.micro_batch() == 0,
       train.micro_batch_size, " does not divide the ", train.leaf_rows(), " sequences of ",
       train.leaves > 1 ? "a leaf (train.batch_size / train.leaves)" : "train.batch_size");
  check_length(config, rule);
  rule("train.eval_every", "data.valid", train.eval_every == 0 || !config.data.valid.empty(), train.eval_every,
       " asks for evaluations but data.valid is empty");
  const bool evaluates = train.eval_every > 0;
  rule("train.keep_best", "train.eval_every", !train.keep_best || evaluates,
       "there is no evaluation to compare by; set train.eval_every");
  rule("train.early_stop", "train.eval_every", train.early_stop == 0 || evaluates, train.early_stop,
       " evaluations, but train.eval_every is 0; set it");
  rule("train.keep_every", "train.save_every",
       train.keep_every == 0 || (train.save_every > 0 && train.keep_every % train.save_every == 0), train.keep_every,
       " is no multiple of train.save_every (", train.save_every, "), where checkpoints are saved");
  rule("train.rollback", "train.save_every", train.rollback == 0 || train.save_every > 0,
       "there is no checkpoint to go back to; set train.save_every");
  rule("train.skip_outliers", "train.skip_outliers", train.skip_outliers == 0 || train.skip_outliers > 1,
       train.skip_outliers, ", expected 0 or more than 1: a gradient norm at the mean is no outlier");
  rule("data.sources", "data.train", config.data.sources.empty() || config.data.train.empty(),
       "takes the place of data.train; remove one of them");
  check_mixture(config.data, rule);
  check_eval_sets(config.data, rule);
  rule("data.carry_state", "data.sources", !config.data.carry_state || config.data.sources.size() < 2,
       "rows follow one source, not several; name one, or set it to false");
  const bool attends = std::any_of(config.model.layers.begin(), config.model.layers.end(), [&](const LayerEntry& e) {
    return e.token.value_or(config.model.token) == TokenKind::attention;
  });
  rule("data.carry_state", "model.token",
       !config.data.carry_state || !(config.model.uniform() ? config.model.token == TokenKind::attention : attends),
       "the keys and values of attention grow with every token; set it to false");
  rule("train.init_from", "train.resume", train.init_from.empty() || train.resume.mode != ResumeFrom::checkpoint,
       "a run starts from this model's weights or continues train.resume's checkpoint (", quote(train.resume.path),
       "), not both; remove one of them");
  if (problems.failed("model")) return;
  try {
    config.model.validate();
  } catch (const ConfigError& error) {
    const std::string message = error.what(), key = message.substr(0, message.find(':'));
    problems.add(line_of(root, key), key, message);
  }
}

/// Reads a file or, unlike read_file, a pipe, as in `mmfree train <(make_config)`.
std::string read_configuration(const std::string& path) {
  constexpr std::streamsize kMost = (1 << 20) + 1;  // one byte more than parse_config_tree accepts
  MMFREE_CHECK(MissingError, !std::filesystem::is_directory(path), path, ": is a directory, expected a YAML file");
  std::ifstream in(path, std::ios::binary);
  MMFREE_CHECK(MissingError, in.is_open(), path, ": cannot open this configuration; does it exist?");
  std::string text(kMost, '\0');
  in.read(text.data(), kMost);
  MMFREE_CHECK(MissingError, !in.bad(), path, ": cannot read this configuration");
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

std::string default_run_dir(const std::string& source) {
  return (std::filesystem::path("runs") / std::filesystem::path(source).stem()).string();
}

/// Reads the section `train` alone. Its problems are not kept here: they are found again when the whole file is read.
TrainConfig train_section(const ConfigNode& root, const std::string& source) {
  TrainConfig train;
  Problems elsewhere(source);
  Section section(root.find("train"), "train", elsewhere);
  fields(train, section);
  if (train.run_dir.empty()) train.run_dir = default_run_dir(source);
  return train;
}

/// A model that becomes ternary keeps its head as it was, as in BitNet b1.58, unless the rules say something about it.
/// `source` is the model before.
void keep_head(ModelConfig& model, const ModelConfig& source, const ConfigNode& root) {
  const std::string head = "lm_head";
  const Precision before = source.layer(-1).precision_of(head);
  if (given(root, "model.precision_rules") || before == Precision::ternary ||
      model.layer(-1).precision_of(head) != Precision::ternary)
    return;
  model.precision_rules.push_back({{}, {head}, before, source.layer(-1).inner_norm_of(head)});
}

/// Keys that say nothing about what is computed from the tokens.
bool describes_only(const std::string& key) {
  return key == "model.bos_token_id" || key == "model.eos_token_id" || key == "model.max_position_embeddings";
}

/// Whether the sources of the data have the same weights; their shards are known by their content.
bool mixed_alike(const RunConfig& a, const RunConfig& b) {
  const auto same = [](const DataSource& x, const DataSource& y) { return x.weight == y.weight; };
  return std::equal(a.data.sources.begin(), a.data.sources.end(), b.data.sources.begin(), b.data.sources.end(), same);
}

bool dangerous_on_resume(const std::string& key, const RunConfig& before, const RunConfig& after) {
  if (key == "data.sources") return !mixed_alike(before, after);
  return (key.starts_with("model.") && !describes_only(key)) || key == "data.seq_len" || key == "data.shuffle" ||
         key == "data.reset_state" || key == "data.carry_state" || key == "data.stages" || key == "train.batch_size" ||
         key == "train.leaves" || key == "train.seed" || key == "train.backward";
}

}  // namespace

RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides,
                      const ModelDefaults& model_defaults) {
  return load_config_text(read_configuration(path), path, overrides, model_defaults);
}

RunConfig load_config_text(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides, const ModelDefaults& model_defaults) {
  Problems problems(source);
  ConfigNode root = parse_config_tree(text, source, problems);
  for (const std::string& override_text : overrides) apply_override(root, override_text, problems);

  RunConfig config;
  std::optional<ModelConfig> inherited;
  if (model_defaults)
    if (const TrainConfig train = train_section(root, source); !train.init_from.empty())
      config.model = inherited.emplace(model_defaults(train));
  Section file(&root, "", problems);
  sections(config, [&](const char* name, auto& part) {
    Section section(file.take(name), name, problems);
    fields(part, section);
    section.finish();
  });
  file.finish();
  const std::map<std::string, std::string> replaced = prefer_typed_lengths(config, root);
  if ((config.train.tokens > 0 || config.train.epochs > 0) && !given(root, "train.steps")) config.train.steps = 0;
  if (!config.model.layers.empty() && !given(root, "model.num_hidden_layers"))
    config.model.num_hidden_layers = config.model.listed_layers();
  if (inherited) keep_head(config.model, *inherited, root);
  check_relations(config, root, problems);
  problems.throw_if_any();

  config.source = source;
  config.origins = origins_of(config, root, source, inherited.has_value());
  for (const auto& [key, by] : replaced) config.origins[key] = by;
  if (config.train.run_dir.empty()) config.train.run_dir = default_run_dir(source);
  return config;
}

RunConfig load_stored_config(const std::string& text, const std::string& path) {
  try {
    return load_config_text(text, path);
  } catch (const ConfigError& e) {
    const std::string all = e.what();
    throw DataError(concat(path, ": the configuration inside is not readable: ", all.substr(0, all.find('\n')),
                           "; if a newer mmfree wrote it, use that one"));
  }
}

std::string to_yaml(const RunConfig& config) {
  RunConfig copy = config;
  std::string text;
  sections(copy, [&](const char* name, auto& part) {
    text += concat(name, ":\n");
    fields(part, [&](const char* key, const auto& value, const auto& kind, const char*) {
      text += concat("  ", key, ": ", kind.print(value), "\n");
    });
  });
  return text;
}

std::string to_yaml_with_origins(const RunConfig& config) {
  constexpr size_t kColumn = 44;
  RunConfig copy = config;
  std::string text;
  sections(copy, [&](const std::string& name, auto& part) {
    text += name + ":\n";
    fields(part, [&](const char* key, const auto& value, const auto& kind, const char*) {
      std::string line = concat("  ", key, ": ", kind.print(value));
      line.resize(std::max(line.size(), kColumn), ' ');
      const auto origin = config.origins.find(name + "." + key);
      text += line + "  # " + (origin == config.origins.end() ? "unknown" : origin->second) + "\n";
    });
  });
  return text;
}

std::vector<ConfigKey> config_keys() {
  RunConfig defaults;
  std::vector<ConfigKey> keys;
  all_fields(defaults, [&](const std::string& path, const auto&, const auto& kind, const char* meaning) {
    ConfigKey key{path, meaning, {}};
    if constexpr (requires { kind.options; })
      for (const auto& option : kind.options) key.values.push_back(name_of(option));
    if constexpr (std::is_same_v<std::decay_t<decltype(kind)>, Flag>) key.values = {"true", "false"};
    keys.push_back(std::move(key));
  });
  return keys;
}

std::vector<ConfigChange> compare(const RunConfig& before, const RunConfig& after) {
  const auto values = [](RunConfig config) {
    std::vector<std::pair<std::string, std::string>> printed;
    all_fields(config, [&](const std::string& path, const auto& value, const auto& kind, const char*) {
      printed.emplace_back(path, kind.print(value));
    });
    return printed;
  };
  const auto was = values(before), is = values(after);
  std::vector<ConfigChange> changes;
  for (size_t i = 0; i < was.size(); ++i)
    if (was[i].second != is[i].second)
      changes.push_back({was[i].first, was[i].second, is[i].second, dangerous_on_resume(was[i].first, before, after)});
  return changes;
}

std::string config_reference() {
  RunConfig defaults;
  std::string text;
  all_fields(defaults, [&](const std::string& path, const auto& value, const auto& kind, const char* meaning) {
    text += concat(path, " = ", kind.print(value), "\n    ", meaning, " (", kind.type(), ")\n");
  });
  return text;
}

}  // namespace mmfree
