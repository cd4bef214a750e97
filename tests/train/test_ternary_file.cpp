// The deployment format: bit-equal logits, nothing latent inside, its promised size, and no damage that goes unseen.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/elementwise.h"
#include "core/system/hash.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/formats/safetensors.h"
#include "train/formats/ternary_file.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

Tensor logits(const Model& m) { return m.lm->logits(random_ids(3 * 19, m.config.vocab_size, 3), 3); }

std::vector<ModelConfig> configs() {
  ModelConfig plain = tiny_model_config(), mixed = plain, paper = plain, bf16 = plain;
  mix_precisions(mixed);
  paper.gate_order = GateOrder::paper;
  paper.use_lower_bound = false;
  bf16.precision = Precision::bf16;
  return {plain, mixed, paper, bf16};
}

TEST(TernaryFile, LogitsAreBitEqualInEveryStoreAndPrecision) {
  for (const ModelConfig& config : configs())
    for (EmbeddingStore store : {EmbeddingStore::f32, EmbeddingStore::bf16, EmbeddingStore::int8}) {
      const TempDir dir;
      Model m = tiny_model(config);
      m.seq_len = 77;
      const Tensor before = logits(m);
      std::vector<Tensor> latents;
      m.lm->for_each_projection([&](const BitLinear& p) { latents.push_back(p.weight.value().clone()); });
      export_ternary(dir / "m", m, store);
      EXPECT_TRUE(same_bits(logits(m), before)) << "the caller's model changed";
      Tensor table = (*m.params)["model.embeddings.weight"].value();
      table.copy_from(rounded_embedding(table, store));
      size_t i = 0;
      m.lm->for_each_projection([&](const BitLinear& p) { EXPECT_TRUE(same_bits(p.weight.value(), latents[i++])); });
      const Model loaded = read_ternary_file(dir / "m");
      EXPECT_TRUE(same_bits(logits(loaded), logits(m)));
      EXPECT_EQ(same_bits(logits(m), before), store == EmbeddingStore::f32);
      EXPECT_EQ(loaded.seq_len, 77);
      EXPECT_EQ(loaded.need_tokenizer().serialized(), m.tokenizer->serialized());
      // An export of the export is the same file.
      Model again = read_ternary_file(dir / "m");
      if (store != EmbeddingStore::f32) continue;
      export_ternary(dir / "again", again, store);
      EXPECT_EQ(slurp(dir / "again"), slurp(dir / "m"));
    }
}

TEST(TernaryFile, AnExportThatIsNotTheModelNeverReplacesAnother) {
  const TempDir dir;
  Model m = tiny_model(tiny_model_config(), false);
  spit(dir / "m", "an older export");
  m.config.gate_order = GateOrder::paper;  // what the file will say, and not what m computes
  EXPECT_THROW(export_ternary(dir / "m", m, EmbeddingStore::f32), Error);
  EXPECT_EQ(slurp(dir / "m"), "an older export");
  EXPECT_EQ(dir.files(), 1u);
  m.config.gate_order = GateOrder::reference;
  export_ternary(dir / "m", m, EmbeddingStore::f32);
  EXPECT_EQ(read_ternary_file(dir / "m").config.gate_order, GateOrder::reference);
}

TEST(TernaryFile, HoldsCodesAndScalesAndNothingLatent) {
  const TempDir dir;
  ModelConfig config = tiny_model_config();
  mix_precisions(config);
  const Model m = tiny_model(config);
  write_ternary_file(dir / "m", m, EmbeddingStore::bf16);
  const SafetensorsReader file(dir / "m");
  int ternary = 0;
  for (const auto& [name, short_name, matrix, precision] : projections(m.config)) {
    SCOPED_TRACE(name);
    const Tensor latent = (*m.params)[name + ".weight"].value();
    EXPECT_EQ(file.has(name + ".weight"), precision != Precision::ternary);
    EXPECT_EQ(file.has(name + ".codes"), precision == Precision::ternary);
    if (precision == Precision::bf16) {
      EXPECT_EQ(file.dtype_name(name + ".weight"), "BF16");
    }
    if (precision != Precision::ternary) continue;
    ++ternary;
    // Codes by the documented layout against the definition in double.
    const Tensor codes = file.read(name + ".codes", DType::u8), scale = file.read(name + ".scale", DType::f32);
    const int64_t rows = latent.dim(0), cols = latent.dim(1), row_bytes = (cols + 127) / 128 * 32;
    ASSERT_EQ(codes.shape(), (Shape{rows, row_bytes}));
    double mean = 0;
    for (int64_t i = 0; i < latent.size(); ++i)
      mean += std::abs(double(latent.data<float>()[i])) / double(latent.size());
    EXPECT_NEAR(*scale.data<float>(), mean, 1e-6 * mean);
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t k = 0; k < cols; ++k) {
        const uint8_t byte = codes.data<uint8_t>()[o * row_bytes + k / 128 * 32 + k % 32];
        const double v = latent.data<float>()[o * cols + k] / mean;
        if (std::abs(std::abs(v) - 0.5) < 1e-5) continue;
        ASSERT_EQ(int(byte >> (k % 128 / 32 * 2) & 3) - 1, std::clamp(int(std::nearbyint(v)), -1, 1));
      }
  }
  EXPECT_EQ(ternary, 10);
  EXPECT_EQ(file.dtype_name("model.embeddings.weight"), "BF16");
}

