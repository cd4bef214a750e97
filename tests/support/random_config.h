#pragma once
#include <random>
#include <string>
#include <vector>

#include "layers/parameters.h"
#include "train/config/config.h"

namespace mmfree {

/// A configuration with every field drawn at random from its legal values.
inline RunConfig random_config(std::mt19937_64& random) {
  const auto integer = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  const auto real = [&](double least, double most) { return std::uniform_real_distribution<>(least, most)(random); };
  const auto text = [&] {
    static const std::vector<std::string> parts = {
        "a", "B/", "\"",     "\\",   "'", ": ",   " #", "- ",   "*", "&x ", "{", "]", ",",  "!",      "%",  "@",
        "`", "é",  "\u0085", "🙂", "~", "null", "<<", "true", "|", ">",   "?", " ", "0x", "\ufeff", "\\n"};
    std::string made;
    for (int64_t i = integer(1, 6); i > 0; --i) made += parts[static_cast<size_t>(integer(0, std::ssize(parts) - 1))];
    return made;
  };
  const auto one_of = [&](const std::vector<std::string>& choices) {
    return choices[static_cast<size_t>(integer(0, std::ssize(choices) - 1))];
  };
  const auto texts = [&] {
    std::vector<std::string> made(static_cast<size_t>(integer(1, 3)));
    for (std::string& one : made) one = text();
    return made;
  };
  const auto any_of = [&](const auto& all) { return all[static_cast<size_t>(integer(0, std::ssize(all) - 1))]; };
  const auto precision = [&] { return any_of(kAllPrecisions); };
  RunConfig c;
  const auto flag = [&] { return integer(0, 1) == 1; };
  const auto inner = [&] { return integer(0, 1 << 20); };
  const auto activation = [&] { return any_of(kAllActivations); };
  const auto gate_order = [&] { return any_of(kAllGateOrders); };
  const auto channel = [&] { return any_of(kAllChannelKinds); };
  bool attends = false;
  const auto attend = [&](auto& keys) {
    const int64_t groups = integer(1, 8);
    keys.token = TokenKind::attention;
    keys.heads = groups * integer(1, 4);
    keys.kv_heads = groups;
    keys.head_dim = 8 * integer(1, 64);
    keys.rope_theta = real(1, 1e12);
    keys.sliding_window = integer(0, 1 << 30);
    attends = true;
  };
  c.model.vocab_size = integer(8, 1 << 24);
  c.model.hidden_size = integer(1, 1 << 17);
  c.model.num_hidden_layers = integer(8, 100);
  c.model.hidden_ratio = integer(1, 1024);
  c.model.rms_norm_eps = real(1e-12, 0.9);
  c.model.initializer_range = real(1e-9, 1000);
  c.model.use_lower_bound = flag();
  c.model.tie_word_embeddings = flag();
  c.model.channel = channel();
  c.model.intermediate_size = inner();
  c.model.activation = activation();
  c.model.precision = precision();
  c.model.inner_norm = flag();
  c.model.fused_gate = flag();
  c.model.sub_norm = flag();
  c.model.gate_order = gate_order();
  c.model.max_position_embeddings = integer(1, 1 << 30);
  c.model.bos_token_id = integer(-1, 7);
  c.model.eos_token_id = integer(-1, 7);
  if (flag()) {
    for (int64_t left = c.model.num_hidden_layers; left > 0; left -= c.model.layers.back().repeat) {
      LayerEntry& entry = c.model.layers.emplace_back();
      entry.repeat = integer(1, left);
      if (flag()) entry.token = TokenKind::mlgru;
      if (flag()) entry.channel = channel();
      if (flag()) entry.heads = 1;
      if (flag()) entry.kv_heads = integer(0, 1);
      if (flag()) attend(entry);
      if (flag()) entry.intermediate_size = inner();
      if (flag()) entry.activation = activation();
      if (flag()) entry.precision = precision();
      if (flag()) entry.inner_norm = flag();
      if (flag()) entry.fused_gate = flag();
      if (flag()) entry.sub_norm = flag();
      if (flag()) entry.gate_order = gate_order();
    }
  } else if (flag()) {
    attend(c.model);
  }
  const std::vector<std::string> names = projection_names(c.model);
  for (int64_t i = integer(0, 3); i > 0; --i) {
    PrecisionRule& rule = c.model.precision_rules.emplace_back();
    for (int64_t j = integer(0, 3); j > 0; --j) rule.layers.push_back(static_cast<int>(integer(0, 7)));
    for (int64_t j = integer(0, 3); j > 0; --j)
      rule.projections.push_back(names[static_cast<size_t>(integer(0, std::ssize(names) - 1))]);
    const int64_t which = integer(1, 3);
    if (which & 1) rule.precision = precision();
    if (which & 2) rule.inner_norm = flag();
  }
  c.data.valid = texts();
  c.data.tokenizer = integer(0, 1) ? text() : "";
  c.data.seq_len = integer(1, 1 << 20);
  c.data.shuffle = integer(0, 1) == 1;
  c.data.reset_state = integer(0, 1) == 1;
  if (integer(0, 1)) c.data.framing = kAllFramings[integer(0, 3)];
  if (integer(0, 1)) {
    c.data.train = texts();
  } else {
    for (int64_t i = integer(1, 3); i > 0; --i) c.data.sources.push_back({text(), texts(), real(0.001, 1e9)});
    for (int64_t i = integer(0, 2), at = 0; i > 0; --i) {
      DataStage& stage = c.data.stages.emplace_back();
      stage.from_tokens = at += integer(1, 1 << 30);
      for (size_t s = 0; s < c.data.sources.size(); ++s) stage.weights.push_back(real(0.001, 1e9));
    }
  }
  c.data.carry_state = !attends && c.data.sources.size() < 2 && integer(0, 1) == 1;
  c.optim = {OptimizerKind::adamw,
             real(0, 10),
             {real(0, 0.999), real(0, 0.999)},
             real(1e-300, 1),
             real(0, 10),
             real(0, 1),
             real(0, 1e30),
             static_cast<Schedule>(integer(0, 4)),
             integer(-1, 100),
             real(0, 1),
             real(0, 1),
             real(0, 1),
             real(0, 1),
             {}};
  for (int64_t i = integer(0, 3); i > 0; --i) {
    OptimRule& rule = c.optim.rules.emplace_back();
    for (int64_t j = integer(0, 3); j > 0; --j) rule.roles.push_back(static_cast<ParamRole>(integer(0, 3)));
    for (int64_t j = integer(0, 3); j > 0; --j) rule.parameters.push_back(text());
    const int64_t which = integer(1, 3);
    if (which & 1) rule.lr_factor = real(0, 1000);
    if (which & 2) rule.weight_decay = real(0, 10);
  }
  const int64_t micro = integer(1, 100), leaves = int64_t{1} << integer(0, 4);
  c.train = {integer(100, 1 << 30),
             leaves * micro * integer(1, 100),
             integer(0, 1) * leaves,
             integer(0, 1) * micro,
             any_of(kAllShards),
             integer(0, INT64_MAX),
             *parse_device(one_of({"auto", "cpu", "cuda", "cuda:0", "cuda:17"})),
             static_cast<ComputeChoice>(integer(0, 2)),
             micro % 2 == 1 ? Products::int8 : Products::compute,
             integer(0, 1) ? std::optional(any_of(kAllRecomputes)) : std::nullopt,
             integer(0, INT64_MAX),
             integer(0, 1) == 1,
             integer(0, 4096),
             integer(1, INT64_MAX),
             integer(0, 1) == 1,
             integer(0, 99),
             integer(0, 99),
             integer(0, 99),
             integer(1, 99),
             parse_resume(one_of({"false", "true", "auto", text()})),
             "",
             text(),
             real(0, 1e9),
             static_cast<OnSaveError>(integer(0, 1)),
             integer(1, 99)};
  for (int64_t i = integer(0, 2); i > 0; --i) {
    const int64_t first = integer(1, INT64_MAX - 99);
    c.train.trace_steps.push_back({first, first + integer(0, 99)});
  }
  if (c.train.resume.mode != ResumeFrom::checkpoint && integer(0, 1)) c.train.init_from = text();
  c.train.telemetry_every = integer(0, 99);
  c.train.sample_every = integer(0, 99);
  if (integer(0, 1)) c.train.sample_prompts = texts();
  c.train.sample_tokens = integer(1, 99);
  for (int64_t i = c.data.valid.empty() ? 0 : integer(0, 2); i > 0; --i)
    c.data.eval_sets.push_back({concat("set-", i, "_.x"), texts()});
  if (const int64_t unit = integer(0, 2); unit > 0) {
    c.train.steps = 0;
    unit == 1 ? void(c.train.tokens = integer(1, 1 << 30)) : void(c.train.epochs = real(0.001, 1e9));
  }
  if (c.optim.warmup_steps < 0) c.optim.warmup_tokens = integer(0, 99);
  if (c.train.save_every > 0) c.train.keep_every = integer(0, 9) * c.train.save_every, c.train.rollback = integer(0, 9);
  if (c.train.eval_every > 0) c.train.keep_best = integer(0, 1) == 1, c.train.early_stop = integer(0, 9);
  c.train.early_stop_delta = real(0, 1e9);
  c.train.skip_outliers = real(1.001, 1e9);
  return c;
}

}  // namespace mmfree
