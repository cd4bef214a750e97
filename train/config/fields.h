#pragma once
#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "train/config/config.h"
#include "train/config/tree.h"

/// The only place that names the configuration's keys. `fields(config, visit)` calls visit(key, value, kind, meaning)
/// for each key of a struct. Reading, writing, comparing and the reference text are visitors. A kind says what values a
/// key may have: read() stores a node's value or reports a problem, print() returns YAML that read() accepts, and
/// type() describes the values for people.
namespace mmfree {

struct Integer {
  int64_t least = 0, most = std::numeric_limits<int64_t>::max();
  void read(const ConfigNode& node, int64_t& value, const std::string& path, Problems& problems) const;
  void read(const ConfigNode& node, int& value, const std::string& path, Problems& problems) const;
  std::string print(int64_t value) const { return std::to_string(value); }
  std::string type() const;
};

struct Real {
  double least = 0, most = std::numeric_limits<double>::infinity();
  bool open_below = false, open_above = false;  ///< the bound itself is excluded
  void read(const ConfigNode& node, double& value, const std::string& path, Problems& problems) const;
  std::string print(double value) const;
  std::string type() const;
};

/// A duration in seconds: 90, 45s, 90m, 2h30m, 1d12h.
struct Seconds {
  void read(const ConfigNode& node, double& value, const std::string& path, Problems& problems) const;
  std::string print(double value) const { return Real{}.print(value); }
  std::string type() const { return "seconds or a duration such as 90m or 2h30m"; }
};

struct Flag {
  void read(const ConfigNode& node, bool& value, const std::string& path, Problems& problems) const;
  std::string print(bool value) const { return value ? "true" : "false"; }
  std::string type() const { return "true or false"; }
};

struct Text {
  bool may_be_empty = true;
  void read(const ConfigNode& node, std::string& value, const std::string& path, Problems& problems) const;
  std::string print(const std::string& value) const;
  std::string type() const { return "text"; }
};

inline const std::string& name_of(const std::string& text) { return text; }

/// One of a few names: an enumeration with a name_of, or strings.
template <class T>
struct Choice {
  std::vector<T> options;
  void read(const ConfigNode& node, T& value, const std::string& path, Problems& problems) const {
    for (const T& option : options)
      if (node.kind == ConfigNode::Kind::scalar && node.text == name_of(option)) {
        value = option;
        return;
      }
    problems.add(node.line, path, path + ": expected " + type() + ", found " + node.describe());
  }
  std::string print(const T& value) const { return name_of(value); }
  std::string type() const {
    std::string text;
    for (const T& option : options) text += (text.empty() ? "" : "|") + std::string(name_of(option));
    return text;
  }
};

template <class T, size_t N>
Choice<T> choice_of(const T (&all)[N]) {
  return {std::vector<T>(all, all + N)};
}

/// Any number of values of one kind; a single value stands for a list of it.
template <class Kind>
struct ListOf {
  Kind item;
  template <class T>
  void read(const ConfigNode& node, std::vector<T>& values, const std::string& path, Problems& problems) const {
    values.clear();
    if (node.kind != ConfigNode::Kind::list) return item.read(node, values.emplace_back(), path, problems);
    for (size_t i = 0; i < node.items.size(); ++i)
      item.read(node.items[i], values.emplace_back(), path + "[" + std::to_string(i) + "]", problems);
  }
  template <class T>
  std::string print(const std::vector<T>& values) const {
    std::string text;
    for (const T& value : values) text += (text.empty() ? "" : ", ") + item.print(value);
    return "[" + text + "]";
  }
  std::string type() const { return "list of " + item.type(); }
};

/// auto, cpu, cuda or cuda:N.
struct DeviceName {
  void read(const ConfigNode& node, DeviceChoice& value, const std::string& path, Problems& problems) const;
  std::string print(const DeviceChoice& value) const { return Text{}.print(name_of(value)); }
  std::string type() const { return "auto|cpu|cuda|cuda:N"; }
};

/// false, true, auto or a path.
struct Resume {
  void read(const ConfigNode& node, ResumeFrom& value, const std::string& path, Problems& problems) const;
  std::string print(const ResumeFrom& value) const { return Text{}.print(name_of(value)); }
  std::string type() const { return "text"; }
};

/// A step's number, or two of them: 10..12.
struct Steps {
  void read(const ConfigNode& node, StepRange& value, const std::string& path, Problems& problems) const;
  std::string print(const StepRange& value) const { return name_of(value); }
  std::string type() const { return "step or range of steps such as 10..12"; }
};

/// Exactly two numbers.
struct Pair {
  Real item;
  void read(const ConfigNode& node, std::array<double, 2>& values, const std::string& path, Problems& problems) const;
  std::string print(const std::array<double, 2>& values) const {
    return "[" + item.print(values[0]) + ", " + item.print(values[1]) + "]";
  }
  std::string type() const { return "two of " + item.type(); }
};

/// A visitor that reads one map. It records the keys that were read, to find unknown ones.
class Section {
 public:
  /// With a null or empty `node` no key is set. `path` is "" for the whole file.
  Section(const ConfigNode* node, std::string path, Problems& problems);

