#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "layers/model_config.h"
#include "tests/support/paths.h"
#include "train/formats/hf_folder.h"
#include "train/formats/safetensors.h"

namespace mmfree {

/// `root` if it is a golden set, else the sets in it, sorted. @throws MissingError if there is none
inline std::vector<std::string> golden_sets(const std::filesystem::path& root) {
  namespace fs = std::filesystem;
  const auto is_set = [](const fs::path& dir) { return fs::exists(dir / "expected.safetensors"); };
  if (is_set(root)) return {root.string()};
  std::vector<std::string> dirs;
  std::error_code error;
  for (const fs::directory_entry& item : fs::directory_iterator(root, error))
    if (is_set(item.path())) dirs.push_back(item.path().string());
  MMFREE_CHECK(MissingError, !dirs.empty(), root.string(), ": holds no golden set");
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}

/// Folders of the NumPy oracle's sets (tests/golden/README.md). The environment variable MMFREE_GOLDEN_DIR names one
/// set, or a folder of sets, to use instead.
inline std::vector<std::string> golden_dirs() {
  const char* other = std::getenv("MMFREE_GOLDEN_DIR");
  return golden_sets(other ? std::filesystem::path(other) : std::filesystem::path(source_dir()) / "tests" / "golden");
}

/// Folders of the sets that transformers' classes make (tests/golden/transformers/README.md).
inline std::vector<std::string> transformers_dirs() {
  return golden_sets(std::filesystem::path(source_dir()) / "tests" / "golden" / "transformers");
}

/// One golden set: a model and what an oracle computes from it. Names of parameters are those of the folder's
/// architecture in the files, ours here.
struct Golden {
  explicit Golden(const std::string& dir)
      : hf(read_hf_model(dir)),
        config(hf.config),
        model(dir + "/model.safetensors"),
        expected(dir + "/expected.safetensors") {}
  HfModel hf;
  ModelConfig config;
  SafetensorsReader model, expected;

  Tensor parameter(const std::string& name, DType as) const { return ours(model, "", name, as); }
  /// What stands in `expected` for a parameter: `of` is "grad/", "final/" or "f32/grad/".
  Tensor expected_of(const std::string& of, const std::string& name) const {
    return ours(expected, of, name, DType::f64);
  }
  Tensor gradient(const std::string& name) const { return expected_of("grad/", name); }

 private:
  Tensor ours(const SafetensorsReader& file, const std::string& prefix, const std::string& name, DType as) const {
    return from_foreign(*hf.architecture, name,
                        [&](const std::string& theirs) { return file.read(prefix + theirs, as); });
  }
};

/// Name of a set in the name of a test.
inline std::string set_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param.substr(info.param.find_last_of('/') + 1);
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

}  // namespace mmfree
