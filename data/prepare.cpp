#include "data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <memory>
#include <sstream>

#include "core/error.h"
#include "core/parallel.h"
#include "core/system/hash.h"
#include "data/staging.h"
#include "data/text/tokenizer.h"
#include "data/token_shards.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr int kFewDocuments = 20;
/// How far before the split a line break may be; a longer way would move too much text to the other split.
constexpr size_t kLineBytes = 1000;
/// Documents are encoded in parallel in groups of about this much text.
constexpr int64_t kGroupBytes = int64_t(8) << 20;

/// Writes one split's documents to as many shards as it takes.
class SplitWriter {
 public:
  SplitWriter(Staging& staging, ShardInfo info, const PrepareOptions& options)
      : staging_(staging), info_(std::move(info)), options_(options), kept_(staging.keep(info_, options.check_stop)) {
    for (const std::string& input : options.inputs) source_ += (source_.empty() ? "" : ", ") + input;
    total_.shards = kept_.shards;
    total_.tokens = kept_.tokens;
  }

  /// Counts the next document. Returns true if a kept shard of an earlier run holds it.
  bool is_kept(int64_t bytes) {
    total_.bytes += bytes;
    return total_.documents++ < kept_.documents;
  }

  void add(const std::vector<int32_t>& ids) {
    if (!shard_) shard_ = std::make_unique<ShardWriter>(staging_.file(info_.split, total_.shards++), info_, source_);
    std::vector<int32_t> document;
    document.reserve(ids.size() + 2);
    if (options_.bos && info_.bos_id >= 0) document.push_back(info_.bos_id);
    document.insert(document.end(), ids.begin(), ids.end());
    if (options_.eos && info_.eos_id >= 0) document.push_back(info_.eos_id);
    shard_->add(document);
    total_.tokens += int64_t(document.size());
    if (shard_->tokens() >= options_.shard_tokens) close();
  }

  void close() {
    if (shard_) shard_->commit();
    shard_.reset();
  }
  const Staging::Kept& kept() const { return kept_; }
  bool lacks_kept() const { return total_.documents < kept_.documents; }
  const PrepareSummary::Split& total() const { return total_; }

 private:
  Staging& staging_;
  ShardInfo info_;
  const PrepareOptions& options_;
  Staging::Kept kept_;
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

/// Offset of a document's held-out tail: after a line break if one is near, else at the start of a character.
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

TextOptions text_only(const PrepareOptions& options) {
  TextOptions text = options.text;
  text.text_only = true;
  text.check_stop = options.check_stop;
  return text;
}

bool reads_standard_input(const PrepareOptions& options) {
  return std::find(options.inputs.begin(), options.inputs.end(), "-") != options.inputs.end();
}

bool has_few_documents(const PrepareOptions& options) {
  if (reads_standard_input(options)) return false;  // it cannot be read twice
  TextReader reader(options.inputs, text_only(options));
  Document document;
  int64_t count = 0, bytes = 0;
  while (count < kFewDocuments && (!options.limit_bytes || bytes < options.limit_bytes) && reader.next(&document)) {
    ++count;
    bytes += document.bytes();
  }
  return count < kFewDocuments;
}

/// Everything that the shards depend on, as text; of the input files path, size and time.
std::string plan_of(const PrepareOptions& o, const Tokenizer& tokenizer, const std::vector<std::string>& files) {
  std::ostringstream plan;
  plan << tokenizer.hash() << '\n'
       << o.shard_tokens << '\n'
       << std::hexfloat << o.valid_fraction << '\n'
       << o.bos << o.eos << '\n'
       << o.limit_bytes << '\n'
       << o.text.text_field << '\n';
  for (const std::string& input : o.inputs) plan << input << '\n';
  // What stands on standard input is never known to be the same again.
  if (reads_standard_input(o)) plan << ::getpid() << ' ' << std::chrono::system_clock::now().time_since_epoch().count();
  for (const std::string& file : files) {
    if (file == "-") continue;
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    const auto written = fs::last_write_time(file, error).time_since_epoch().count();
    MMFREE_CHECK(IoError, !error, file, ": cannot be looked up: ", error.message());
    plan << file << '\n' << bytes << ' ' << written << '\n';
  }
  return plan.str();
}

void check_options(const PrepareOptions& o) {
  MMFREE_CHECK(UsageError, o.valid_fraction >= 0 && o.valid_fraction < 1, "prepare: valid fraction ", o.valid_fraction,
               ", expected 0 up to below 1");
  MMFREE_CHECK(UsageError, o.shard_tokens > 0, "prepare: shard size ", o.shard_tokens, ", expected 1 token or more");
  MMFREE_CHECK(UsageError, o.limit_bytes >= 0, "prepare: limit of ", o.limit_bytes, " bytes, expected 0 or more");
}

/// Why the result cannot be used as a corpus; empty if it can.
std::string problem_of(const PrepareOptions& o, const PrepareSummary& s) {
  if (s.train.documents + s.valid.documents == 0)
    return concat("the inputs hold no text; each row needs a non-empty ", quote(o.text.text_field),
                  s.skipped.empty() ? "" : "; skipped " + skipped_text(s.skipped));
  if (s.train.documents == 0)
    return concat("all ", s.valid.documents, " documents went to validation; lower the valid fraction (",
                  o.valid_fraction, ")");
  if (o.valid_fraction > 0 && s.valid.documents == 0)
    return concat("none of ", s.train.documents, " documents went to validation; raise the valid fraction (",
                  o.valid_fraction, ") or set it to 0");
  return {};
}

}  // namespace

