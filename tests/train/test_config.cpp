#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "core/error.h"
#include "tests/support/paths.h"
#include "tests/support/random_config.h"
#include "train/config/config.h"
#include "train/config/tree.h"

namespace mmfree {
namespace {

std::string message_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    load_config_text(yaml, "x.yaml", overrides);
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.status(), Exit::bad_config);
    return error.what();
  }
  return "accepted";
}

/// "a|b|c", as messages list the values of an enumeration.
template <class Enum, size_t N>
std::string names_of(const Enum (&all)[N]) {
  std::string names;
  for (const Enum value : all) names += (names.empty() ? "" : "|") + std::string(name_of(value));
  return names;
}

std::string preset(const std::string& name) { return source_dir() + "/configs/" + name + ".yaml"; }

/// Field by field and by hand: independent of the list of keys that reading and writing share.
void expect_equal(const RunConfig& a, const RunConfig& b) {
  const ModelConfig &m = a.model, &n = b.model;
  EXPECT_EQ(m.vocab_size, n.vocab_size);
  EXPECT_EQ(m.hidden_size, n.hidden_size);
  EXPECT_EQ(m.num_hidden_layers, n.num_hidden_layers);
  EXPECT_EQ(m.hidden_ratio, n.hidden_ratio);
  EXPECT_EQ(m.rms_norm_eps, n.rms_norm_eps);
  EXPECT_EQ(m.initializer_range, n.initializer_range);
  EXPECT_EQ(m.use_lower_bound, n.use_lower_bound);
  EXPECT_EQ(m.tie_word_embeddings, n.tie_word_embeddings);
  zip_layer_keys(m, n, [](const auto& x, const auto& y) { EXPECT_EQ(x, y); });
  ASSERT_EQ(m.layers.size(), n.layers.size());
  for (size_t i = 0; i < m.layers.size(); ++i) {
    EXPECT_EQ(m.layers[i].repeat, n.layers[i].repeat);
    zip_layer_keys(m.layers[i], n.layers[i], [](const auto& x, const auto& y) { EXPECT_EQ(x, y); });
  }
  EXPECT_EQ(m.max_position_embeddings, n.max_position_embeddings);
  EXPECT_EQ(m.bos_token_id, n.bos_token_id);
  EXPECT_EQ(m.eos_token_id, n.eos_token_id);
  ASSERT_EQ(m.precision_rules.size(), n.precision_rules.size());
  for (size_t i = 0; i < m.precision_rules.size(); ++i) {
    EXPECT_EQ(m.precision_rules[i].layers, n.precision_rules[i].layers);
    EXPECT_EQ(m.precision_rules[i].projections, n.precision_rules[i].projections);
    EXPECT_EQ(m.precision_rules[i].precision, n.precision_rules[i].precision);
    EXPECT_EQ(m.precision_rules[i].inner_norm, n.precision_rules[i].inner_norm);
  }
  EXPECT_EQ(a.data.train, b.data.train);
  EXPECT_EQ(a.data.valid, b.data.valid);
  EXPECT_EQ(a.data.tokenizer, b.data.tokenizer);
  EXPECT_EQ(a.data.seq_len, b.data.seq_len);
  EXPECT_EQ(a.data.shuffle, b.data.shuffle);
  EXPECT_EQ(a.data.sources, b.data.sources);
  EXPECT_EQ(a.data.stages, b.data.stages);
  EXPECT_EQ(a.data.framing, b.data.framing);
  EXPECT_EQ(a.data.reset_state, b.data.reset_state);
  EXPECT_EQ(a.data.carry_state, b.data.carry_state);
  EXPECT_EQ(a.optim.name, b.optim.name);
  EXPECT_EQ(a.optim.lr, b.optim.lr);
  EXPECT_EQ(a.optim.betas, b.optim.betas);
  EXPECT_EQ(a.optim.eps, b.optim.eps);
  EXPECT_EQ(a.optim.weight_decay, b.optim.weight_decay);
  EXPECT_EQ(a.optim.weight_decay_until, b.optim.weight_decay_until);
  EXPECT_EQ(a.optim.clip_grad, b.optim.clip_grad);
  EXPECT_EQ(a.optim.schedule, b.optim.schedule);
  EXPECT_EQ(a.optim.warmup_steps, b.optim.warmup_steps);
  EXPECT_EQ(a.optim.min_lr_ratio, b.optim.min_lr_ratio);
  EXPECT_EQ(a.optim.decay_fraction, b.optim.decay_fraction);
  EXPECT_EQ(a.optim.phase_fraction, b.optim.phase_fraction);
  EXPECT_EQ(a.optim.phase_lr_ratio, b.optim.phase_lr_ratio);
  ASSERT_EQ(a.optim.rules.size(), b.optim.rules.size());
  for (size_t i = 0; i < a.optim.rules.size(); ++i) {
    EXPECT_EQ(a.optim.rules[i].roles, b.optim.rules[i].roles);
    EXPECT_EQ(a.optim.rules[i].parameters, b.optim.rules[i].parameters);
    EXPECT_EQ(a.optim.rules[i].lr_factor, b.optim.rules[i].lr_factor);
    EXPECT_EQ(a.optim.rules[i].weight_decay, b.optim.rules[i].weight_decay);
  }
  EXPECT_EQ(a.train.steps, b.train.steps);
  EXPECT_EQ(a.train.batch_size, b.train.batch_size);
  EXPECT_EQ(a.train.leaves, b.train.leaves);
  EXPECT_EQ(a.train.micro_batch_size, b.train.micro_batch_size);
  EXPECT_EQ(a.train.shard, b.train.shard);
  EXPECT_EQ(a.train.seed, b.train.seed);
  EXPECT_EQ(a.train.device, b.train.device);
  EXPECT_EQ(a.train.compute, b.train.compute);
  EXPECT_EQ(a.train.backward, b.train.backward);
  EXPECT_EQ(a.train.recompute, b.train.recompute);
  EXPECT_EQ(a.train.keep_blocks, b.train.keep_blocks);
  EXPECT_EQ(a.train.capture, b.train.capture);
  EXPECT_EQ(a.train.threads, b.train.threads);
  EXPECT_EQ(a.train.trace_steps, b.train.trace_steps);
  EXPECT_EQ(a.train.log_every, b.train.log_every);
  EXPECT_EQ(a.train.tensorboard, b.train.tensorboard);
  EXPECT_EQ(a.train.eval_every, b.train.eval_every);
  EXPECT_EQ(a.train.eval_tokens, b.train.eval_tokens);
  EXPECT_EQ(a.train.save_every, b.train.save_every);
  EXPECT_EQ(a.train.keep_last, b.train.keep_last);
  EXPECT_EQ(a.train.resume, b.train.resume);
  EXPECT_EQ(a.train.init_from, b.train.init_from);
  EXPECT_EQ(a.train.on_save_error, b.train.on_save_error);
  EXPECT_EQ(a.train.run_dir, b.train.run_dir);
  EXPECT_EQ(a.train.max_time, b.train.max_time);
  EXPECT_EQ(a.train.skip_limit, b.train.skip_limit);
  EXPECT_EQ(a.train.telemetry_every, b.train.telemetry_every);
  EXPECT_EQ(a.train.sample_every, b.train.sample_every);
  EXPECT_EQ(a.train.sample_prompts, b.train.sample_prompts);
  EXPECT_EQ(a.train.sample_tokens, b.train.sample_tokens);
  EXPECT_EQ(a.data.eval_sets, b.data.eval_sets);
  EXPECT_EQ(a.train.tokens, b.train.tokens);
  EXPECT_EQ(a.train.epochs, b.train.epochs);
  EXPECT_EQ(a.train.keep_every, b.train.keep_every);
  EXPECT_EQ(a.train.keep_best, b.train.keep_best);
  EXPECT_EQ(a.train.early_stop, b.train.early_stop);
  EXPECT_EQ(a.train.early_stop_delta, b.train.early_stop_delta);
  EXPECT_EQ(a.train.skip_outliers, b.train.skip_outliers);
  EXPECT_EQ(a.train.rollback, b.train.rollback);
  EXPECT_EQ(a.optim.warmup_tokens, b.optim.warmup_tokens);
}