TEST(TernaryFile, HasThePromisedSize) {
  const TempDir dir;
  ModelConfig c = tiny_model_config();
  c.hidden_size = 128, c.intermediate_size = 256, c.vocab_size = 1000, c.num_hidden_layers = 2;
  const Model m = tiny_model(c, false);
  const int64_t matrices = c.matrix_parameter_count(), others = c.parameter_count() - matrices;
  for (const auto& [store, bytes] :
       {std::pair{EmbeddingStore::f32, 4 * 128}, {EmbeddingStore::bf16, 2 * 128}, {EmbeddingStore::int8, 128 + 4}}) {
    write_ternary_file(dir / "m", m, store);
    const int64_t tensors = matrices / 4 + 13 * 4 + 4 * (others - 1000 * 128) + 1000 * bytes;
    const int64_t header = int64_t(fs::file_size(dir / "m")) - tensors;
    EXPECT_GT(header, 1000);
    EXPECT_LT(header, 10000) << "for " << tensors << " bytes of tensors";
  }
}

TEST(TernaryFile, EveryFlippedByteAndTruncationIsRefusedOrHarmless) {
  const TempDir dir;
  ModelConfig c = tiny_model_config();
  c.vocab_size = 5, c.hidden_size = 3, c.intermediate_size = 2, c.num_hidden_layers = 1,
  c.bos_token_id = c.eos_token_id = -1;
  const Model m = tiny_model(c, false);
  write_ternary_file(dir / "m", m, EmbeddingStore::int8);
  const std::string bytes = slurp(dir / "m");
  const Tensor expected = logits(read_ternary_file(dir / "m"));
  const auto check = [&](const std::string& bad, const std::string& what) {
    spit(dir / "bad", bad);
    try {
      const Model loaded = read_ternary_file(dir / "bad");
      EXPECT_TRUE(same_bits(logits(loaded), expected)) << what << " changes the model unseen";
    } catch (const DataError& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    } catch (const std::exception& e) {
      ADD_FAILURE() << what << ": " << e.what();
    }
  };
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string bad = bytes;
    bad[i] = char(bad[i] ^ (1 << (i * 5 % 8)));
    check(bad, concat("byte ", i));
  }
  for (size_t n = 0; n < bytes.size(); n += 7) check(bytes.substr(0, n), concat("cut at ", n));
}

/// The file at `from` with tensors and configuration changed, and a hash that fits them again.
void forge(const std::string& from, const std::string& to,
           const std::function<void(std::string& config)>& change_config,
           const std::function<bool(const std::string& name, std::string& dtype, Tensor& value)>& keep) {
  const SafetensorsReader file(from);
  std::map<std::string, std::string> meta = file.metadata();
  change_config(meta["config"]);
  std::string text = meta["config"];
  std::vector<std::pair<std::string, std::string>> names;
  std::vector<Tensor> values;
  const std::map<std::string, DType> types = {
      {"U8", DType::u8}, {"I8", DType::i8}, {"BF16", DType::bf16}, {"F32", DType::f32}};
  for (const std::string& name : file.names()) {
    std::string dtype = file.dtype_name(name);
    Tensor value = file.read(name, types.at(dtype));
    if (!keep(name, dtype, value)) continue;
    text +=
        concat('\n', name, ' ', dtype, ' ', value.shape(), ' ', hex16(hash64({value.raw(), size_t(value.bytes())})));
    names.emplace_back(name, dtype);
    values.push_back(value);
  }
  meta["content_hash"] = hex16(hash64(text));
  SafetensorsWriter writer(to, meta);
  for (size_t i = 0; i < names.size(); ++i) writer.declare(names[i].first, names[i].second, values[i].shape());
  for (size_t i = 0; i < names.size(); ++i) writer.write(names[i].first, values[i]);
  writer.commit();
}

