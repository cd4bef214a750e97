// Ternary exports that stay in their file: the bits of the model that is read into memory, for every store of the
// embedding table, with LM and engine.
#include <gtest/gtest.h>

#include "layers/decode/engine.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/formats/safetensors.h"
#include "train/formats/ternary_file.h"

namespace mmfree {
namespace {

Tensor logits(const Model& m) { return m.lm->logits(random_ids(2 * 19, m.config.vocab_size, 3), 2); }

/// A width that is even, but no multiple of a group or block.
std::vector<ModelConfig> even_configs() {
  ModelConfig plain = tiny_model_config();
  plain.hidden_size = 74;
  ModelConfig mixed = plain, tied = plain, tied_bf16 = plain, tied_f32 = plain;
  mix_precisions(mixed);
  tied.tie_word_embeddings = tied_bf16.tie_word_embeddings = tied_f32.tie_word_embeddings = true;
  tied_bf16.precision = Precision::bf16;
  tied_f32.precision = Precision::f32;
  return {plain, mixed, tied, tied_bf16, tied_f32};
}

TEST(MappedExport, GivesTheBitsOfTheModelInMemory) {
  for (const ModelConfig& config : even_configs()) {
    Tensor last;
    for (TableStore store : kAllTableStores) {
      SCOPED_TRACE(name_of(store));
      const TempDir dir;
      export_ternary(dir / "m", tiny_model(config), store);
      const Model read = read_ternary_file(dir / "m"), mapped = map_ternary_file(dir / "m");
      const Tensor expected = logits(read);
      EXPECT_TRUE(same_bits(logits(mapped), expected));
      EXPECT_FALSE(last.defined() && same_bits(expected, last)) << "the stores round differently";
      last = expected;
      EXPECT_FALSE(mapped.params->has("model.embeddings.weight"));
      EXPECT_EQ(mapped.need_tokenizer().serialized(), read.need_tokenizer().serialized());
      Engine engine(*mapped.lm, {.chunk = 5, .threads = 1});
      const Tensor ids = random_ids(2 * 19, mapped.config.vocab_size, 3);
      const Tensor answer = engine.prefill(0, {ids.data<int32_t>(), 19});
      EXPECT_TRUE(same_bits(answer, expected.slice(18, 19)));
      mapped.lm->for_each_projection([&](const BitLinear& p) {
        if (p.matrix->is_ternary() && p.owns_matrix()) {
          EXPECT_THROW(p.matrix->ternary.codes.mut<uint8_t>(), Error) << p.name << " was copied";
        }
      });
    }
  }
}

TEST(MappedExport, OutlivesTheFilesNameAndTheModel) {
  const TempDir dir;
  export_ternary(dir / "m", tiny_model(even_configs()[0]), TableStore::int8);
  auto mapped = std::make_unique<Model>(map_ternary_file(dir / "m"));
  const Tensor expected = logits(*mapped);
  Tensor codes;
  mapped->lm->for_each_projection([&](const BitLinear& p) { codes = p.matrix->ternary.codes; });
  const Tensor before = codes.clone();
  ModelConfig other = even_configs()[0];
  other.initializer_range = 0.1;
  export_ternary(dir / "m", tiny_model(other, false), TableStore::int8);
  EXPECT_TRUE(same_bits(logits(*mapped), expected)) << "the file at this name is another one now";
  mapped.reset();
  EXPECT_TRUE(same_bits(codes, before));
}

TEST(MappedExport, FourBitsNeedAnEvenWidth) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config());
  EXPECT_THROW(export_ternary(dir / "m", m, TableStore::int4), ShapeError);
  EXPECT_EQ(dir.files(), 0u);
}

TEST(MappedExport, DamageIsFoundBeforeItIsUsed) {
  const TempDir dir;
  write_ternary_file(dir / "m", tiny_model(even_configs()[0], false), TableStore::int4);
  const std::string bytes = slurp(dir / "m");
  for (size_t i = 0; i < bytes.size(); i += 97) {
    std::string bad = bytes;
    bad[i] = char(bad[i] ^ 4);
    spit(dir / "bad", bad);
    EXPECT_THROW(map_ternary_file(dir / "bad"), DataError) << "byte " << i;
    spit(dir / "bad", bytes.substr(0, i));
    EXPECT_THROW(map_ternary_file(dir / "bad"), DataError) << "cut at " << i;
  }
}

}  // namespace
}  // namespace mmfree