TEST(Config, ReadsEveryKindOfValue) {
  const RunConfig c = load_config_text(
      "model:\n  vocab_size: 100\n  use_lower_bound: false\n  gate_order: paper\n  precision: bf16\n"
      "  precision_rules:\n    - {layers: [0, 1], projections: [o_proj], precision: f32}\n"
      "    - projections: lm_head\n      precision: ternary\n"
      "data:\n  train: [a.h5, \"b c\"]\n  valid: v\n  tokenizer: t.model  # why\n"
      "optim:\n  lr: 1e-3\n  betas: [0, .5]\n  schedule: constant\n"
      "train:\n  seed: 9223372036854775807\n  max_time: 2h30m\n  resume: true\n  device: cpu\n",
      "dir/my.run.yaml");
  EXPECT_EQ(c.model.vocab_size, 100);
  EXPECT_FALSE(c.model.use_lower_bound);
  EXPECT_EQ(c.model.gate_order, GateOrder::paper);
  EXPECT_EQ(c.model.precision, Precision::bf16);
  ASSERT_EQ(c.model.precision_rules.size(), 2u);
  EXPECT_EQ(c.model.precision_rules[0].layers, (std::vector<int>{0, 1}));
  EXPECT_EQ(c.model.precision_rules[0].precision, Precision::f32);
  EXPECT_EQ(c.model.precision_rules[1].projections, std::vector<std::string>{"lm_head"});
  EXPECT_EQ(c.data.train, (std::vector<std::string>{"a.h5", "b c"}));
  EXPECT_EQ(c.data.valid, std::vector<std::string>{"v"});
  EXPECT_EQ(c.data.tokenizer, "t.model");
  EXPECT_EQ(c.optim.lr, 0.001);
  EXPECT_EQ(c.optim.betas, (std::array<double, 2>{0, 0.5}));
  EXPECT_EQ(c.optim.schedule, Schedule::constant);
  EXPECT_EQ(c.train.seed, INT64_MAX);
  EXPECT_EQ(c.train.max_time, 9000);
  EXPECT_EQ(c.train.resume.mode, ResumeFrom::newest);
  EXPECT_EQ(c.train.device.kind, DeviceChoice::cpu);
  EXPECT_EQ(c.train.run_dir, "runs/my.run");
  EXPECT_EQ(c.source, "dir/my.run.yaml");
}

TEST(Config, DurationsHaveFourUnits) {
  for (const auto& [text, seconds] : {std::pair{"1d2h3m4s", 93784.0}, {"5s", 5.0}, {"2d", 172800.0}, {"0.5", 0.5}})
    EXPECT_EQ(load_config_text(concat("train: {max_time: ", text, "}"), "x.yaml").train.max_time, seconds) << text;
  EXPECT_NE(message_of("", {"train.max_time="}), "accepted");
}

TEST(Config, EmptyTextGivesTheDefaults) {
  RunConfig defaults;
  defaults.train.run_dir = "runs/x";
  for (const char* text : {"", "# nothing\n", "model:\ndata:\n", "{}", "---\n"})
    expect_equal(load_config_text(text, "x.yaml"), defaults);
}

