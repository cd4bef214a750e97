#include "data/prepare.h"

#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>

#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "core/parallel.h"
#include "data/text_reader.h"
#include "data/token_shards.h"
#include "data/tokenizer.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr int kFewDocuments = 20;
/// A line break further away than this would move too much text between the splits.
constexpr size_t kLineBytes = 1000;
/// Documents are encoded in parallel in groups of about this much text.
constexpr int64_t kGroupBytes = int64_t(8) << 20;

/// Sorted; none if there is no such directory. @throws IoError
std::vector<fs::path> shards_in(const fs::path& directory) {
  std::vector<fs::path> out;
  for (const std::string& name : names_in(directory.string()))
    if ((name.starts_with("train-") || name.starts_with("valid-")) && name.ends_with(".h5"))
      out.push_back(directory / name);
  return out;
}

void refuse_to_replace(const fs::path& output) {
  const auto old = shards_in(output);
  MMFREE_CHECK(CreateError, old.empty() || fs::exists(output / kPublishing), output.string(),
               ": already holds shards, for example ", old.front().filename().string(),
               "; name another directory, or ask to overwrite");
}

/// Shards under construction, in a directory of their own so that an interrupted run leaves no half corpus behind.
class Staging {
 public:
  explicit Staging(const std::string& output)
      : output_(output), path_(output_ / ".preparing"), mark_(output_ / kPublishing), made_(output) {
    std::error_code error;
    fs::remove_all(path_, error);
    fs::create_directory(path_, error);
    MMFREE_CHECK(CreateError, !error, path_.string(), ": cannot create: ", error.message());
  }
  ~Staging() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Staging(const Staging&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }

  /// Replaces the directory's shards by the new ones, which are whole and durable by now. Until none of the old ones is
  /// left and all of the new ones have their names, kPublishing marks the directory.
  void publish() {
    for (const fs::path& p : shards_in(mark_)) remove(p);
    move(path_, mark_);
    sync_directory(output_.string());
    for (const fs::path& p : shards_in(output_)) remove(p);
    for (const fs::path& p : shards_in(mark_)) move(p, output_ / p.filename());
    sync_directory(output_.string());
    remove(mark_);
    sync_directory(output_.string());
  }

 private:
  static void remove(const fs::path& path) {
    std::error_code error;
    fs::remove(path, error);
    MMFREE_CHECK(IoError, !error, path.string(), ": cannot remove: ", error.message());
  }

  static void move(const fs::path& from, const fs::path& to) {
    std::error_code error;
    fs::rename(from, to, error);
    MMFREE_CHECK(IoError, !error, from.string(), ": cannot move to ", to.string(), ": ", error.message());
  }

  fs::path output_, path_, mark_;
  NeededDirectory made_;
};

/// Writes one split's documents to as many shards as it takes.
class SplitWriter {
 public:
  SplitWriter(const Staging& staging, ShardInfo info, const PrepareOptions& options)
      : staging_(staging), info_(std::move(info)), options_(options) {
    for (const std::string& input : options.inputs) source_ += (source_.empty() ? "" : ", ") + input;
  }

  void add(const std::vector<int32_t>& ids, int64_t bytes) {
    if (!shard_) {
      char name[64];
      std::snprintf(name, sizeof name, "%s-%05lld.h5", info_.split.c_str(), static_cast<long long>(total_.shards));
      shard_ = std::make_unique<ShardWriter>(staging_.file(name), info_, source_);
      ++total_.shards;
    }
    std::vector<int32_t> document;
    document.reserve(ids.size() + 2);
    if (options_.bos && info_.bos_id >= 0) document.push_back(info_.bos_id);
    document.insert(document.end(), ids.begin(), ids.end());
    if (options_.eos && info_.eos_id >= 0) document.push_back(info_.eos_id);
    shard_->add(document);
    ++total_.documents;
    total_.bytes += bytes;
    total_.tokens += int64_t(document.size());
    if (shard_->tokens() >= options_.shard_tokens) close();
  }

  void close() {
    if (shard_) shard_->commit();
    shard_.reset();
  }
  const PrepareSummary::Split& total() const { return total_; }

 private:
  const Staging& staging_;
  ShardInfo info_;
  const PrepareOptions& options_;
  std::string source_;
  std::unique_ptr<ShardWriter> shard_;
  PrepareSummary::Split total_;
};

struct Part {
  std::string text;
  bool valid = false;
  std::vector<int32_t> ids;
};

bool hashes_to_valid(const std::string& text, double fraction) {
  return double(hash64(text) >> 11) < fraction * 0x1p53;
}

