#pragma once
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "layers/model_config.h"
#include "tests/support/paths.h"
#include "train/formats/hf_folder.h"
#include "train/formats/safetensors.h"

namespace mmfree {

/// Folders of the golden sets (tests/golden/README.md), sorted. The environment variable MMFREE_GOLDEN_DIR names one
/// set, or a folder of sets, to use instead. @throws MissingError if there is none.
inline std::vector<std::string> golden_dirs() {
  namespace fs = std::filesystem;
  const char* other = std::getenv("MMFREE_GOLDEN_DIR");
  const fs::path root = other ? fs::path(other) : fs::path(source_dir()) / "tests" / "golden";
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

/// One golden set: a model and what a float64 oracle computes from it.
struct Golden {
  explicit Golden(const std::string& dir)
      : config(read_hf_config(dir)), model(dir + "/model.safetensors"), expected(dir + "/expected.safetensors") {}
  ModelConfig config;
  SafetensorsReader model, expected;
};

}  // namespace mmfree