TEST(Config, NamesWhatIsWrongAndWhere) {
  struct Case {
    std::string yaml, message;
  };
  const Case cases[] = {
      {"\noptim:\n  warmup_step: 3", "x.yaml:3: unknown key 'optim.warmup_step' (did you mean 'warmup_steps'?)"},
      {"optm: {}", "x.yaml:1: unknown key 'optm' (did you mean 'optim'?)"},
      {"train: {lr: 1}", "x.yaml:1: unknown key 'train.lr' (did you mean 'optim.lr'?)"},
      {"weight_decay: 1", "x.yaml:1: unknown key 'weight_decay' (did you mean 'optim.weight_decay'?)"},
      {"model: {num_attention_heads: 4}", "x.yaml:1: unknown key 'model.num_attention_heads' (did you mean 'heads'?)"},
      {"model: {layers: [{num_kv_heads: 2}]}",
       "x.yaml:1: unknown key 'model.layers[0].num_kv_heads' (did you mean 'kv_heads'?)"},
      {"data: {window: 4}", "x.yaml:1: unknown key 'data.window'"},
      {"model: {qqqqqq: 1}", "x.yaml:1: unknown key 'model.qqqqqq'"},
      {"data: {sufhfle: true}", "x.yaml:1: unknown key 'data.sufhfle' (did you mean 'shuffle'?)"},
      {"\"a\\nb\": 1", "x.yaml:1: unknown key 'a\\x0ab'"},
      {"optim:\n  lr: 1\n  lr: 2", "x.yaml:3: duplicate key 'lr' (first in line 2)"},
      {"optim: {}\ntrain: {}\noptim: {}", "x.yaml:3: duplicate key 'optim' (first in line 1)"},
      {"optim: {lr: abc}", "x.yaml:1: optim.lr: expected a number, found 'abc'"},
      {"optim: {lr: 1e-3x}", "x.yaml:1: optim.lr: expected a number, found '1e-3x'"},
      {"optim: {lr: .nan}", "x.yaml:1: optim.lr: expected a number, found '.nan'"},
      {"optim: {lr: nan}", "x.yaml:1: optim.lr: expected a number, found 'nan'"},
      {"optim: {clip_grad: inf}", "x.yaml:1: optim.clip_grad: expected a number, found 'inf'"},
      {"optim: {lr: 1e999}", "x.yaml:1: optim.lr: expected a number, found '1e999'"},
      {"optim: {lr: 0x1}", "x.yaml:1: optim.lr: expected a number, found '0x1'"},
      {"optim: {lr: +1}", "x.yaml:1: optim.lr: expected a number, found '+1'"},
      {"optim: {lr: \"1\"}", "x.yaml:1: optim.lr: expected a number, found quoted '1'"},
      {"optim: {lr: }", "x.yaml:1: optim.lr: expected a number, found nothing"},
      {"optim: {lr: [1]}", "x.yaml:1: optim.lr: expected a number, found a list"},
      {"optim: {lr: {a: 1}}", "x.yaml:1: optim.lr: expected a number, found a map"},
      {"optim: {lr: -1}", "x.yaml:1: optim.lr: expected a number in [0, 10], found '-1'"},
      {"optim: {eps: 0}", "x.yaml:1: optim.eps: expected a number in (0, 1], found '0'"},
      {"optim: {betas: [0.9]}", "x.yaml:1: optim.betas: expected two numbers, found 1"},
      {"optim: {betas: 0.9}", "x.yaml:1: optim.betas: expected a list of two numbers, found '0.9'"},
      {"optim: {betas: [0, 1]}", "x.yaml:1: optim.betas[1]: expected a number in [0, 1), found '1'"},
      {"optim: {schedule: cos}",
       "x.yaml:1: optim.schedule: expected constant|linear|cosine|wsd|two_phase, found 'cos'"},
      {"train: {steps: 010}", "x.yaml:1: train.steps: expected an integer, found '010'"},
      {"train: {steps: 1e3}", "x.yaml:1: train.steps: expected an integer, found '1e3'"},
      {"train: {steps: 1.0}", "x.yaml:1: train.steps: expected an integer, found '1.0'"},
      {"train: {steps: 1_000}", "x.yaml:1: train.steps: expected an integer, found '1_000'"},
      {"train: {seed: 9223372036854775808}", "x.yaml:1: train.seed: expected an integer, found '9223372036854775808'"},
      {"train: {steps: -1}", "x.yaml:1: train.steps: expected an integer in 0..1099511627776, found '-1'"},
      {"train: {log_every: 0}", "x.yaml:1: train.log_every: expected an integer >= 1, found '0'"},
      {"train: {device: gpu}", "x.yaml:1: train.device: expected auto|cpu|cuda|cuda:N, found 'gpu'"},
      {"train: {device: \"cuda:\"}", "x.yaml:1: train.device: expected auto|cpu|cuda|cuda:N, found quoted 'cuda:'"},
      {"train: {device: cuda:x}", "x.yaml:1: train.device: expected auto|cpu|cuda|cuda:N, found 'cuda:x'"},
      {"train: {device: [cuda]}", "x.yaml:1: train.device: expected auto|cpu|cuda|cuda:N, found a list"},
      {"train: {device: }", "x.yaml:1: train.device: expected auto|cpu|cuda|cuda:N, found nothing"},
      {"train: {compute: f64}", "x.yaml:1: train.compute: expected auto|f32|bf16, found 'f64'"},
      {"train: {backward: int4}", "x.yaml:1: train.backward: expected auto|compute|int8, found 'int4'"},
      {"train: {recompute: all}", "x.yaml:1: train.recompute: expected auto|none|rounded|selective|full, found 'all'"},
      {"train: {recompute: true}",
       "x.yaml:1: train.recompute: expected auto|none|rounded|selective|full, found 'true'"},
      {"train: {keep_blocks: -1}", "x.yaml:1: train.keep_blocks: expected an integer >= 0, found '-1'"},
      {"train: {capture: 1}", "x.yaml:1: train.capture: expected true or false, found '1'"},
      {"train: {recapture: true}", "x.yaml:1: unknown key 'train.recapture' (did you mean 'capture'?)"},
      {"train: {max_time: 30m2h}",
       "x.yaml:1: train.max_time: expected seconds or a duration such as 90m or 2h30m, found '30m2h'"},
      {"train: {max_time: -5}", "x.yaml:1: train.max_time: expected 0 to 1e9 seconds, found '-5'"},
      {"train: {resume: \"\"}", "x.yaml:1: train.resume: expected text that is not empty, found quoted ''"},
      {"data: {shuffle: yes}", "x.yaml:1: data.shuffle: expected true or false, found 'yes'"},
      {"data: {train: [a, [b]]}", "x.yaml:1: data.train[1]: expected text, found a list"},
      {"data: {tokenizer: \"a\\x00b\"}",
       "x.yaml:1: data.tokenizer: expected one line of UTF-8 text, found quoted 'a\\x00b'"},
      {"data: {train: }", "x.yaml:1: data.train: expected text, found nothing"},
      {"model: {precision: int8}", "x.yaml:1: model.precision: expected ternary|bf16|f32, found 'int8'"},
      {"model: {precision_rules: [3]}",
       "x.yaml:1: model.precision_rules[0]: expected a map {layers: [...], projections: [...], precision: ..., "
       "inner_norm: ...}, found "
       "'3'"},
      {"optim: {rules: [{roles: matrix}]}",
       "x.yaml:1: optim.rules[0]: the rule names no lr_factor and no weight_decay"},
      {"optim: {rules: [{roles: [matrices], lr_factor: 2}]}",
       "x.yaml:1: optim.rules[0].roles[0]: expected matrix|embedding|head|vector, found 'matrices'"},
      {"optim: {rules: [{lr_factor: -1}]}",
       "x.yaml:1: optim.rules[0].lr_factor: expected a number in [0, 1000], found '-1'"},
      {"optim: {name: adam}", "x.yaml:1: optim.name: expected adamw, found 'adam'"},
      {"model: {precision_rules: [{layers: 0}]}",
       "x.yaml:1: model.precision_rules[0]: the rule names no precision and no inner_norm"},
      {"model: {precision_rules: [{layer: 0, precision: f32}]}",
       "x.yaml:1: unknown key 'model.precision_rules[0].layer' (did you mean 'layers'?)"},
      {"model: {precision_rules: [{projections: [q_proj], precision: f32}]}",
       "x.yaml:1: model.precision_rules: unknown projection 'q_proj' (this model has: i_proj f_proj g_proj o_proj "
       "gate_proj down_proj lm_head)"},
      {"model: {channel: mlp, precision_rules: [{projections: [gate_proj], precision: f32}]}",
       "x.yaml:1: model.precision_rules: unknown projection 'gate_proj' (this model has: i_proj f_proj g_proj o_proj "
       "up_proj down_proj lm_head)"},
      {"model: {token: nothing}",
       concat("x.yaml:1: model.token: expected ", names_of(kAllTokenKinds), ", found 'nothing'")},
      {"model: {activation: swish}",
       concat("x.yaml:1: model.activation: expected ", names_of(kAllActivations), ", found 'swish'")},
      {"model:\n  layers:\n    - {repeat: 3, token: mlgru}\n    - {token: nothing}",
       concat("x.yaml:4: model.layers[1].token: expected ", names_of(kAllTokenKinds), ", found 'nothing'")},
      {"model:\n  layers: [{repeat: 3, heads: 4}]",
       "x.yaml:2: model.layers[0].heads: 4 heads, but mlgru mixes every channel on its own; leave heads and kv_heads "
       "out, or give 1 and 0"},
      {"model: {sliding_window: 4}",
       "x.yaml:1: model.sliding_window: 4, but mlgru has no heads and no window; leave it out, or give 0"},
      {"model: {rope_theta: 5}",
       "x.yaml:1: model.rope_theta: 5, but mlgru has no positions; leave it out, or give 10000"},
      {"model: {kv_heads: 2}",
       "x.yaml:1: model.kv_heads: 2 heads, but mlgru mixes every channel on its own; leave heads and kv_heads out, "
       "or give 1 and 0"},
      {"model: {token: attention, heads: 4, sliding_window: 2147483648}",
       "x.yaml:1: model.sliding_window: expected an integer in 0..2147483647, found '2147483648'"},
      {"model: {token: attention, heads: 4}\ndata:\n  carry_state: true",
       "x.yaml:3: data.carry_state: the keys and values of attention grow with every token; set it to false"},
      {"model: {heads: 4, num_hidden_layers: 2, layers: [{}, {token: attention}]}\ndata: {carry_state: true}",
       "x.yaml:2: data.carry_state: the keys and values of attention grow with every token; set it to false"},
      {"model: {heads: 16}",
       "x.yaml:1: model.heads: 16 heads, but mlgru mixes every channel on its own; leave heads and kv_heads out, "
       "or give 1 and 0"},
      {"model:\n  num_hidden_layers: 8\n  layers: [{repeat: 3}]",
       "x.yaml:2: model.num_hidden_layers: 8, but model.layers lists 3; leave num_hidden_layers out"},
      {"model: {layers: [{inner_norms: false}]}",
       "x.yaml:1: unknown key 'model.layers[0].inner_norms' (did you mean 'inner_norm'?)"},
      {"model:\n  num_hidden_layers: 2\n  precision_rules: [{layers: [2], precision: f32}]",
       "x.yaml:3: model.precision_rules: layer 2 is outside 0..1"},
      {"\nmodel: {vocab_size: 2}", "x.yaml:2: model.eos_token_id: 2 is outside -1..1"},
      {"model:\n  vocab_size: 10\n  eos_token_id: 10", "x.yaml:3: model.eos_token_id: 10 is outside -1..9"},
      {"train: {batch_size: 24, leaves: 6}",
       "x.yaml:1: train.leaves: 6 is no power of two that divides train.batch_size (24)"},
      {"train: {batch_size: 24, leaves: 16}",
       "x.yaml:1: train.leaves: 16 is no power of two that divides train.batch_size (24)"},
      {"train:\n  batch_size: 24\n  leaves: 4\n  micro_batch_size: 4",
       "x.yaml:4: train.micro_batch_size: 4 does not divide the 6 sequences of a leaf (train.batch_size / "
       "train.leaves)"},
      {"train:\n  batch_size: 10\n  micro_batch_size: 4",
       "x.yaml:3: train.micro_batch_size: 4 does not divide the 10 sequences of train.batch_size"},
      {"optim: {warmup_steps: 11}\ntrain: {steps: 10}",
       "x.yaml:1: optim.warmup_steps: 11 is more than train.steps (10)"},
      {"train: {steps: 0}",
       "x.yaml:1: train.steps: 0, expected 1 or more, or a length in train.tokens or train.epochs"},
      {"train: {steps: 5, tokens: 100}",
       "x.yaml:1: train.steps: train.tokens gives the length too; remove one of them"},
      {"train: {steps: 5, epochs: 0.5}",
       "x.yaml:1: train.steps: train.epochs gives the length too; remove one of them"},
      {"train:\n  tokens: 100\n  epochs: 1",
       "x.yaml:3: train.epochs: train.tokens gives the length too; remove one of them"},
      {"optim: {warmup_steps: 3, warmup_tokens: 9}",
       "x.yaml:1: optim.warmup_tokens: optim.warmup_steps gives the length of the warm-up too; remove one of them"},
      {"train: {keep_best: true}",
       "x.yaml:1: train.keep_best: there is no evaluation to compare by; set train.eval_every"},
      {"train: {early_stop: 3}", "x.yaml:1: train.early_stop: 3 evaluations, but train.eval_every is 0; set it"},
      {"train: {save_every: 4, keep_every: 6}",
       "x.yaml:1: train.keep_every: 6 is no multiple of train.save_every (4), where checkpoints are saved"},
      {"train: {skip_outliers: 1}",
       "x.yaml:1: train.skip_outliers: 1, expected 0 or more than 1: a gradient norm at the mean is no outlier"},
      {"train: {rollback: 1}", "x.yaml:1: train.rollback: there is no checkpoint to go back to; set train.save_every"},
      {"train: {eval_every: 5}", "x.yaml:1: train.eval_every: 5 asks for evaluations but data.valid is empty"},
      {"data: {eval_sets: [{name: a, shards: b}]}",
       "x.yaml:1: data.eval_sets: they are evaluated with data.valid, which is empty"},
      {"data: {valid: v, eval_sets: [{name: a/b, shards: c}]}",
       "x.yaml:1: data.eval_sets: name 'a/b', expected up to 64 letters, digits, '.', '_' and '-'"},
      {"data: {valid: v, eval_sets: [{name: a, shards: c}, {name: a, shards: d}]}",
       "x.yaml:1: data.eval_sets: two sets are called 'a'"},
      {"data: {valid: v, eval_sets: [{name: a}]}", "x.yaml:1: data.eval_sets[0]: the rule names no shards"},
      {"model: 3", "x.yaml:1: model: expected keys with values, found '3'"},
      {"- 1", "x.yaml:1: configuration: expected keys with values, found a list"},
      {"&x\n- *x\n", "x.yaml:1: anchors (&name) are not supported; quote text that starts with &"},
      {"data:\n  train: *.h5", "x.yaml:2: aliases (*name) are not supported; quote text that starts with *"},
      {"optim:\n  <<: {lr: 1}", "x.yaml:2: merge keys (<<) are not supported"},
      {"optim: !!map {}", "x.yaml:1: tags ('tag:yaml.org,2002:map') are not supported"},
      {"optim: {lr: !x 3}", "x.yaml:1: tags ('!x') are not supported"},
      {"{[a]: 3}", "x.yaml:1: a key must be plain text, found a list (is a bracket left open?)"},
      {"optim: {}\n---\noptim: {}", "x.yaml:3: a second YAML document; a configuration is one document"},
      {"train: {max_time: \"90\"}",
       "x.yaml:1: train.max_time: expected seconds or a duration such as 90m or 2h30m, found quoted '90'"},
      {"train: {max_time: 90q}",
       "x.yaml:1: train.max_time: expected seconds or a duration such as 90m or 2h30m, found '90q'"},
      {"train: {max_time: 1h5}",
       "x.yaml:1: train.max_time: expected seconds or a duration such as 90m or 2h30m, found '1h5'"},
      {"train: {max_time: 20000d}", "x.yaml:1: train.max_time: expected 0 to 1e9 seconds, found '20000d'"},
      {"train: {capture: \"true\"}", "x.yaml:1: train.capture: expected true or false, found quoted 'true'"},
      {"train: {threads: 4097}", "x.yaml:1: train.threads: expected an integer in 0..4096, found '4097'"},
      {"model: {precision: [f32]}", "x.yaml:1: model.precision: expected ternary|bf16|f32, found a list"},
      {"train: {batch_size: x, micro_batch_size: 7}", "x.yaml:1: train.batch_size: expected an integer, found 'x'"},
      {"a: b: c", "x.yaml:1: not valid YAML: illegal map value"},
      {"a: \"\\", "x.yaml:1: not valid YAML: unknown escape character in double quotes; write \\ for a backslash"},
      {"optim:\n  lr: [1\n", "x.yaml:3: not valid YAML: end of sequence flow not found"},
      {"a: \xff", "x.yaml: not UTF-8 text; is this a configuration?"},
  };
  for (const Case& c : cases) EXPECT_EQ(message_of(c.yaml), c.message) << c.yaml;
}

