// Runs that start with the weights of a model that is there already.
#include <gtest/gtest.h>

#include <csignal>

#include "core/quantize.h"
#include "layers/parameters.h"
#include "tests/support/compare.h"
#include "tests/support/llama_models.h"
#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/run/init_from.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

Tensor logits(const Model& m) { return m.lm->logits(random_ids(51, m.config.vocab_size, 3), 3); }

void save(const std::string& path, const Model& m) {
  RunConfig c;
  c.model = m.config;
  save_checkpoint(path, c, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
}

void save_hf(const std::string& dir, const Model& m) {
  std::vector<std::pair<std::string, Shape>> tensors;
  for (const ParamSpec& spec : parameter_specs(m.config)) tensors.emplace_back(spec.name, spec.shape);
  write_hf_folder(dir, m.config, tensors, [&](const std::string& name) { return (*m.params)[name].value(); });
}

/// Makes no step: what is saved is what the run starts with. Returns what it says.
std::string start_only(const RunConfig& c) {
  return text_of([&] {
    Trainer trainer(c, true, false);
    std::raise(SIGTERM);
    EXPECT_EQ(trainer.run().step, 0);
  });
}

TEST(InitFrom, EveryFormGivesItsModelAndAFreshRun) {
  const TempDir dir;
  ModelConfig model = tiny_run("").model;
  model.num_hidden_layers = 3;
  mix_precisions(model);
  const Model m = tiny_model(model);
  fs::create_directories(dir / "old/checkpoints");
  save(checkpoint_path(dir / "old", 7), m);
  save_hf(dir / "hf", m);
  export_ternary(dir / "m.mmfree", m, EmbeddingStore::f32);
  export_ternary(dir / "small.mmfree", m, EmbeddingStore::int8);
  for (const std::string name : {"old", "old/checkpoints/step-00000007.h5", "hf", "m.mmfree", "small.mmfree"}) {
    SCOPED_TRACE(name);
    RunConfig c = tiny_run(dir / "run");
    c.model = model;
    c.train.init_from = dir / name;
    const std::string said = start_only(c);
    EXPECT_TRUE(contains(said, "starting with the weights of " + (dir / "")));
    EXPECT_EQ(contains(said, "no latent weights"), name.ends_with(".mmfree")) << said;
    EXPECT_FALSE(contains(said, "lacks")) << said;
    EXPECT_TRUE(same_bits(logits(load_model(dir / "run")), logits(load_model(dir / name))));
    const Checkpoint saved(checkpoint_path(dir / "run", 0));
    EXPECT_EQ(saved.state().updates, 0);
    for (const auto& [tensor, bytes] : learned(saved.path())) {
      if (tensor.starts_with("adam_")) {
        EXPECT_EQ(bytes.find_first_not_of('\0'), std::string::npos) << tensor;
      }
    }
    EXPECT_EQ(nlohmann::json::parse(slurp(dir / "run/run.json"))["init_from"], dir / name);
    fs::remove_all(dir / "run");
  }
}

TEST(InitFrom, LatentsQuantiseToTheVeryCodesAndScale) {
  const RandomStream random(5, 0, "codes");
  uint64_t draw = 0;
  for (const float scale : {1e-5f, 0.0213f, 0.4999999f, 0.5f, 1.9999999f, 3.3e20f})
    for (const double density : {0.001, 0.37, 0.66, 0.999, 1.0})
      for (const int64_t rows : {1, 67}) {
        const int64_t cols = 1000;
        Tensor codes({rows, cols}, DType::i8);
        for (int64_t i = 0; i < codes.size(); ++i) {
          const double u = random.uniform(draw++);
          codes.mut<int8_t>()[i] = int8_t(u >= density ? 0 : u < density / 2 ? 1 : -1);
        }
        codes.mut<int8_t>()[0] = 1;
        TernaryTensor w = make_ternary(rows, cols, DType::f32), again = make_ternary(rows, cols, DType::f32);
        pack_ternary(codes.data<int8_t>(), rows, cols, w.codes.mut<uint8_t>());
        *w.scale.mut<float>() = scale;
        ternary_quantise(latents_of(w, "w"), again);
        EXPECT_TRUE(same_bits(w.codes, again.codes)) << scale << " " << density << " " << rows;
        EXPECT_EQ(*again.scale.data<float>(), scale) << density << " " << rows;
      }
}

TEST(InitFrom, ScalesThatNoLatentsHaveAreRefused) {
  TernaryTensor w = make_ternary(1, 8, DType::f32);
  const int8_t one[8] = {1}, none[8] = {};
  pack_ternary(one, 1, 8, w.codes.mut<uint8_t>());
  for (const float scale : {0.9e-5f, 3e38f}) {
    *w.scale.mut<float>() = scale;
    EXPECT_TRUE(contains(error_of<DataError>([&] { latents_of(w, "m: head"); }), "m: head: has scale")) << scale;
  }
  pack_ternary(none, 1, 8, w.codes.mut<uint8_t>());
  const Tensor zero = latents_of(w, "w");
  EXPECT_TRUE(same_bits(zero, Tensor::zeros({1, 8}, DType::f32)));
}

TEST(InitFrom, WhatTheSourceLacksStartsFreshAndWhatHasNoPlaceIsNamed) {
  const TempDir dir;
  ModelConfig model = tiny_run("").model;
  model.gate_order = GateOrder::paper;  // without g_norm
  const Model m = tiny_model(model);
  save(dir / "m.h5", m);
  RunConfig c = tiny_run(dir / "run");
  c.model.use_lower_bound = false;
  c.model.precision = Precision::bf16;
  c.train.init_from = dir / "m.h5";
  const std::string said = start_only(c);
  EXPECT_TRUE(contains(said, "which start fresh: model.layers.*.attn.g_norm.weight (2)\n")) << said;
  EXPECT_TRUE(contains(said, "this model lacks these parameters of it: model.lower_bounds\n")) << said;
  const Model started = load_model(dir / "run");
  for (const ParamSpec& spec : started.params->specs()) {
    const Tensor value = (*started.params)[spec.name].value();
    if (m.params->has(spec.name))
      EXPECT_TRUE(same_bits(value, (*m.params)[spec.name].value())) << spec.name;
    else
      for (int64_t i = 0; i < value.size(); ++i) EXPECT_EQ(value.data<float>()[i], 1.0f) << spec.name;
  }
  EXPECT_EQ(started.config.precision, Precision::bf16);
}

TEST(InitFrom, AKeyThatDoesNotFitIsNamedWithTensorAndShapes) {
  const TempDir dir;
  const Model m = tiny_model(tiny_run("").model);
  save(dir / "m.h5", m);
  const auto refusal = [&](const std::function<void(ModelConfig&)>& change) {
    RunConfig c = tiny_run(dir / "run");
    c.model.precision = Precision::f32;  // fits, and so is not named
    change(c.model);
    c.train.init_from = dir / "m.h5";
    const std::string said = error_of<ConfigError>([&] { train(c); });
    EXPECT_FALSE(fs::exists(dir / "run"));
    return said;
  };
  const int64_t d = m.config.hidden_size, layers = m.config.num_hidden_layers;
  EXPECT_EQ(refusal([&](ModelConfig& c) { c.hidden_size = 48; }),
            concat("tiny.yaml: model.hidden_size=48 does not fit train.init_from: tensor 'model.embeddings.weight' is ",
                   Shape{323, d}, " in ", dir / "m.h5", ", and this model needs ", Shape{323, 48}));
  EXPECT_EQ(refusal([&](ModelConfig& c) { c.num_hidden_layers = 3; }),
            concat("tiny.yaml: model.num_hidden_layers=3 does not fit train.init_from: tensor 'model.lower_bounds' is ",
                   Shape{layers, d}, " in ", dir / "m.h5", ", and this model needs ", Shape{3, d}));
}

/// The tiny run's YAML without the model's keys.
std::string yaml_without_model(const RunConfig& c) {
  const std::string text = to_yaml(c);
  return text.substr(text.find("data:"));
}

TEST(InitFrom, KeysThatAreNotGivenComeFromTheSource) {
  ModelConfig source = tiny_run("").model;
  source.gate_order = GateOrder::fixed;
  int asked = 0;
  const auto defaults = [&](const TrainConfig& train) {
    ++asked;
    EXPECT_EQ(train.init_from, "there");
    EXPECT_EQ(train.run_dir, "runs/x");
    return source;
  };
  const RunConfig c = load_config_text("model: {precision: bf16}\n", "x.yaml",
                                       {"train.init_from=there", "model.bos_token_id=5"}, defaults);
  EXPECT_EQ(c.model.hidden_size, source.hidden_size);
  EXPECT_EQ(c.model.gate_order, GateOrder::fixed);
  EXPECT_EQ(c.model.precision, Precision::bf16);
  EXPECT_EQ(c.model.bos_token_id, 5);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(load_config_text("", "x.yaml", {}, defaults).model.hidden_size, ModelConfig().hidden_size);
  EXPECT_EQ(asked, 1) << "without init_from";
}

/// What `train.init_from` makes of a llama folder with these overrides; the head's precision and norm of it.
std::pair<Precision, bool> head_of(const ModelConfig& source, const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {"train.init_from=there"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  const RunConfig c = load_config_text("", "x.yaml", all, [&](const TrainConfig&) { return source; });
  return {c.model.layer(-1).precision_of("lm_head"), c.model.layer(-1).inner_norm_of("lm_head")};
}

TEST(InitFrom, AModelThatBecomesTernaryKeepsItsHeadUnlessAsked) {
  const ModelConfig llama = tiny_llama();
  const auto kept = std::pair(Precision::f32, false), converted = std::pair(Precision::ternary, false);
  EXPECT_EQ(head_of(llama, {"model.precision=ternary"}), kept);
  EXPECT_EQ(head_of(llama, {"model.precision=ternary", "model.inner_norm=true"}), kept);
  EXPECT_EQ(head_of(llama, {"model.precision=ternary", "model.precision_rules=[]"}), converted);
  EXPECT_EQ(head_of(llama, {"model.inner_norm=true"}), std::pair(Precision::f32, true)) << "not made ternary";
  EXPECT_EQ(head_of(llama, {"model.precision=bf16"}), std::pair(Precision::bf16, false));
  ModelConfig ternary = llama;
  ternary.precision = Precision::ternary;
  EXPECT_EQ(head_of(ternary, {"model.precision=ternary"}), converted) << "as it was";
  ModelConfig bits = llama;
  make_bitnet(bits, true, Precision::bf16);
  EXPECT_EQ(head_of(bits, {"model.precision=ternary"}), std::pair(Precision::bf16, false)) << "the source's rule";
  const auto twice = [&](const TrainConfig&) { return bits; };
  EXPECT_EQ(load_config_text("", "x.yaml", {"train.init_from=there", "model.precision=ternary"}, twice)
                .model.precision_rules.size(),
            1u)
      << "no rule is added to a rule";
}

TEST(InitFrom, ALlamaFolderIsTrainedOnAsBitNet) {
  const TempDir dir;
  ModelConfig llama = tiny_llama();
  llama.vocab_size = 323;
  llama.hidden_size = 64, llama.heads = 8;
  const Model m = tiny_model(llama);
  save_hf(dir / "llama", m);
  RunConfig c = tiny_run(dir / "run");
  c.train.init_from = dir / "llama";
  spit(dir / "run.yaml", yaml_without_model(c));
  Program run({"train", dir / "run.yaml", "model.precision=ternary", "model.inner_norm=true", "model.sub_norm=true"});
  ASSERT_EQ(run.wait(), 0) << run.err();
  EXPECT_TRUE(contains(run.err(), "projections become ternary, the head stays f32; model.precision_rules=[] makes"))
      << run.err();
  EXPECT_TRUE(contains(run.err(), "which start fresh: model.layers.*.attn.q_proj.norm.weight (3)")) << run.err();
  EXPECT_TRUE(contains(run.err(), "model.layers.*.mlp.sub_norm.weight (3)")) << run.err();
  EXPECT_FALSE(contains(run.err(), "lacks these parameters of it")) << run.err();
  const Model trained = load_model(dir / "run");
  EXPECT_EQ(trained.config.layer(1).precision_of("q_proj"), Precision::ternary);
  EXPECT_EQ(trained.config.layer(-1).precision_of("lm_head"), Precision::f32);
  EXPECT_FALSE(trained.params->has("lm_head.norm.weight"));
  Program exported({"export", dir / "run", dir / "bits", "--format", "hf"});
  ASSERT_EQ(exported.wait(), 0) << exported.err();
  EXPECT_EQ(exported.err(), "") << "transformers loads it: nothing to warn of";
  EXPECT_TRUE(same_bits(logits(load_model(dir / "bits")), logits(trained)));
}

TEST(InitFrom, GateAndUpProjectionAreJoinedAndSplit) {
  const TempDir dir;
  ModelConfig model = tiny_llama();
  model.vocab_size = 323;
  for (const bool fused : {false, true}) {
    model.fused_gate = fused;
    const Model m = tiny_model(model);
    save(dir / "m.h5", m);
    RunConfig c = tiny_run(dir / "run");
    c.model = model;
    c.model.fused_gate = !fused;
    c.train.init_from = dir / "m.h5";
    const std::string said = start_only(c);
    EXPECT_FALSE(contains(said, "lacks")) << said;
    EXPECT_TRUE(same_bits(logits(load_model(dir / "run")), logits(m))) << fused;
    fs::remove_all(dir / "run");
  }
  model.fused_gate = true, model.inner_norm = true;
  const Model m = tiny_model(model);
  save(dir / "m.h5", m);
  RunConfig c = tiny_run(dir / "run");
  c.model = model;
  c.model.fused_gate = false;
  c.train.init_from = dir / "m.h5";
  EXPECT_FALSE(contains(start_only(c), "lacks")) << "both get the norm";
  EXPECT_TRUE(same_bits(logits(load_model(dir / "run")), logits(m)));
}

TEST(InitFrom, AHeadOfItsOwnStartsAsTheTableThatItWas) {
  const TempDir dir;
  for (const bool ternary : {false, true}) {
    ModelConfig model = tiny_llama();
    model.vocab_size = 323;
    if (ternary) model.precision = Precision::ternary;
    model.tie_word_embeddings = true;
    const Model m = tiny_model(model);
    save(dir / "m.h5", m);
    export_ternary(dir / "m.mmfree", m, EmbeddingStore::f32);
    for (const std::string name : {"m.h5", "m.mmfree"}) {
      RunConfig c = tiny_run(dir / "run");
      c.model = model;
      c.model.tie_word_embeddings = false;
      c.train.init_from = dir / name;
      const std::string said = start_only(c);
      EXPECT_TRUE(contains(said, "the head starts as a copy of the embedding table\n")) << said;
      EXPECT_FALSE(contains(said, "lacks")) << said;
      EXPECT_TRUE(same_bits(logits(load_model(dir / "run")), logits(m))) << name << ' ' << ternary;
      fs::remove_all(dir / "run");
    }
  }
}

TEST(InitFrom, TheSourcesTokenizerIsTakenIfItMadeTheShards) {
  const TempDir dir;
  Model m = tiny_model(tiny_run("").model);
  save(dir / "m.h5", m);
  RunConfig c = tiny_run(dir / "run");
  c.data.tokenizer.clear();
  c.train.init_from = dir / "m.h5";
  spit(dir / "run.yaml", yaml_without_model(c));
  Program first({"train", dir / "run.yaml", "train.max_time=1e-9"});
  EXPECT_EQ(first.wait(), 75) << first.err();
  EXPECT_FALSE(contains(first.err(), "warning")) << first.err();
  fs::remove(dir / "m.h5");
  Program again({"train", dir / "run.yaml", "--resume"});
  EXPECT_EQ(again.wait(), 0) << again.err();
  ASSERT_TRUE(load_model(dir / "run").tokenizer);
  EXPECT_EQ(load_model(dir / "run").tokenizer->hash(), TinyCorpus::get().tokenizer().hash());

  TokenizerTraining other;
  other.inputs = {spit(dir / "other.txt", tiny_text(2000, 7))};
  other.output = dir / "other.model";
  other.vocab_size = 310;
  m.tokenizer = Tokenizer::train(other);
  save(dir / "other.h5", m);
  c.train.init_from = dir / "other.h5";
  c.train.run_dir = dir / "run2";
  EXPECT_TRUE(contains(
      start_only(c),
      "warning: the training shards were prepared with another tokenizer than that of " + (dir / "other.h5") + ": "));
  EXPECT_FALSE(load_model(dir / "run2").tokenizer);
}

TEST(InitFrom, AResumedRunNeedsItsSourceNoMore) {
  const TempDir dir;
  const Model m = tiny_model(tiny_run("").model);
  save(dir / "m.h5", m);
  RunConfig c = tiny_run(dir / "run");
  c.train.init_from = dir / "m.h5";
  spit(dir / "run.yaml", yaml_without_model(c));
  const std::string whole = "train.run_dir=" + (dir / "whole");
  Program uninterrupted({"train", dir / "run.yaml", whole, "-q"});
  ASSERT_EQ(uninterrupted.wait(), 0) << uninterrupted.err();
  Program first({"train", dir / "run.yaml", "train.max_time=1e-9"});
  EXPECT_EQ(first.wait(), 75) << first.err();
  EXPECT_TRUE(contains(first.err(), "starting with the weights of " + (dir / "m.h5"))) << first.err();
  fs::remove(dir / "m.h5");
  Program again({"train", dir / "run.yaml", "--resume"});
  EXPECT_EQ(again.wait(), 0) << again.err();
  EXPECT_FALSE(contains(again.err(), "starting with")) << again.err();
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 12)), learned(checkpoint_path(dir / "whole", 12)));
  Program anew({"train", dir / "run.yaml", "train.run_dir=" + (dir / "anew")});
  EXPECT_EQ(anew.wait(), 66) << anew.err();
  EXPECT_TRUE(contains(anew.err(), "train.init_from: no model at '" + (dir / "m.h5") + "'")) << anew.err();
  Program both({"train", dir / "run.yaml", "train.resume=" + checkpoint_path(dir / "run", 12)});
  EXPECT_EQ(both.wait(), 78);
  EXPECT_TRUE(contains(both.err(), "train.init_from: a run starts from this model's weights or continues"))
      << both.err();
}

}  // namespace
}  // namespace mmfree