PrepareSummary prepare(const PrepareOptions& options) {
  check_options(options);
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  TextReader reader(options.inputs, text_only(options));
  Staging staging(options.output, plan_of(options, tokenizer, reader.files()), options.overwrite);
  PrepareSummary summary;
  summary.held_out_tails = options.valid_fraction > 0 && has_few_documents(options);
  SplitWriter train(staging, shard_info(tokenizer, "train"), options);
  SplitWriter valid(staging, shard_info(tokenizer, "valid"), options);
  const auto writer_of = [&](const Part& p) -> SplitWriter& { return p.valid ? valid : train; };
  const int64_t kept = train.kept().shards + valid.kept().shards;
  if (kept && options.on_resume) options.on_resume(kept, train.kept().tokens + valid.kept().tokens);

  int64_t bytes = 0;
  Document document;
  for (bool more = true; more;) {
    std::vector<Part> parts;
    for (int64_t group = 0; group < kGroupBytes;) {
      if (options.check_stop) options.check_stop();
      more = (!options.limit_bytes || bytes < options.limit_bytes) && reader.next(&document);
      if (!more) break;
      bytes += document.bytes();
      group += document.bytes() + 1;
      split(std::move(std::get<std::string>(document.content)), summary.held_out_tails, options.valid_fraction, &parts);
    }
    std::erase_if(parts, [&](const Part& p) { return writer_of(p).is_kept(int64_t(p.text.size())); });
    encode_all(tokenizer, options, &parts);
    for (const Part& p : parts) {
      if (options.check_stop) options.check_stop();
      writer_of(p).add(p.ids);
    }
    const int64_t tokens = train.total().tokens + valid.total().tokens;
    if (options.on_progress) options.on_progress({reader.bytes_read(), reader.total_bytes(), tokens});
  }
  train.close();
  valid.close();
  summary.train = train.total();
  summary.valid = valid.total();
  summary.skipped = reader.skipped();
  summary.passed_over = reader.passed_over();
  std::string problem = problem_of(options, summary);
  if (train.lacks_kept() || valid.lacks_kept())
    problem = "the inputs have changed: shards of an earlier run hold more documents than they do; run it again";
  if (!problem.empty()) staging.discard();
  MMFREE_CHECK(DataError, problem.empty(), "prepare: ", problem);
  if (options.check_stop) options.check_stop();
  staging.publish();
  return summary;
}

}  // namespace mmfree