TEST(Config, RefusesBytesThatAreNotUtf8) {
  for (const char* bytes : {"\x80", "\xc0\x80", "\xc3", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                            "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\x7f", "\x1b"}) {
    EXPECT_TRUE(message_of(concat("# ", bytes)).ends_with("not UTF-8 text; is this a configuration?"));
    EXPECT_TRUE(message_of("", {concat("data.tokenizer=", bytes)}).ends_with("is not UTF-8 text on one line"));
  }
  EXPECT_EQ(message_of("# \xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82 \xed\x9f\xbf \xf4\x8f\xbf\xbf"), "accepted");
}

TEST(Config, ReportsAllProblemsInTheOrderOfTheFile) {
  EXPECT_EQ(message_of("train:\n  steps: x\nmodel:\n  hidden_size: 0\n  huh_uh: 1\noptim:\n  lr: 1\n  lr: 1\n",
                       {"data.seq_len=-1", "optim.epz=1", "oops"}),
            "x.yaml:2: train.steps: expected an integer, found 'x'\n"
            "x.yaml:4: model.hidden_size: expected an integer in 1..131072, found '0'\n"
            "x.yaml:5: unknown key 'model.huh_uh'\n"
            "x.yaml:8: duplicate key 'lr' (first in line 7)\n"
            "command line: 'oops' is not an override; expected section.key=value or ~section.key\n"
            "command line: data.seq_len: expected an integer in 1..1048576, found '-1'\n"
            "command line: unknown key 'optim.epz' (did you mean 'eps'?)");
}

