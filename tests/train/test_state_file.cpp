// Saved states: of this model, whole, and of constant size where the model has no attention.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "core/system/files.h"
#include "tests/support/model_variants.h"
#include "tests/support/tiny_run.h"
#include "train/formats/safetensors.h"
#include "train/formats/ternary_file.h"
#include "train/inference/state_file.h"

namespace mmfree {
namespace {

/// The message of the error that reading gives; empty without one.
template <class Error>
std::string refusal(const std::string& path, const Model& m) {
  try {
    read_state(path, m);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

struct Saved {
  TempDir dir;
  Model m = tiny_model(tiny_model_config());
  std::string path = dir / "s";
  Saved() { write_state(path, m, prompt_state(*m.lm, std::vector<int32_t>{1, 2, 3, 4})); }
};

TEST(StateFile, IsSmallAndAsLargeForALongPrompt) {
  const Saved s;
  write_state(s.dir / "long", s.m, prompt_state(*s.m.lm, std::vector<int32_t>(500, 7)));
  const auto size = std::filesystem::file_size(s.path), longer = std::filesystem::file_size(s.dir / "long");
  EXPECT_LT(longer, 4096u);
  EXPECT_LE(longer - size, 8u);  // digits of the position
  EXPECT_EQ(read_state(s.path, s.m).slot.position, 3);
}

TEST(StateFile, IsRefusedByEveryOtherModel) {
  const Saved s;
  ModelConfig wider = tiny_model_config(), other_act = wider;
  wider.hidden_size = 38, other_act.activation = Activation::gelu;
  for (const ModelConfig& c : {wider, other_act}) {
    Model other = tiny_model(c);
    other.source = "other.h5";
    const std::string text = refusal<DataError>(s.path, other);
    EXPECT_NE(text.find("is a state of another model than other.h5"), std::string::npos) << text;
  }
  Model changed = tiny_model(tiny_model_config());
  changed.params->values().mut<float>()[changed.params->values().size() / 2] += 1;
  changed.lm->requantise();
  EXPECT_NE(model_fingerprint(changed), model_fingerprint(s.m));
}

TEST(StateFile, FitsACheckpointAndItsExport) {
  const Saved s;
  write_ternary_file(s.dir / "m", s.m, EmbeddingStore::int8);
  EXPECT_EQ(model_fingerprint(read_ternary_file(s.dir / "m")), model_fingerprint(s.m));
  EXPECT_EQ(model_fingerprint(map_ternary_file(s.dir / "m")), model_fingerprint(s.m));
  EXPECT_EQ(read_state(s.path, map_ternary_file(s.dir / "m")).last, 4);
}

TEST(StateFile, NoByteCanBeChangedUnnoticed) {
  const Saved s;
  const std::string bytes = slurp(s.path);
  for (size_t i = 0; i < bytes.size(); i += i < 600 ? 1 : 37) {
    std::string bad = bytes;
    bad[i] = char(bad[i] ^ 1);
    spit(s.path, bad);
    std::string text = refusal<Error>(s.path, s.m);
    EXPECT_FALSE(text.empty()) << "byte " << i;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
  for (const size_t size : {size_t(0), size_t(7), bytes.size() / 2, bytes.size() - 1}) {
    spit(s.path, bytes.substr(0, size));
    EXPECT_FALSE(refusal<DataError>(s.path, s.m).empty()) << size;
  }
}

TEST(StateFile, OtherKindsAndVersionsAreNamed) {
  const Saved s;
  const auto made = [&](std::map<std::string, std::string> metadata) {
    SafetensorsWriter file(s.path, std::move(metadata));
    file.declare("seen", "I32", {1});
    file.write("seen", Tensor::zeros({1}, DType::i32));
    file.commit();
  };
  made({{"format", "pt"}});
  EXPECT_NE(refusal<DataError>(s.path, s.m).find("is no saved state"), std::string::npos);
  made({{"format", "mmfree-state"}, {"version", "1"}});
  EXPECT_NE(refusal<DataError>(s.path, s.m).find("has no 'model'"), std::string::npos);
  made({{"format", "mmfree-state"},
        {"version", "2"},
        {"model", "x"},
        {"position", "1"},
        {"last", "1"},
        {"content_hash", "x"}});
  EXPECT_NE(refusal<VersionError>(s.path, s.m).find("version '2'"), std::string::npos);
  EXPECT_THROW(read_state(s.dir / "none", s.m), MissingError);
}

}  // namespace
}  // namespace mmfree
