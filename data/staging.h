#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "data/token_shards.h"

namespace mmfree {

/// Token shards under construction, in a folder `.preparing` of the output directory: shards get their places there
/// only when all are whole. Without that, whole shards stay for the next start with the same plan, also those that have
/// their places already; if there is none, nothing stays, and an output directory that was not there is not there
/// after.
class Staging {
 public:
  /// Of one split: how many shards, from the first on, an earlier start left whole, and what they hold.
  struct Kept {
    int64_t shards = 0, documents = 0, tokens = 0;
  };

  /// `plan`: all that the shards' content depends on. What was made for another plan is removed.
  /// @throws CreateError, also if another process prepares in the directory, or if it holds a whole corpus that is not
  /// to be replaced; IoError
  Staging(const std::string& output, const std::string& plan, bool overwrite);
  ~Staging();
  Staging(const Staging&) = delete;

  /// What is whole of the split that `info` names; anything else of it is removed. `check_stop` is called before each
  /// shard is read. @throws IoError, and what `check_stop` throws
  Kept keep(const ShardInfo& info, const std::function<void()>& check_stop);
  /// Where the shard of this number belongs until `publish`.
  std::string file(const std::string& split, int64_t number) const;
  /// Removes all shards under construction. @throws IoError
  void discard();
  /// Replaces the directory's shards by the new ones, which are whole and durable by now. Until none of the old ones is
  /// left and all of the new ones have their names, a folder kPublishing marks the directory. @throws IoError
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