TEST(Config, AProblemBelowAKeyIsOneOfTheKey) {
  Problems problems("x.yaml");
  problems.add(Problems::kNoLine, "data.valid[0]", "no line has it");
  EXPECT_TRUE(problems.failed("data.valid"));
  EXPECT_TRUE(problems.failed("data"));
  EXPECT_FALSE(problems.failed("data.val"));
  try {
    problems.throw_if_any();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "x.yaml: no line has it");
  }
}

TEST(Config, LimitsSizeDepthAndCount) {
  std::string deep, many = "data: {train: [", keys;
  for (int i = 0; i < 33; ++i) deep += "- ";
  for (int i = 0; i < 20000; ++i) many += "a,";
  for (int i = 0; i < 150; ++i) keys += concat("k", i, ": 1\n");
  EXPECT_EQ(message_of(deep + "1"), "x.yaml:1: nested deeper than 32 levels");
  EXPECT_EQ(message_of(many + "]}"), "x.yaml:1: more than 20000 values");
  EXPECT_EQ(message_of(std::string((1 << 20) + 1, '#')), "x.yaml: larger than 1 MiB; is this a configuration?");
  EXPECT_EQ(message_of(std::string(1 << 20, '#')), "accepted");
  EXPECT_TRUE(message_of(keys).ends_with("x.yaml:100: unknown key 'k99'\nx.yaml: and 50 more"));
  for (const char* part : {"[", "{", "- ", "? ", "a: ", "[a,", "{a: {", "*a ", "\"a\" "}) {
    std::string bomb;
    while (bomb.size() < 100000) bomb += part;
    EXPECT_NE(message_of(bomb), "accepted") << part;
  }
}

