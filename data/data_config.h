#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mmfree {

/// The longest sequence that may be trained on.
inline constexpr int64_t kMaxSeqLen = int64_t(1) << 20;

/// Which tokens a run reads (section `data`).
struct DataConfig {
  std::vector<std::string> train;  ///< token shards: files, globs or directories, relative to the working directory
  std::vector<std::string> valid;  ///< the same for evaluation; empty: no evaluation
  std::string tokenizer;           ///< SentencePiece model for val/bpb and samples; empty: none
  int64_t seq_len = 256;           ///< tokens predicted per sequence
  bool shuffle = true;             ///< visit sequences in a seeded random order, another one in each epoch
  bool reset_state = false;        ///< forget the recurrent state where a document starts
  bool carry_state = false;        ///< each row goes on where it ended in the step before, with its state; in order
};

}  // namespace mmfree
