// How tensors of foreign architectures hold ours: renamed, split from fused ones, with the rows of heads in another
// order.
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"
#include "train/formats/architecture.h"

namespace mmfree {
namespace {

const Architecture kForeign{"foreign",
                            "ForeignForCausalLM",
                            {{"model.embeddings.weight", {"wte"}},
                             {"model.layers.*.mlp.gate_proj.weight", {"h.*.gate", "h.*.up"}},
                             {"model.layers.*.attn.q_proj.weight", {"h.*.q"}, HeadRows::heads},
                             {"model.layers.*.attn.kv_proj.weight", {"h.*.k0", "h.*.k1"}, HeadRows::kv_heads}}};

Tensor counting(const Shape& shape, float first) {
  Tensor t(shape, DType::f32);
  for (int64_t i = 0; i < t.size(); ++i) t.mut<float>()[i] = first + float(i);
  return t;
}

TEST(Architecture, TheTableGivesTheirNamesAndShapes) {
  const NamedShapes theirs = foreign_tensors(kForeign, {{"model.embeddings.weight", {5, 2}},
                                                        {"model.layers.12.mlp.gate_proj.weight", {6, 2}},
                                                        {"model.norm.weight", {2}}});
  const NamedShapes expected = {
      {"wte", {5, 2}}, {"h.12.gate", {3, 2}}, {"h.12.up", {3, 2}}, {"model.norm.weight", {2}}};
  EXPECT_EQ(theirs, expected);
  EXPECT_THROW(foreign_tensors(kForeign, {{"model.layers.1.mlp.gate_proj.weight", {5, 2}}}), DataError);
}

TEST(Architecture, FusedMatricesAreSplitAndPutTogether) {
  const ModelConfig c = tiny_model_config();
  const Tensor ours = counting({6, 2}, 0);
  const auto read_ours = [&](const std::string& name) {
    EXPECT_EQ(name, "model.layers.7.mlp.gate_proj.weight");
    return ours;
  };
  const Tensor gate = to_foreign(kForeign, c, "h.7.gate", read_ours), up = to_foreign(kForeign, c, "h.7.up", read_ours);
  EXPECT_TRUE(same_bits(gate, counting({3, 2}, 0)));
  EXPECT_TRUE(same_bits(up, counting({3, 2}, 6)));
  const Tensor back = from_foreign(kForeign, c, "model.layers.7.mlp.gate_proj.weight",
                                   [&](const std::string& name) { return name == "h.7.gate" ? gate : up; });
  EXPECT_TRUE(same_bits(back, ours));
}

TEST(Architecture, RowsOfHeadsChangeBetweenHalvesAndPairs) {
  ModelConfig c = tiny_model_config();
  c.heads = 2;
  const Tensor theirs = counting({8, 1}, 0);  // two heads of width 4
  const Tensor ours =
      from_foreign(kForeign, c, "model.layers.0.attn.q_proj.weight", [&](const std::string&) { return theirs; });
  const float expected[] = {0, 2, 1, 3, 4, 6, 5, 7};
  EXPECT_TRUE(same_bits(ours, Tensor::from({8, 1}, expected)));
  EXPECT_TRUE(same_bits(to_foreign(kForeign, c, "h.0.q", [&](const std::string&) { return ours; }), theirs));
  c.heads = 3;
  EXPECT_THROW(to_foreign(kForeign, c, "h.0.q", [&](const std::string&) { return ours; }), DataError);
}

TEST(Architecture, RowsOfHeadsOfKeysMayBeSplitToo) {
  ModelConfig c = tiny_model_config();
  c.heads = 4;
  const Tensor theirs[] = {counting({4, 1}, 0), counting({4, 1}, 4)};
  const auto read_theirs = [&](const std::string& name) { return theirs[name == "h.0.k1"]; };
  const float two[] = {0, 2, 1, 3, 4, 6, 5, 7}, four[] = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t kv_heads : {2, 0}) {  // 0: as many as heads
    c.kv_heads = kv_heads;
    const Tensor ours = from_foreign(kForeign, c, "model.layers.0.attn.kv_proj.weight", read_theirs);
    EXPECT_TRUE(same_bits(ours, Tensor::from({8, 1}, kv_heads ? two : four))) << kv_heads;
    for (const char* name : {"h.0.k0", "h.0.k1"})
      EXPECT_TRUE(same_bits(to_foreign(kForeign, c, name, [&](const std::string&) { return ours; }), read_theirs(name)))
          << name;
  }
}

TEST(Architecture, ANameThatIsNotListedStays) {
  const ModelConfig c = tiny_model_config();
  const auto echo = [](const std::string& name) { return counting({int64_t(name.size())}, 0); };
  for (const char* name : {"lm_head.weight", "h..gate", "h.x.gate", "model.layers.q.mlp.gate_proj.weight"}) {
    EXPECT_EQ(from_foreign(kForeign, c, name, echo).size(), int64_t(std::string(name).size())) << name;
    EXPECT_EQ(to_foreign(kForeign, c, name, echo).size(), int64_t(std::string(name).size())) << name;
  }
}

}  // namespace
}  // namespace mmfree