TEST(Config, SaysWhereAndHowToCompute) {
  const RunConfig defaults = load_config_text("", "x.yaml");
  EXPECT_STREQ(name_of(defaults.train.device).c_str(), "auto");
  EXPECT_STREQ(name_of(defaults.train.compute), "auto");
  EXPECT_STREQ(name_of(defaults.train.recompute), "auto");
  EXPECT_EQ(defaults.train.keep_blocks, 1);
  EXPECT_TRUE(defaults.train.capture);
  for (const char* device : {"auto", "cpu", "cuda", "cuda:0", "cuda:999"})
    for (const char* compute : {"auto", "f32", "bf16"})
      for (const char* recompute : {"auto", "none", "rounded", "selective", "full"}) {
        const RunConfig c = load_config_text(concat("train: {device: ", device, ", compute: ", compute,
                                                    ", recompute: ", recompute, ", keep_blocks: 5, capture: false}"),
                                             "x.yaml");
        EXPECT_EQ(name_of(c.train.device), device);
        EXPECT_STREQ(name_of(c.train.compute), compute);
        EXPECT_STREQ(name_of(c.train.recompute), recompute);
        EXPECT_EQ(c.train.keep_blocks, 5);
        EXPECT_FALSE(c.train.capture);
        // None of them makes a resumed run another training.
        for (const ConfigChange& change : compare(defaults, c))
          if (change.key != "train.run_dir") {
            EXPECT_FALSE(change.dangerous) << change.text();
          }
      }
}

