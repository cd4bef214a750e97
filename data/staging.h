#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "data/token_shards.h"

namespace mmfree {

/// Token shards under construction, in a folder `.preparing` of the output directory. `publish` moves them to the
/// directory when all are whole. Without `publish`, whole shards stay for the next start with the same plan; if there
/// are none, nothing stays, and an output directory that this object made is removed.
class Staging {
 public:
  /// The shards of one split that an earlier start left whole, counted from the first, and what they hold.
  struct Kept {
    int64_t shards = 0, documents = 0, tokens = 0;
  };

  /// `plan` names all that the content of the shards depends on. Shards of another plan are removed.
  /// @throws CreateError if the directory cannot be made, another process prepares in it, or it holds shards and
  /// `overwrite` is not set; IoError
  Staging(const std::string& output, const std::string& plan, bool overwrite);
  ~Staging();
  Staging(const Staging&) = delete;

  /// Verifies the shards that an earlier start left of the split that `info` names, and removes those from the first
  /// bad one on. Calls `check_stop` before each. @throws IoError, and what `check_stop` throws
  Kept keep(const ShardInfo& info, const std::function<void()>& check_stop);
  /// The path to write the shard of this number to.
  std::string file(const std::string& split, int64_t number) const;
  /// Removes all shards under construction. @throws IoError
  void discard();
  /// Replaces the shards of the directory by the new ones, which must be whole and durable. While it does, a folder
  /// kPublishing marks the directory. @throws IoError
  void publish();

 private:
  void refuse_to_replace() const;
  void take_back();
  void clear_mark();

  std::filesystem::path output_, path_, mark_;
  NeededDirectory made_;
  Fd lock_;
};

/// The shards directly in a directory, sorted; none if there is no such directory. @throws IoError
std::vector<std::filesystem::path> shards_in(const std::filesystem::path& directory);

}  // namespace mmfree