/// Where the held-out tail of a document begins: after a line break if there is one, else at a character.
size_t tail_of(const std::string& text, double fraction) {
  auto at = size_t(double(text.size()) * (1 - fraction));
  const size_t line = text.rfind('\n', at);
  if (line != std::string::npos && line > 0 && at - line <= kLineBytes) return line + 1;
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

void split(std::string text, bool tails, double fraction, std::vector<Part>* parts) {
  if (text.empty()) return;
  if (!tails) {
    const bool valid = hashes_to_valid(text, fraction);
    parts->push_back({std::move(text), valid, {}});
    return;
  }
  const size_t at = tail_of(text, fraction);
  if (at > 0) parts->push_back({text.substr(0, at), false, {}});
  if (at < text.size()) parts->push_back({text.substr(at), true, {}});
}

void encode_all(const Tokenizer& tokenizer, const PrepareOptions& options, std::vector<Part>* parts) {
  std::vector<std::exception_ptr> errors(parts->size());
  parallel_for(int64_t(parts->size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = size_t(begin); i < size_t(end); ++i) try {
        if (options.check_stop) options.check_stop();
        (*parts)[i].ids = tokenizer.encode((*parts)[i].text);
      } catch (...) {
        errors[i] = std::current_exception();
      }
  });
  for (const auto& e : errors)
    if (e) std::rethrow_exception(e);
}

bool has_few_documents(const PrepareOptions& options) {
  TextReader reader(options.inputs, options.skip_malformed);
  std::string text;
  int64_t count = 0, bytes = 0;
  while (count < kFewDocuments && (!options.limit_bytes || bytes < options.limit_bytes) && reader.next(&text)) {
    ++count;
    bytes += int64_t(text.size());
  }
  return count < kFewDocuments;
}

void check_options(const PrepareOptions& o) {
  MMFREE_CHECK(UsageError, o.valid_fraction >= 0 && o.valid_fraction < 1, "prepare: valid fraction ", o.valid_fraction,
               ", expected 0 up to below 1");
  MMFREE_CHECK(UsageError, o.shard_tokens > 0, "prepare: shard size ", o.shard_tokens, ", expected 1 token or more");
  MMFREE_CHECK(UsageError, o.limit_bytes >= 0, "prepare: limit of ", o.limit_bytes, " bytes, expected 0 or more");
}

void check_summary(const PrepareOptions& o, const PrepareSummary& s) {
  MMFREE_CHECK(DataError, s.train.documents + s.valid.documents > 0,
               "prepare: the inputs hold no text; each .jsonl line needs a non-empty \"text\"");
  MMFREE_CHECK(DataError, s.train.documents > 0, "prepare: all ", s.valid.documents,
               " documents went to validation; lower the valid fraction (", o.valid_fraction, ")");
  MMFREE_CHECK(DataError, o.valid_fraction == 0 || s.valid.documents > 0, "prepare: none of ", s.train.documents,
               " documents went to validation; raise the valid fraction (", o.valid_fraction, ") or set it to 0");
}

}  // namespace

PrepareSummary prepare(const PrepareOptions& options) {
  check_options(options);
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  TextReader reader(options.inputs, options.skip_malformed);
  if (!options.overwrite) refuse_to_replace(options.output);
  Staging staging(options.output);
  PrepareSummary summary;
  summary.held_out_tails = options.valid_fraction > 0 && has_few_documents(options);
  SplitWriter train(staging, shard_info(tokenizer, "train"), options);
  SplitWriter valid(staging, shard_info(tokenizer, "valid"), options);

  int64_t bytes = 0;
  std::string text;
  for (bool more = true; more;) {
    std::vector<Part> parts;
    for (int64_t group = 0; group < kGroupBytes;) {
      more = (!options.limit_bytes || bytes < options.limit_bytes) && reader.next(&text);
      if (!more) break;
      bytes += int64_t(text.size());
      group += int64_t(text.size()) + 1;
      split(std::move(text), summary.held_out_tails, options.valid_fraction, &parts);
    }
    encode_all(tokenizer, options, &parts);
    for (const Part& p : parts) {
      if (options.check_stop) options.check_stop();
      (p.valid ? valid : train).add(p.ids, int64_t(p.text.size()));
    }
    const int64_t tokens = train.total().tokens + valid.total().tokens;
    if (options.on_progress) options.on_progress({reader.bytes_read(), reader.total_bytes(), tokens});
  }
  train.close();
  valid.close();
  summary.train = train.total();
  summary.valid = valid.total();
  summary.skipped_lines = reader.skipped_lines();
  check_summary(options, summary);
  if (options.check_stop) options.check_stop();
  staging.publish();
  return summary;
}

}  // namespace mmfree