TEST(Config, OverridesWinOverTheFileAndTheLastOverrideOverOthers) {
  const RunConfig c =
      load_config_text("optim: {lr: 1}\ndata: {train: a}\n", "x.yaml",
                       {"optim.lr=2", "optim.lr=1e-3", "data.train=*.h5", "data.valid=[b, \"c,d\"]",
                        "train.run_dir=a=b", "data.tokenizer=", "model.precision_rules=[{precision: f32}]"});
  EXPECT_EQ(c.optim.lr, 1e-3);
  EXPECT_EQ(c.data.train, std::vector<std::string>{"*.h5"});
  EXPECT_EQ(c.data.valid, (std::vector<std::string>{"b", "c,d"}));
  EXPECT_EQ(c.train.run_dir, "a=b");
  EXPECT_EQ(c.data.tokenizer, "");
  EXPECT_EQ(c.model.precision_rules.at(0).precision, Precision::f32);
  const std::pair<const char*, const char*> bad[] = {
      {"optim.lr=1 # x", "command line: optim.lr: expected a number, found '1 # x'"},
      {"optim.lr=\"\\",
       "command line: 'optim.lr=\"\\': not valid YAML: unknown escape character in double quotes; write \\ for a "
       "backslash"},
      {"lr=1", "command line: unknown key 'lr' (did you mean 'optim.lr'?)"},
      {"optim.lr.x=1", "command line: unknown key 'optim.lr.x'"},
      {"model.precision_rules=[{projections:[lm_head],precision:bf16}]",
       "command line: 'model.precision_rules=[{projections:[lm_head],precision:bf16}]': not valid YAML: end of map "
       "flow "
       "not found; write a space after each colon, as in {a: 1}"},
      {"model.precision_rules=[{precision:bf16}]",
       "command line: model.precision_rules[0]: the rule names no precision and no inner_norm\n"
       "command line: unknown key 'model.precision_rules[0].precision:bf16' (write 'precision: ', with a space after "
       "the colon)"},
      {"optim=1", "command line: optim: expected keys with values, found '1'"},
      {"=1", "command line: '=1' is not an override; expected section.key=value or ~section.key"},
      {"data.train=[a", "command line: a key must be plain text, found a list (is a bracket left open?)"},
      {"data.train=a\nb", "command line: 'data.train=a\\x0ab' is not UTF-8 text on one line"},
      {"train.steps=", "command line: train.steps: expected an integer, found ''"},
      {"optim={lr: 1, lr: 2}", "command line: duplicate key 'lr'"},
      {"train.micro_batch_size=3",
       "command line: train.micro_batch_size: 3 does not divide the 16 sequences of train.batch_size"},
  };
  for (const auto& [text, message] : bad) EXPECT_EQ(message_of("", {text}), message);
}

TEST(Config, MissingFilesHaveTheirOwnStatus) {
  for (const char* path : {"no/such.yaml", "/"}) {
    try {
      load_config(path);
      FAIL() << path;
    } catch (const MissingError& error) {
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
    }
  }
  EXPECT_THROW(load_config("/dev/zero"), ConfigError);
  EXPECT_THROW(load_config("/proc/self/mem"), MissingError) << "opens, and cannot be read";
}

TEST(Config, PresetsHaveTheirParametersAndReadBackFromTheirResolvedForm) {
  const std::pair<const char*, int64_t> presets[] = {{"quickstart", 2565248},
                                                     {"8m", 10641408},
                                                     {"50m", 71376384},
                                                     {"370m", 374108160},
                                                     {"1.3b", 1364779008},
                                                     {"2.7b", 2702357504},
                                                     {"1.3b-8gpu", 1364779008},
                                                     {"2.7b-8gpu", 2702357504},
                                                     {"transformer-50m", 71315968},
                                                     {"transformer-370m", 373867520},
                                                     {"transformer-1.3b", 1364297728}};
  for (const auto& [name, parameters] : presets) {
    const RunConfig c = load_config(preset(name));
    EXPECT_EQ(c.model.parameter_count(), parameters) << name;
    EXPECT_EQ(c.train.run_dir, std::string("runs/") + name);
    EXPECT_FALSE(c.data.train.empty()) << name;
    expect_equal(load_config_text(to_yaml(c), "other.yaml"), c);
    std::ifstream in(preset(name));
    std::stringstream text;
    text << in.rdbuf();
    std::string count = std::to_string(parameters);
    for (int at = static_cast<int>(count.size()) - 3; at > 0; at -= 3) count.insert(static_cast<size_t>(at), ",");
    EXPECT_NE(text.str().find("# " + count + " parameters"), std::string::npos) << name << "'s header: " << count;
  }
}

TEST(Config, RandomConfigurationsReadBackEqual) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 500 && !testing::Test::HasFailure(); ++i) {
    const RunConfig c = random_config(random);
    const std::string yaml = to_yaml(c);
    SCOPED_TRACE(yaml);
    const RunConfig back = load_config_text(yaml, "x.yaml");
    expect_equal(back, c);
    EXPECT_TRUE(compare(c, back).empty());
  }
}

TEST(Config, DamagedTextIsRefusedOrReadButNeverCrashes) {
  std::mt19937_64 random(11);
  const std::string good = to_yaml(random_config(random));
  const std::string alphabet = "[]{}:,-?&*!|>'\"%@`#~ \n\t\\0a";
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    for (int j = 0; j < 1 + i % 4; ++j) bad[random() % bad.size()] = alphabet[random() % alphabet.size()];
    refused += message_of(bad) != "accepted";
  }
  EXPECT_GT(refused, 1000);
}

