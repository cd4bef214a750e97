// How tensors of foreign architectures hold ours: renamed, split from fused ones.
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "train/formats/architecture.h"

namespace mmfree {
namespace {

const Architecture kForeign{
    "foreign",
    "ForeignForCausalLM",
    {{"model.embeddings.weight", {"wte"}}, {"model.layers.*.mlp.gate_proj.weight", {"h.*.gate", "h.*.up"}}}};

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
  const Tensor ours = counting({6, 2}, 0);
  const auto read_ours = [&](const std::string& name) {
    EXPECT_EQ(name, "model.layers.7.mlp.gate_proj.weight");
    return ours;
  };
  const Tensor gate = to_foreign(kForeign, "h.7.gate", read_ours), up = to_foreign(kForeign, "h.7.up", read_ours);
  EXPECT_TRUE(same_bits(gate, counting({3, 2}, 0)));
  EXPECT_TRUE(same_bits(up, counting({3, 2}, 6)));
  const Tensor back = from_foreign(kForeign, "model.layers.7.mlp.gate_proj.weight",
                                   [&](const std::string& name) { return name == "h.7.gate" ? gate : up; });
  EXPECT_TRUE(same_bits(back, ours));
}

TEST(Architecture, ANameThatIsNotListedStays) {
  const auto echo = [](const std::string& name) { return counting({int64_t(name.size())}, 0); };
  for (const char* name : {"lm_head.weight", "h..gate", "h.x.gate", "model.layers.q.mlp.gate_proj.weight"}) {
    EXPECT_EQ(from_foreign(kForeign, name, echo).size(), int64_t(std::string(name).size())) << name;
    EXPECT_EQ(to_foreign(kForeign, name, echo).size(), int64_t(std::string(name).size())) << name;
  }
}

}  // namespace
}  // namespace mmfree
