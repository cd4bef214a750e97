#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/text/text_reader.h"

namespace mmfree {

/// Progress of prepare().
struct PrepareProgress {
  int64_t bytes_read = 0, total_bytes = 0;  ///< of the input files as stored
  int64_t tokens = 0;
};

struct PrepareOptions {
  std::vector<std::string> inputs;  ///< as for TextReader
  TextOptions text;                 ///< as for TextReader
  std::string tokenizer;            ///< path of the .model file
  std::string output;               ///< directory; made if absent
  struct Part {
    int64_t number = 1, of = 1;
  } part;                                    ///< of a job array: see prepare()
  int64_t shard_tokens = int64_t(64) << 20;  ///< a shard is closed after the document that reaches this
  double valid_fraction = 0.01;              ///< share of the documents held out; 0: no validation split
  bool bos = true, eos = true;               ///< add these tokens to each document, if the tokenizer has them
  int64_t limit_bytes = 0;                   ///< stop after this many bytes of text; 0: never
  bool compress = false;                     ///< compress the shards with deflate
  bool drop_duplicates = false;              ///< of equal documents keep the first; about 64 bytes of memory for each
  bool overwrite = false;                    ///< replace the shards that prepare made in `output`
  std::function<void(const PrepareProgress&)> on_progress;
  /// Called at the start if an interrupted run of the same command left complete shards.
  std::function<void(int64_t shards, int64_t tokens)> on_resume;
  /// Called at the start with what is not as it should be and does not end prepare.
  std::function<void(const std::string&)> on_warning;
  /// Called between documents, from several threads at a time: what it throws ends prepare.
  std::function<void()> check_stop;
};

struct PrepareSummary {
  struct Split {
    int64_t documents = 0, bytes = 0, tokens = 0, shards = 0;
  };
  Split train, valid;
  SkippedRows skipped;
  std::vector<std::string> passed_over;  ///< files of other types
  int64_t duplicates = 0;                ///< documents dropped
  bool held_out_tails = false;           ///< see prepare()
};

/// Turns text into token shards `train-00000.h5`, ... and `valid-00000.h5`, ... in the output directory.
///
/// Split. A document goes to validation if the hash of its text, as a fraction, is below valid_fraction. So the same
/// text always goes to the same split, and new data move no old document. A corpus of fewer than 20 documents, such as
/// books, is split differently: the last valid_fraction of each document's bytes is held out, from the line break
/// before.
///
/// Parts. Part k of n makes its shards in the folder part-0000k-of-0000n of the output directory, so that n processes
/// may work at a time. It takes every n-th file, or every n-th document of all files if there are fewer files than
/// parts. Duplicates are found within a part.
///
/// The result does not depend on the number of threads. Shards appear in the directory only when all are complete and
/// durable; until then old shards are unchanged.
///
/// Interruption. Complete shards stay in a hidden folder of the directory (data/staging.h). The same command then makes
/// only the missing ones, with the same bits, if sizes and times of the input files are unchanged; another command
/// removes them. A process that is killed while it replaces old shards leaves a folder kPublishing
/// (data/token_shards.h): then TokenShards refuses the directory, and the next prepare needs no `overwrite`.
///
/// @throws UsageError for bad options, MissingError, DataError (malformed text, an empty input or split), CreateError
/// (the directory cannot be made, holds shards and `overwrite` is not set, or holds shards of others), IoError, and
/// what `check_stop` throws
PrepareSummary prepare(const PrepareOptions& options);

}  // namespace mmfree