TEST(Config, ComparesAndMarksWhatEndangersAResumedRun) {
  RunConfig a, b;
  EXPECT_TRUE(compare(a, b).empty());
  b.optim.lr = 0.001;
  b.train.steps = 2000;
  b.model.hidden_size = 512;
  b.data.seq_len = 128;
  b.data.shuffle = false;
  b.data.reset_state = true;
  b.data.carry_state = true;
  b.data.valid = {"v"};
  b.train.batch_size = 8;
  b.train.seed = 2;
  b.source = "elsewhere";
  std::vector<std::string> safe, dangerous;
  for (const ConfigChange& change : compare(a, b)) (change.dangerous ? dangerous : safe).push_back(change.text());
  EXPECT_EQ(safe, (std::vector<std::string>{"data.valid: [] -> [\"v\"]", "optim.lr: 0.004 -> 0.001",
                                            "train.steps: 1000 -> 2000"}));
  EXPECT_EQ(dangerous, (std::vector<std::string>{"model.hidden_size: 256 -> 512", "data.seq_len: 256 -> 128",
                                                 "data.shuffle: true -> false", "data.reset_state: false -> true",
                                                 "data.carry_state: false -> true", "train.batch_size: 16 -> 8",
                                                 "train.seed: 1 -> 2"}));
}

TEST(Config, ListedLayersDifferWhereTheySayAndGiveTheNumberOfLayers) {
  const RunConfig c = load_config_text(
      "model:\n  hidden_size: 12\n  activation: relu\n  inner_norm: false\n  layers:\n"
      "    - {repeat: 3, token: mlgru}\n"
      "    - {channel: mlp, activation: selu, precision: bf16, inner_norm: true, gate_order: paper, intermediate_size: "
      "20, kv_heads: 1}\n"
      "  precision_rules: [{layers: 3, projections: o_proj, precision: f32}]\n",
      "x.yaml", {"model.intermediate_size=7"});
  EXPECT_EQ(c.model.num_hidden_layers, 4);
  for (int l : {-1, 0, 1, 2}) {
    const LayerConfig layer = c.model.layer(l);
    EXPECT_EQ(layer.channel, ChannelKind::glu);
    EXPECT_EQ(layer.activation, Activation::relu);
    EXPECT_EQ(layer.precision_of("o_proj"), Precision::ternary);
    EXPECT_FALSE(layer.inner_norm);
    EXPECT_EQ(layer.inner, 7);
  }
  const LayerConfig last = c.model.layer(3);
  EXPECT_EQ(last.channel, ChannelKind::mlp);
  EXPECT_EQ(last.activation, Activation::selu);
  EXPECT_EQ(last.precision_of("i_proj"), Precision::bf16);
  EXPECT_EQ(last.precision_of("o_proj"), Precision::f32);
  EXPECT_TRUE(last.inner_norm);
  EXPECT_EQ(last.gate_order, GateOrder::paper);
  EXPECT_EQ(last.inner, 20);
  EXPECT_EQ(last.kv_heads, 1);
}

TEST(Config, ReferenceNamesEveryKeyWithItsDefault) {
  const std::string text = config_reference();
  EXPECT_NE(text.find("optim.lr = 0.004\n    peak learning rate (number in [0, 10])\n"), std::string::npos) << text;
  EXPECT_NE(text.find("model.precision = ternary\n"), std::string::npos);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2 * (27 + 11 + 15 + 38));
}

TEST(Config, ATildeTakesAKeyBack) {
  const std::string yaml = "model: {vocab_size: 9}\noptim: {lr: 0.5, eps: 0.25}\ntrain: {seed: 7}\n";
  const auto load = [&](const std::vector<std::string>& overrides) {
    return load_config_text(yaml, "x.yaml", overrides);
  };
  const RunConfig defaults;
  EXPECT_EQ(load({"~optim.lr"}).optim.lr, defaults.optim.lr);
  EXPECT_EQ(load({"~optim.lr"}).optim.eps, 0.25);
  EXPECT_EQ(load({"optim.lr=0.75", "~optim.lr"}).optim.lr, defaults.optim.lr);
  EXPECT_EQ(load({"~optim.lr", "optim.lr=0.75"}).optim.lr, 0.75);
  EXPECT_EQ(load({"~optim.betas"}).optim.lr, 0.5) << "it was not given";
  const RunConfig section = load({"~optim", "optim.eps=0.125"});
  EXPECT_EQ(section.optim.lr, defaults.optim.lr);
  EXPECT_EQ(section.optim.eps, 0.125);
  EXPECT_EQ(section.train.seed, 7);
  EXPECT_EQ(load({"~data"}).optim.lr, 0.5);
  EXPECT_EQ(message_of(yaml, {"~optim.lrr"}), "command line: unknown key 'optim.lrr' (did you mean 'lr'?)");
  EXPECT_EQ(message_of(yaml, {"~optim.lr=1"}),
            "command line: '~optim.lr=1' is not an override; expected section.key=value or ~section.key");
  EXPECT_EQ(message_of(yaml, {"~"}),
            "command line: '~' is not an override; expected section.key=value or ~section.key");
}

TEST(Config, TellsWhereEachValueCameFrom) {
  const RunConfig c = load_config_text("model:\n  vocab_size: 9\noptim: {lr: 0.5, eps: 0.25}\n", "x.yaml",
                                       {"optim.lr=0.75", "~optim.eps", "train.seed=3"});
  EXPECT_EQ(c.origins.at("model.vocab_size"), "x.yaml:2");
  EXPECT_EQ(c.origins.at("optim.lr"), "command line");
  EXPECT_EQ(c.origins.at("optim.eps"), "default");
  EXPECT_EQ(c.origins.at("train.seed"), "command line");
  EXPECT_EQ(c.origins.at("data.train"), "default");
  const std::string text = to_yaml_with_origins(c);
  EXPECT_NE(text.find("  lr: 0.75                                    # command line\n"), text.npos) << text;
  const RunConfig again = load_config_text(text, "y.yaml");
  EXPECT_TRUE(compare(c, again).empty()) << "it is a configuration like another";
  EXPECT_EQ(config_keys().size(), c.origins.size());
}

}  // namespace
}  // namespace mmfree