TEST(TernaryFile, ForgedContentIsRefused) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config(), false);
  write_ternary_file(dir / "m", m, EmbeddingStore::int8);
  const auto same = [](std::string&) {};
  const auto all = [](const std::string&, std::string&, Tensor&) { return true; };
  forge(dir / "m", dir / "same", same, all);
  EXPECT_EQ(slurp(dir / "same"), slurp(dir / "m"));

  const std::string codes = "model.layers.1.mlp.down_proj.codes";
  for (const auto& change : std::vector<std::function<bool(const std::string&, std::string&, Tensor&)>>{
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == codes) t.mut<uint8_t>()[5] |= 0x30;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == "model.norm.weight") t.mut<float>()[1] = NAN;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == "lm_head.scale") *t.mut<float>() = INFINITY;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == "lm_head.scale") *t.mut<float>() = 0;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&) { return name != codes; },
           [&](const std::string&name, std::string&, Tensor&) { return name != "lm_head.scale"; },
           [&](const std::string&name, std::string&, Tensor&) { return name != "model.embeddings.weight.scale"; },
           [&](const std::string&name, std::string&, Tensor&) { return name != "model.norm.weight"; },
           [&](const std::string&name, std::string&, Tensor&) { return name != "model.embeddings.weight"; },
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == "model.norm.weight") t.mut<float>()[0] = NAN;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&t) {
             if (name == "lm_head.scale") t.mut<float>()[0] = -1;
             return true;
           },
           [&](const std::string&name, std::string&, Tensor&t) { return t = name == codes ? t.slice(0, 36) : t, true; },
           [&](const std::string&name, std::string&, Tensor&t) {
             return t = name == codes ? t.reshape({t.size()}) : t, true;
           },
           [&](const std::string&name, std::string&, Tensor&t) {
             return t = name == "lm_head.norm.weight" ? t.slice(0, 1) : t, true;
           },
           [&](const std::string&name, std::string&dtype, Tensor&t) {
             if (name == "model.norm.weight") dtype = "I8", t = Tensor::zeros(t.shape(), DType::i8);
             return true;
           },
           [&](const std::string&name, std::string&dtype, Tensor&t) {
             if (name == "model.norm.weight") dtype = "I64", t = Tensor::zeros(t.shape(), DType::i64);
             return true;
           },
           [&](const std::string&name, std::string&dtype, Tensor&t) {
             if (name == codes) dtype = "F32", t = Tensor::zeros(t.shape(), DType::f32);
             return true;
           }}) {
    forge(dir / "m", dir / "bad", same, change);
    EXPECT_THROW(read_ternary_file(dir / "bad"), DataError);
  }
  for (const auto& [from, to] : {std::pair<std::string, std::string>{R"("version":"1")", R"("version":"2")"},
                                 {R"("mmfree-ternary")", R"("mmfree-quinary")"}}) {
    std::string other = slurp(dir / "m");
    ASSERT_NE(other.find(from), std::string::npos) << from;
    other.replace(other.find(from), from.size(), to);
    spit(dir / "other", other);
    EXPECT_THROW(read_ternary_file(dir / "other"), DataError) << to;
  }
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"num_hidden_layers: 3", "num_hidden_layers: 4096"},
                                                        {"hidden_size: 37", "hidden_size: 131072"},
                                                        {"vocab_size: 61", "vocab_size: 16777216"},
                                                        {"gate_order: reference", "gate_order: unknown"},
                                                        {"precision: ternary", "precision: f32"}}) {
    forge(
        dir / "m", dir / "bad",
        [&, a = from, b = to](std::string& text) {
          ASSERT_NE(text.find(a), std::string::npos) << a;
          text.replace(text.find(a), a.size(), b);
        },
        all);
    EXPECT_THROW(read_ternary_file(dir / "bad"), DataError) << to;
  }
}

TEST(TernaryFile, OtherFilesAndPathsAreRefused) {
  const TempDir dir;
  EXPECT_THROW(read_ternary_file(dir / "none"), MissingError);
  spit(dir / "text", "this is not a model at all, but long enough");
  EXPECT_THROW(read_ternary_file(dir / "text"), DataError);
  const float one = 1;
  SafetensorsWriter plain(dir / "plain");
  plain.declare("x", "F32", {1});
  plain.write("x", Tensor::from({1}, &one));
  plain.commit();
  EXPECT_THROW(read_ternary_file(dir / "plain"), DataError);
  Model m = tiny_model(tiny_model_config(), false);
  EXPECT_THROW(export_ternary(dir / "no/folder/m", m, EmbeddingStore::f32), CreateError);
}

}  // namespace
}  // namespace mmfree
