#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mmfree {

/// How far prepare() has come.
struct PrepareProgress {
  int64_t bytes_read = 0, total_bytes = 0;  ///< of the input files as stored
  int64_t tokens = 0;
};

struct PrepareOptions {
  std::vector<std::string> inputs;           ///< as for TextReader
  std::string tokenizer;                     ///< path of the .model file
  std::string output;                        ///< directory; made if absent
  int64_t shard_tokens = int64_t(64) << 20;  ///< a shard is closed after the document that reaches this
  double valid_fraction = 0.01;              ///< share of the documents held out; 0: no validation split
  bool bos = true, eos = true;               ///< put around each document, if the tokenizer has them
  int64_t limit_bytes = 0;                   ///< stop after this many bytes of text; 0: never
  bool skip_malformed = false;               ///< as for TextReader
  bool overwrite = false;                    ///< replace shards that `output` already holds
  std::function<void(const PrepareProgress&)> on_progress;
  /// Called at the start if an earlier start of the same left whole shards.
  std::function<void(int64_t shards, int64_t tokens)> on_resume;
  /// Called between documents, from several threads at a time: what it throws ends prepare.
  std::function<void()> check_stop;
};

struct PrepareSummary {
  struct Split {
    int64_t documents = 0, bytes = 0, tokens = 0, shards = 0;
  };
  Split train, valid;
  int64_t skipped_lines = 0;
  bool held_out_tails = false;  ///< see prepare()
};

/// Turns text into token shards `train-00000.h5`, ... and `valid-00000.h5`, ... in the output directory.
/// A document goes to validation if the hash of its text falls below valid_fraction: the same text always goes to the
/// same split, and adding data moves nothing. A corpus of fewer than 20 documents (books, say) is split otherwise: each
/// document's tail, from the line break nearest before the last valid_fraction of its bytes, is held out.
/// The result does not depend on the number of threads. Shards appear in the directory only when all are complete and
/// durable; until then the old ones stay as they are. If prepare ends early, whole shards stay in a hidden folder of
/// the directory (data/staging.h). The same command then makes only the others, with the same result to the bit, if the
/// input files have kept their sizes and times; another command removes them. A process that is killed while it
/// replaces the old shards leaves a folder kPublishing (data/token_shards.h): TokenShards refuses the directory, and
/// the next prepare goes on without `overwrite`.
/// @throws UsageError for bad options, MissingError, DataError (malformed text, an empty input or split), CreateError
/// (the directory cannot be made, or holds shards and `overwrite` is not set), IoError, and what `check_stop` throws
PrepareSummary prepare(const PrepareOptions& options);

}  // namespace mmfree