  /// The value of `key`, or null; records `key` as known.
  const ConfigNode* take(const char* key);

  /// Reads the key if it is given. An optional whose `kind` reads the type inside gets a value only then.
  template <class T, class Kind>
  void operator()(const char* key, T& value, const Kind& kind, const char*) {
    const ConfigNode* node = take(key);
    if (!node) return;
    if constexpr (requires { kind.read(*node, value, path_, problems_); })
      kind.read(*node, value, path_to(key), problems_);
    else
      kind.read(*node, value.emplace(), path_to(key), problems_);
  }

  /// Reports the keys that are not known.
  void finish() const;

 private:
  std::string path_to(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

  const ConfigNode* map_ = nullptr;
  std::string path_;
  Problems& problems_;
  std::vector<std::string> known_;
};

/// A visitor that prints the keys of one map, as YAML in flow style; absent ones are left out.
struct FlowPrinter {
  std::string text;
  template <class T, class Kind>
  void operator()(const char* key, const T& value, const Kind& kind, const char*) {
    text += (text.empty() ? "" : ", ") + std::string(key) + ": " + kind.print(value);
  }
  template <class T, class Kind>
  void operator()(const char* key, const std::optional<T>& value, const Kind& kind, const char* meaning) {
    if (value) (*this)(key, *value, kind, meaning);
  }
};

template <class Visit>
void fields(PrecisionRule& c, Visit&& visit) {
  visit("layers", c.layers, ListOf<Integer>{{0, 4095}}, "layer numbers from 0; empty: all layers and lm_head");
  visit("projections", c.projections, ListOf<Text>{{false}}, "names of projections; empty: all");
  visit("precision", c.precision, choice_of(kAllPrecisions), "how these projections multiply");
  visit("inner_norm", c.inner_norm, Flag{}, "whether these projections normalise their input once more");
}

/// The keys of a layer: of the whole model, or of an entry of model.layers.
template <template <class> class Of, class Visit>
void layer_fields(LayerKeys<Of>& c, Visit&& visit) {
  visit("token", c.token, choice_of(kAllTokenKinds), "what mixes along time");
  visit("channel", c.channel, choice_of(kAllChannelKinds),
        "what mixes along width: a gated mixer or two plain matrices");
  visit("heads", c.heads, Integer{1, 1 << 12}, "heads of a token mixer that has heads");
  visit("kv_heads", c.kv_heads, Integer{0, 1 << 12}, "heads of keys and values; 0: as heads");
  visit("head_dim", c.head_dim, Integer{0, 512}, "width of a head, a multiple of 8; 0: D / heads");
  visit("rope_theta", c.rope_theta, Real{1, 1e12}, "base of attention's rotary angles");
  visit("sliding_window", c.sliding_window, Integer{0, std::numeric_limits<int32_t>::max()},
        "most tokens that attention sees, the current one among them; 0: all");
  visit("intermediate_size", c.intermediate_size, Integer{0, 1 << 20},
        "width of the channel mixer; 0: 2/3 of hidden_ratio * D, rounded up to a multiple of 256");
  visit(
      "activation", c.activation, choice_of(kAllActivations),
      "of the channel mixer; with glu, silu makes SwiGLU, gelu GEGLU, relu ReGLU, selu SeGLU, sigmoid GLU, identity a "
      "bilinear layer");
  visit("fused_gate", c.fused_gate, Flag{}, "the glu's gate and up projections are one matrix, with one ternary scale");
  visit("precision", c.precision, choice_of(kAllPrecisions), "how every projection multiplies that no rule names");
  visit("inner_norm", c.inner_norm, Flag{}, "every projection normalises its input once more");
  visit("sub_norm", c.sub_norm, Flag{}, "attention, glu and mlp normalise the input of their last projection");
  visit("gate_order", c.gate_order, choice_of(kAllGateOrders),
        "how the MLGRU's output gate combines projection and state; published weights need reference");
}

template <class Visit>
void fields(LayerEntry& c, Visit&& visit) {
  visit("repeat", c.repeat, Integer{1, 1 << 12}, "how many layers in a row are like this");
  layer_fields(c, visit);
}

/// A map with the keys of `fields`, such as an entry of model.layers. If `needed` is not empty, one of its keys must be
/// given.
template <class T>
struct MapOf {
  const char* form;
  std::vector<const char*> needed = {};
  void read(const ConfigNode& node, T& value, const std::string& path, Problems& problems) const {
    if (node.kind != ConfigNode::Kind::map)
      return problems.add(node.line, path, path + ": expected a map " + form + ", found " + node.describe());
    const auto given = [&](const char* key) { return node.find(key) != nullptr; };
    if (!needed.empty() && std::none_of(needed.begin(), needed.end(), given)) {
      std::string names;
      for (const char* key : needed) names += (names.empty() ? "" : " and no ") + std::string(key);
      problems.add(node.line, path, path + ": the rule names no " + names);
    }
    Section section(&node, path, problems);
    fields(value, section);
    section.finish();
  }
  std::string print(const T& value) const {
    T copy = value;
    FlowPrinter printer;
    fields(copy, printer);
    return "{" + printer.text + "}";
  }
  std::string type() const { return form; }
};

template <class Visit>
void fields(ModelConfig& c, Visit&& visit) {
  visit("vocab_size", c.vocab_size, Integer{1, 1 << 24}, "number of token ids");
  visit("hidden_size", c.hidden_size, Integer{1, 1 << 17}, "width D of the residual stream");
  visit("num_hidden_layers", c.num_hidden_layers, Integer{1, 1 << 12},
        "number of blocks; follows from layers if given");
  visit("hidden_ratio", c.hidden_ratio, Integer{1, 1 << 10}, "used only where intermediate_size is 0");
  visit("rms_norm_eps", c.rms_norm_eps, Real{0, 1, true, true},
        "added to the mean square in block, gate and sub norms");
  visit("initializer_range", c.initializer_range, Real{0, 1e3, true}, "standard deviation of the initial weights");
  visit("use_lower_bound", c.use_lower_bound, Flag{}, "learned lower bounds of the forget gate");
  visit("tie_word_embeddings", c.tie_word_embeddings, Flag{}, "the head multiplies by the embedding table");
  layer_fields(c, visit);
  visit("layers", c.layers, ListOf<MapOf<LayerEntry>>{{"{repeat: ..., token: ..., ...}"}},
        "layers that differ, from the first on; their keys win over the model's own; empty: all alike");
  visit("precision_rules", c.precision_rules,
        ListOf<MapOf<PrecisionRule>>{
            {"{layers: [...], projections: [...], precision: ..., inner_norm: ...}", {"precision", "inner_norm"}}},
        "exceptions; later rules win, over layers too");
  visit("max_position_embeddings", c.max_position_embeddings, Integer{1, int64_t{1} << 40},
        "kept for export; nothing that is computed depends on it");
  visit("bos_token_id", c.bos_token_id, Integer{-1, 1 << 24}, "token that starts a text; -1: none");
  visit("eos_token_id", c.eos_token_id, Integer{-1, 1 << 24}, "token that ends a text; -1: none");
}

template <class Visit>
void fields(DataSource& c, Visit&& visit) {
  visit("name", c.name, Text{false}, "for people");
  visit("shards", c.shards, ListOf<Text>{{false}}, "files, globs or directories");
  visit("weight", c.weight, Real{0, 1e9}, "share of the samples, relative to the other sources");
}

template <class Visit>
void fields(DataStage& c, Visit&& visit) {
  visit("from_tokens", c.from_tokens, Integer{1, int64_t{1} << 60}, "trained tokens after which the stage begins");
  visit("weights", c.weights, ListOf<Real>{{0, 1e9}}, "one per source, in their order");
}

template <class Visit>
void fields(EvalSet& c, Visit&& visit) {
  visit("name", c.name, Text{false}, "of the metrics eval/NAME/loss: letters, digits, '.', '_' and '-'");
  visit("shards", c.shards, ListOf<Text>{{false}}, "files, globs or directories");
}

template <class Visit>
void fields(DataConfig& c, Visit&& visit) {
  visit("train", c.train, ListOf<Text>{{false}}, "training shards: files, globs or directories");
  visit("sources", c.sources, ListOf<MapOf<DataSource>>{{"{name: ..., shards: [...], weight: ...}", {"shards"}}},
        "several weighted sources of training shards, in place of train");
  visit("stages", c.stages, ListOf<MapOf<DataStage>>{{"{from_tokens: ..., weights: [...]}", {"weights"}}},
        "other weights of the sources from a number of trained tokens on");
  visit("valid", c.valid, ListOf<Text>{{false}}, "validation shards; empty: no evaluation");
  visit("eval_sets", c.eval_sets, ListOf<MapOf<EvalSet>>{{"{name: ..., shards: [...]}", {"shards"}}},
        "more shards that are evaluated whenever valid is, each with metrics of its own");
  visit("tokenizer", c.tokenizer, Text{}, "SentencePiece model for bits per byte and samples; empty: none");
  visit("seq_len", c.seq_len, Integer{1, kMaxSeqLen}, "tokens predicted per sequence");
  visit("shuffle", c.shuffle, Flag{}, "visit sequences in a seeded random order");
  visit("framing", c.framing,
        Choice<std::optional<Framing>>{{{}, Framing::none, Framing::bos, Framing::eos, Framing::both}},
        "what stands before and after each document; auto: as the shards say, else theirs must be this");
  visit("reset_state", c.reset_state, Flag{}, "forget the recurrent state where a document starts");
  visit("carry_state", c.carry_state, Flag{},
        "each row goes on where it ended in the step before, with its state; windows are then in order");
}

template <class Visit>
void fields(OptimRule& c, Visit&& visit) {
  visit("roles", c.roles,
        ListOf<Choice<ParamRole>>{{{ParamRole::matrix, ParamRole::embedding, ParamRole::head, ParamRole::vector}}},
        "what the parameters are for; empty: all");
  visit("parameters", c.parameters, ListOf<Text>{{false}},
        "globs of names, or names' endings from a dot on; empty: all");
  visit("lr_factor", c.lr_factor, Real{0, 1e3}, "factor of the learning rate");
  visit("weight_decay", c.weight_decay, Real{0, 10}, "in place of optim.weight_decay");
}

template <class Visit>
void fields(OptimConfig& c, Visit&& visit) {
  visit("name", c.name, Choice<OptimizerKind>{{OptimizerKind::adamw}}, "how gradients become updates");
  visit("lr", c.lr, Real{0, 10}, "peak learning rate");
  visit("betas", c.betas, Pair{{0, 1, false, true}}, "decay of AdamW's two moments");
  visit("eps", c.eps, Real{0, 1, true}, "added to the root of the second moment");
  visit("weight_decay", c.weight_decay, Real{0, 10}, "decoupled weight decay of matrices and head");
  visit("weight_decay_until", c.weight_decay_until, Real{0, 1}, "fraction of the steps after which decay is 0");
  visit("clip_grad", c.clip_grad, Real{0, 1e30}, "largest L2 norm of all gradients together; 0: no clipping");
  visit("schedule", c.schedule,
        Choice<Schedule>{{Schedule::constant, Schedule::linear, Schedule::cosine, Schedule::wsd, Schedule::two_phase}},
        "learning rate after warm-up");
  visit("warmup_steps", c.warmup_steps, Integer{-1}, "steps of linear warm-up; -1: 2 % of the steps");
  visit("warmup_tokens", c.warmup_tokens, Integer{0, int64_t{1} << 60},
        "the same in tokens, rounded up to whole steps; 0: as warmup_steps says");
  visit("min_lr_ratio", c.min_lr_ratio, Real{0, 1}, "schedules other than constant end at this fraction of lr");
  visit("decay_fraction", c.decay_fraction, Real{0, 1}, "wsd: fraction of the steps in which the rate falls");
  visit("phase_fraction", c.phase_fraction, Real{0, 1},
        "two_phase: fraction of the steps after which the rate drops and weight decay is 0");
  visit("phase_lr_ratio", c.phase_lr_ratio, Real{0, 1}, "two_phase: factor by which the rate drops");
  visit("rules", c.rules,
        ListOf<MapOf<OptimRule>>{
            {"{roles: [...], parameters: [...], lr_factor: ..., weight_decay: ...}", {"lr_factor", "weight_decay"}}},
        "exceptions for some parameters; later rules win");
}

template <class Visit>
void fields(TrainConfig& c, Visit&& visit) {
  visit("steps", c.steps, Integer{0, kMostSteps},
        "optimizer steps of the whole run; not given, or 0: as train.tokens or train.epochs say");
  visit("tokens", c.tokens, Integer{0, int64_t{1} << 60},
        "the length in tokens instead, rounded up to whole steps; 0: given otherwise");
  visit("epochs", c.epochs, Real{0, 1e9},
        "the length in passes over the source that is seen most, rounded up to whole steps; 0: given otherwise");
  visit("batch_size", c.batch_size, Integer{1, 1 << 20}, "sequences per optimizer step");
  visit("leaves", c.leaves, Integer{0, 1 << 16},
        "equal parts of the batch whose gradients add in a tree, a power of two: the ranks share them, so the bits "
        "depend on "
        "leaves and not on ranks; 0: the checkpoint's, and in a new run the number of ranks");
  visit("micro_batch_size", c.micro_batch_size, Integer{0, 1 << 20},
        "sequences per forward pass, divides those of a leaf; 0: all of a leaf");
  visit("shard", c.shard, choice_of(kAllShards),
        "what the ranks divide among them: nothing, the optimizer's state and master weights, or gradients too, where "
        "a rank "
        "has one leaf of one micro-batch");
  visit("seed", c.seed, Integer{0}, "of initial weights and data order");
  visit("device", c.device, DeviceName{}, "where to compute; auto: a GPU if there is one");
  visit("compute", c.compute,
        Choice<ComputeChoice>{{ComputeChoice::automatic, ComputeChoice::f32, ComputeChoice::bf16}},
        "dtype of activations; on the CPU they are f32, and bf16 rounds the operands of backward products; auto: bf16 "
        "on a GPU, and on a CPU whose bf16 products are faster");
  visit("backward", c.backward, Choice<std::optional<Products>>{{{}, Products::compute, Products::int8}},
        "products of the ternary projections' backward pass: as compute says, or in 8 bits, which rounds gradients; on "
        "a GPU only of outputs that have 1024 inputs or more, and of gate_proj, whose activations it rounds again; "
        "int8 pays on a CPU with VNNI and on a GPU of compute capability 9.0; auto: int8 on such a GPU unless "
        "compute is f32, compute elsewhere, and what a run began with when it is resumed");
  visit("recompute", c.recompute,
        Choice<std::optional<Recompute>>{
            {{}, Recompute::none, Recompute::rounded, Recompute::selective, Recompute::full}},
        "what the backward pass computes again instead of keeping it; auto: selective on a GPU, and on the CPU where "
        "that saves more than 0.2 GB; none otherwise");
  visit("keep_blocks", c.keep_blocks, Integer{0},
        "with recompute: selective, so many of the last blocks keep what the others compute again, for less time and "
        "more memory");
  visit("capture", c.capture, Flag{}, "on a GPU, record the step as a graph and replay it");
  visit("threads", c.threads, Integer{0, 4096}, "OpenMP threads; 0: OpenMP's default");
  visit("trace_steps", c.trace_steps, ListOf<Steps>{},
        "steps whose ops are written to run_dir/trace.json with their times, for ui.perfetto.dev");
  visit("log_every", c.log_every, Integer{1}, "steps between lines of progress and metrics");
  visit("tensorboard", c.tensorboard, Flag{}, "write event files for TensorBoard into the folder tb of run_dir");
  visit("eval_every", c.eval_every, Integer{0}, "steps between evaluations; 0: only at the end");
  visit("eval_tokens", c.eval_tokens, Integer{0}, "most tokens per evaluation during training; 0: all");
  visit("telemetry_every", c.telemetry_every, Integer{0},
        "steps between lines that tell how each ternary matrix and its input are; 0: none");
  visit("sample_every", c.sample_every, Integer{0},
        "steps between texts that the model writes into samples.jsonl, which end the run too; 0: none");
  visit("sample_prompts", c.sample_prompts, ListOf<Text>{}, "what these texts go on from; empty: nothing");
  visit("sample_tokens", c.sample_tokens, Integer{1, 1 << 16}, "most tokens of such a text");
  visit("save_every", c.save_every, Integer{0}, "steps between checkpoints; 0: only at the end");
  visit("keep_last", c.keep_last, Integer{1}, "newest checkpoints kept");
  visit("keep_every", c.keep_every, Integer{0},
        "checkpoints whose step is a multiple of it are kept for good, a multiple of save_every; 0: none");
  visit("keep_best", c.keep_best, Flag{},
        "save after an evaluation with the least loss so far, and keep that checkpoint until a better one is saved");
  visit("early_stop", c.early_stop, Integer{0},
        "evaluations in a row without a gain after which the run saves and ends; 0: never");
  visit("early_stop_delta", c.early_stop_delta, Real{0, 1e9},
        "an evaluation is a gain if its loss is below the least one before by more than this");
  visit("resume", c.resume, Resume{}, "false, true (newest checkpoint), auto (newest if there is one) or a path");
  visit("init_from", c.init_from, Text{},
        "model whose weights a new run starts with: checkpoint, run folder, ternary export or Hugging Face folder; its "
        "model keys hold where none are given");
  visit("run_dir", c.run_dir, Text{}, "where everything is written; empty: runs/<config file's stem>");
  visit("max_time", c.max_time, Seconds{}, "save and stop after this long; 0: no limit");
  visit("on_save_error", c.on_save_error, Choice<OnSaveError>{{OnSaveError::carry_on, OnSaveError::stop}},
        "when a checkpoint cannot be written, for example on a full disk; older checkpoints stay");
  visit("skip_limit", c.skip_limit, Integer{1}, "consecutive skipped steps before giving up: the run diverges");
  visit("skip_outliers", c.skip_outliers, Real{0, 1e9},
        "skip a step whose gradient norm is above so many times the mean of about the last 100 updates; 0: none");
  visit("rollback", c.rollback, Integer{0, 1 << 20},
        "how often a run that diverges goes back to its last good checkpoint of a multiple of save_every and leaves "
        "out the data since; 0: it gives up at once");
}

/// Calls visit(name, section) for each section.
template <class Visit>
void sections(RunConfig& c, Visit&& visit) {
  visit("model", c.model);
  visit("data", c.data);
  visit("optim", c.optim);
  visit("train", c.train);
}

/// Calls visit("section.key", value, kind, meaning) for each key of a configuration.
template <class Visit>
void all_fields(RunConfig& c, Visit&& visit) {
  sections(c, [&](const std::string& section, auto& part) {
    fields(part, [&](const char* key, auto& value, const auto& kind, const char* meaning) {
      visit(section + "." + key, value, kind, meaning);
    });
  });
}

}  // namespace mmfree
