#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "core/system/folder_lock.h"
#include "train/run/checkpoint.h"
#include "train/run/compute_target.h"

namespace mmfree {

/// checkpoints/step-00001000.h5 inside a run folder.
std::string checkpoint_path(const std::string& run_dir, int64_t step);

/// Steps of the checkpoints in a run folder, ascending; damaged ones included. None if there is no such folder.
/// @throws IoError if it cannot be listed
std::vector<int64_t> checkpoint_steps(const std::string& run_dir);

/// The newest intact checkpoint of a run folder, after `use`, which loads or verifies it, has returned. A damaged one
/// may reach `use` too: then `use` fails, one line goes to `warn`, and the next older one is tried. Nothing if none is
/// intact. @throws IoError as checkpoint_steps; what Checkpoint or `use` throws for a file that is not damaged, as one
/// that cannot be read just now or is of a newer version
std::optional<Checkpoint> newest_checkpoint(const std::string& run_dir,
                                            const std::function<void(const std::string&)>& warn,
                                            const std::function<void(const Checkpoint&)>& use = &Checkpoint::verify);

/// Which checkpoints of a run stay.
struct Retention {
  int64_t last = 1;              ///< so many of the newest
  int64_t every = 0;             ///< all whose step is a multiple of it; 0: none for that reason
  std::vector<int64_t> named{};  ///< those of these steps
  int64_t good_of = 0;           ///< the newest good one (see good_checkpoints) of its multiples; 0: none
};

/// Once the checkpoint of step `newest`, which was just written, reads back intact, removes all checkpoints up to it
/// but those that `keep` names. Later checkpoints and files of another kind stay and do not count; so do those that
/// cannot be removed.
/// @throws what Checkpoint throws if `newest` is not intact; then none is removed
void retain_checkpoints(const std::string& run_dir, int64_t newest, const Retention& keep);

/// Steps of the checkpoints, newest first, to which a run that diverged may go back: of multiples of `every`, where
/// training saves without being asked, and below `step`; the step before none of them was skipped. The content is not
/// verified; a checkpoint that cannot be opened is left out.
std::vector<int64_t> good_checkpoints(const std::string& run_dir, int64_t every, int64_t step);

/// Renames the checkpoints of steps after `step`, which are damaged, to NAME.damaged or NAME.damaged-N, so that
/// retention does not count them and no later start resumes one, whose metrics have been dropped. One that cannot be
/// renamed stays, and so does an mmfree file of another kind. Returns the new names. @throws IoError
std::vector<std::string> set_aside(const std::string& run_dir, int64_t step);

/// Removes the temporary files of killed saves. No save may be running in this folder.
void remove_unfinished_checkpoints(const std::string& run_dir);

/// What run.json says of a run, besides version, time and threads.
struct RunFacts {
  int64_t from_step = 0;  ///< where this process starts
  ComputeTarget target;
  int64_t train_tokens = 0;  ///< in the training shards
  std::string data;          ///< their fingerprint
  std::string tokenizer;     ///< the hash of their tokenizer
};

/// What a run writes into its folder at its start, by file name: the configuration as given and in full, the
/// tokenizer's model (`tokenizer`; empty: none), and run.json.
std::map<std::string, std::string> describe_run(const RunConfig& config, const std::string& tokenizer,
                                                const RunFacts& facts);

/// The folder of one run: config.yaml, config.resolved.yaml, run.json, tokenizer.model, metrics.jsonl, perhaps
/// samples.jsonl, and checkpoints/.
/// It is locked: two runs in one folder would remove each other's files. A new run replaces only files that the
/// folder's mark of kind "run" proves (core/system/folder_mark.h).
class RunFolder {
 public:
  /// Locks the folder if it exists; makes nothing. Without `own` it does not: another rank owns the folder.
  /// @throws CreateError if another process has it
  explicit RunFolder(std::string path, bool own = true);
  /// Unless keep() was called, a folder that open() made goes again, with what a run writes before its first step.
  ~RunFolder();
  const std::string& path() const { return path_; }
  /// The path of a file in it.
  std::string file(const std::string& name) const;
  /// Makes and locks what is missing, removes what killed saves left, and writes the mark and `files` (name and
  /// content) but those that are there already. `growing` are the files that the run will write itself. `step` is that
  /// of the checkpoint in this folder from which the run continues, -1 without one: later checkpoints are set aside.
  /// Returns their new names.
  /// @throws CreateError also if no checkpoints can be written here, or a new run would replace a file that no run
  /// wrote, and then nothing is changed; IoError
  std::vector<std::string> open(int64_t step, std::map<std::string, std::string> files,
                                const std::vector<std::string>& growing = {"metrics.jsonl"});
  /// The run has made a step or a checkpoint: the folder stays.
  void keep();
  /// Why the folder is not locked well, for people; empty if it is.
  std::string warning() const { return lock_.warning(); }
  /// Makes the folder again if someone removed it.
  /// @throws CreateError if another run has made it again and saved checkpoints there, or has taken it
  void restore();
  /// Removes the checkpoints of steps after `step`, the newest first; those that cannot be removed stay.
  void remove_checkpoints_after(int64_t step) const;
  /// Removes the file `name`. Returns whether there was one.
  bool consume(const char* name) const;

 private:
  std::string path_;
  FolderLock lock_;
  std::unique_ptr<NeededDirectory> made_;  ///< by open(), until keep()
  std::vector<std::string> written_;       ///< names of files in a folder that was not there before
};

}  // namespace mmfree
