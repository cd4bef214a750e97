// mmfree info on exports: density and scale of each matrix against those of the model, and checksums.
#include <gtest/gtest.h>

#include <sstream>

#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/formats/safetensors.h"
#include "train/formats/ternary_file.h"

namespace mmfree {
namespace {

TEST(InfoMatrices, OfAnExportHaveDensityScaleAndAHash) {
  const TempDir dir;
  const std::string path = dir / "m.mmfree";
  const Model m = tiny_model(tiny_model_config());
  write_ternary_file(path, m, EmbeddingStore::int8);
  Program p({"info", path});
  ASSERT_EQ(p.wait(), 0) << p.err();
  const std::string text = p.out();
  EXPECT_NE(text.find("hash        " + SafetensorsReader(path).metadata().at("content_hash") + ", verified\n"),
            std::string::npos)
      << text;
  int matrices = 0;
  m.lm->for_each_projection([&](const BitLinear& projection) {
    const TernaryTensor& w = projection.matrix->ternary;
    Tensor weights({w.rows(), w.cols}, DType::f32);
    ternary_dequantise(w, weights, false);
    int64_t not_zero = 0;
    for (int64_t i = 0; i < weights.size(); ++i) not_zero += weights.data<float>()[i] != 0;
    char expected[80];
    std::snprintf(expected, sizeof expected, "density %5.1f %%  scale %.6g\n",
                  100.0 * double(not_zero) / double(weights.size()), double(w.scale.data<float>()[0]));
    const size_t at = text.find("  " + projection.name + " ");
    ASSERT_NE(at, std::string::npos) << projection.name;
    const std::string line = text.substr(at, text.find('\n', at) + 1 - at);
    EXPECT_TRUE(line.ends_with(expected)) << line << expected;
    ++matrices;
  });
  EXPECT_GT(matrices, 15);
}

}  // namespace
}  // namespace mmfree
