#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "core/system/folder_lock.h"
#include "core/system/folder_mark.h"
#include "data/token_shards.h"

namespace mmfree {

/// New token shards, in a folder `.preparing` of the output directory until `publish` moves them to the directory.
/// Without `publish`, complete shards stay for the next run with the same plan. If there are none, the folder is
/// removed, and so is an output directory that this object made. Only shards that the directory's mark of kind "shards"
/// proves by the hash in their header are replaced or removed (core/system/folder_mark.h).
class Staging {
 public:
  /// Number and content of the complete shards of one split that an earlier run left, from the first on.
  struct Kept {
    int64_t shards = 0, documents = 0, tokens = 0;
  };

  /// `plan`: a text of everything that the shards' content depends on. Shards of another plan are removed.
  /// @throws CreateError if the directory cannot be made, another process prepares in it, it holds shards and
  /// `overwrite` is not set, or it or a hidden folder in it holds what prepare did not make; IoError
  Staging(const std::string& output, const std::string& plan, bool overwrite);
  ~Staging();
  Staging(const Staging&) = delete;

  /// Verifies the shards that an earlier run left of the split `info.split`, and removes the first damaged one
  /// and all after it. Calls `check_stop` before each. @throws what TokenShards does but DamagedError, and what
  /// `check_stop` throws
  Kept keep(const ShardInfo& info, const std::function<void()>& check_stop);
  /// The path for shard `number` of a split.
  std::string file(const std::string& split, int64_t number) const;
  /// Why the directory is not locked well, for people; empty if it is.
  std::string warning() const { return lock_.warning(); }
  /// Removes all new shards. @throws IoError
  void discard();
  /// Replaces the shards of the directory by the new ones, which must be complete and durable. Meanwhile a folder
  /// kPublishing marks the directory. @throws CreateError as the constructor, or if another process has taken the
  /// directory, and then nothing is changed; IoError
  void publish();

 private:
  void refuse_to_replace() const;
  MarkedFiles older(h5::Verify verify) const;
  void take_back();

  std::filesystem::path output_, path_, mark_;
  NeededDirectory made_;
  FolderLock lock_;
};

/// The shards in a directory (not recursive), sorted; empty if the directory does not exist. @throws IoError
std::vector<std::filesystem::path> shards_in(const std::filesystem::path& directory);

}  // namespace mmfree
