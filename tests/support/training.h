#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/support/tiny_run.h"
#include "train/run/trainer.h"

/// Training runs in this process, and what they say.
namespace mmfree {

inline RunResult train(const RunConfig& config, bool force = false) { return Trainer(config, true, force).run(); }

/// What `action` prints on stderr.
inline std::string text_of(const std::function<void()>& action) {
  testing::internal::CaptureStderr();
  try {
    action();
  } catch (...) {
    testing::internal::GetCapturedStderr();
    throw;
  }
  return testing::internal::GetCapturedStderr();
}

/// The message of the error that `action` throws, which must be of type E.
template <class E>
std::string error_of(const std::function<void()>& action) {
  try {
    text_of(action);
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "another error: " << e.what();
    return {};
  }
  ADD_FAILURE() << "no error";
  return {};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// A corpus of `windows` whole windows of random tokens.
inline std::string random_shard(const TempDir& dir, int64_t windows, int64_t seq_len) {
  const std::string path = dir / "train-00000.h5";
  ShardWriter shard(path, shard_info(TinyCorpus::get().tokenizer(), "train"), "test");
  const Tensor ids = random_ids(windows * seq_len + 1, 320, 77);
  shard.add(std::vector<int32_t>(ids.data<int32_t>(), ids.data<int32_t>() + ids.size()));
  shard.commit();
  return path;
}

/// Flips one bit in the middle of a file.
inline void damage(const std::string& path) {
  std::string bytes = slurp(path);
  bytes[bytes.size() / 2] ^= 4;
  spit(path, bytes);
}

}  // namespace mmfree
