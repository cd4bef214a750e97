// mmfree bench: what it prints, from a configuration and from the export that it saves.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/program.h"
#include "train/formats/ternary_file.h"

namespace mmfree {
namespace {

using Json = nlohmann::json;

TEST(Bench, MeasuresAConfigurationAndTheModelThatItSaves) {
  const TempDir dir;
  spit(dir / "tiny.yaml", "model: {vocab_size: 97, hidden_size: 64, num_hidden_layers: 2, intermediate_size: 96}\n");
  const std::vector<std::string> settings = {"--threads", "1",        "2", "--batch", "1",        "3", "--prompt",
                                             "20",        "--tokens", "4", "--json",  "--repeat", "2"};
  for (const std::string& model : {dir / "tiny.yaml", dir / "m.mmfree"}) {
    std::vector<std::string> command = {"bench", model};
    command.insert(command.end(), settings.begin(), settings.end());
    if (model.ends_with(".yaml")) command.insert(command.end(), {"--save", dir / "m.mmfree"});
    Program program(command);
    ASSERT_EQ(program.wait(), 0) << program.err();
    const Json all = Json::parse(program.out());
    ASSERT_EQ(all["runs"].size(), 2u);
    for (const Json& run : all["runs"]) {
      EXPECT_GT(run["read_bytes_per_second"], 0);
      ASSERT_EQ(run["decode"].size(), 2u);
      EXPECT_EQ(run["decode"][1]["batch"], 3);
      for (const Json& decode : run["decode"]) EXPECT_GT(decode["tokens_per_second"], 0);
      EXPECT_EQ(run["prefill"]["tokens"], 20);
      EXPECT_GT(run["prefill"]["tokens_per_second"], 0);
    }
    // packed rows of one block: i, f, g, o and gate_proj, down_proj of 2 layers, and the head
    EXPECT_EQ(all["matrix_bytes"], 32 * (2 * (4 * 64 + 2 * 96 + 64) + 97));
  }
  EXPECT_EQ(read_ternary_file(dir / "m.mmfree").config.hidden_size, 64);
  Program wrong({"bench", dir / "none"});
  EXPECT_EQ(wrong.wait(), 66) << wrong.err();
}

}  // namespace
}  // namespace mmfree
