#include "data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <future>
#include <memory>
#include <set>
#include <sstream>

#include "core/error.h"
#include "core/parallel.h"
#include "core/system/hash.h"
#include "data/split.h"
#include "data/staging.h"
#include "data/text/framing.h"
#include "data/token_shards.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr int kFewDocuments = 20;
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

  void add(const FramedDocument& document, const std::string& set) {
    if (!shard_)
      shard_ =
          std::make_unique<ShardWriter>(staging_.file(info_.split, total_.shards++), info_, source_, options_.compress);
    shard_->add(document.tokens, document.mask, set);
    total_.tokens += int64_t(document.tokens.size());
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

TextOptions text_options(const PrepareOptions& options, int64_t vocab_size) {
  TextOptions text = options.text;
  text.vocab_size = vocab_size;
  text.check_stop = options.check_stop;
  return text;
}

/// Ends the work of another thread at the end of a scope: it may wait for a pipe that nobody writes to.
struct Abandon {
  explicit Abandon(std::atomic<bool>& flag) : abandoned(flag) { abandoned = false; }
  ~Abandon() { abandoned = true; }
  std::atomic<bool>& abandoned;
};

/// Documents that are encoded together, and where the reader is after them.
struct Group {
  std::vector<SplitDocument> documents;
  bool more = true;
  int64_t bytes_read = 0;
};

/// Reads documents, takes those of its part, drops duplicates and divides the rest.
class GroupReader {
 public:
  GroupReader(const PrepareOptions& options, int64_t vocab_size, const std::vector<std::string>& files, bool by_rows,
              Splitting splitting)
      : options_(options), reader_(files, stoppable(vocab_size)), by_rows_(by_rows), splitting_(splitting) {}

  Group next() {
    Group group;
    Document document;
    for (int64_t bytes = 0; bytes < kGroupBytes;) {
      if (options_.check_stop) options_.check_stop();
      group.more = (!options_.limit_bytes || bytes_ < options_.limit_bytes) && reader_.next(&document);
      if (!group.more) break;
      bytes += document.bytes() + 1;
      bytes_ += document.bytes();
      if (is_taken(document)) splitting_.divide(std::move(document), &group.documents);
    }
    group.bytes_read = reader_.bytes_read();
    return group;
  }

  const TextReader& reader() const { return reader_; }
  /// While true, `next` ends soon with an error.
  std::atomic<bool>& abandoned() { return abandoned_; }
  int64_t duplicates() const { return duplicates_; }

 private:
  TextOptions stoppable(int64_t vocab_size) const {
    TextOptions text = text_options(options_, vocab_size);
    text.check_stop = [this] {
      MMFREE_CHECK(Error, !abandoned_, "prepare: nobody takes what is read");
      if (options_.check_stop) options_.check_stop();
    };
    return text;
  }
  bool is_taken(const Document& document) {
    if (document.bytes() == 0) return false;
    if (by_rows_ && row_++ % options_.part.of != options_.part.number - 1) return false;
    if (!options_.drop_duplicates) return true;
    Hash128 hash;
    const std::string key = content_key(document);
    hash.update(key.data(), key.size());
    const bool is_new = seen_.insert(hash.digest()).second;
    duplicates_ += !is_new;
    return is_new;
  }

  const PrepareOptions& options_;
  std::atomic<bool> abandoned_ = false;
  TextReader reader_;
  bool by_rows_;
  Splitting splitting_;
  std::set<std::array<uint64_t, 2>> seen_;
  int64_t row_ = 0, bytes_ = 0, duplicates_ = 0;
};

std::vector<FramedDocument> encode_all(const DocumentEncoder& encoder, const PrepareOptions& options,
                                       const std::vector<SplitDocument>& documents) {
  std::vector<FramedDocument> framed(documents.size());
  std::vector<std::exception_ptr> errors(documents.size());
  parallel_for(int64_t(documents.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = size_t(begin); i < size_t(end); ++i) try {
        if (options.check_stop) options.check_stop();
        framed[i] = encoder.document(documents[i].document);
      } catch (...) {
        errors[i] = std::current_exception();
      }
  });
  for (const auto& e : errors)
    if (e) std::rethrow_exception(e);
  return framed;
}

bool reads_standard_input(const PrepareOptions& options) {
  return std::find(options.inputs.begin(), options.inputs.end(), "-") != options.inputs.end();
}

bool has_few_documents(const PrepareOptions& options, int64_t vocab_size) {
  if (reads_standard_input(options)) return false;  // it cannot be read twice
  TextReader reader(options.inputs, text_options(options, vocab_size));
  Document document;
  int64_t count = 0, bytes = 0;
  while (count < kFewDocuments && (!options.limit_bytes || bytes < options.limit_bytes) && reader.next(&document)) {
    ++count;
    bytes += document.bytes();
  }
  return count < kFewDocuments;
}

/// Everything that the shards depend on, as text; of the input files path, size and time.
std::string plan_of(const PrepareOptions& o, const Tokenizer& tokenizer, const std::vector<std::string>& files,
                    bool tails) {
  std::ostringstream plan;
  plan << tokenizer.hash() << '\n'
       << o.shard_tokens << '\n'
       << std::hexfloat << o.valid_fraction << '\n'
       << o.bos << o.eos << '\n'
       << o.limit_bytes << '\n'
       << o.text.text_field << '\n'
       << o.text.set_field << '\n'
       << o.part.number << ' ' << o.part.of << ' ' << o.drop_duplicates << ' ' << o.compress << ' ' << tails << '\n';
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
  MMFREE_CHECK(UsageError, o.part.number >= 1 && o.part.number <= o.part.of, "prepare: part ", o.part.number, '/',
               o.part.of, ", expected 1/", o.part.of, " to ", o.part.of, '/', o.part.of);
  MMFREE_CHECK(UsageError, o.part.of == 1 || !reads_standard_input(o),
               "prepare: standard input cannot be divided into parts; give files");
  MMFREE_CHECK(UsageError, !o.output.empty(), "prepare: the output directory has an empty name");
  MMFREE_CHECK(UsageError, o.limit_bytes >= 0, "prepare: limit of ", o.limit_bytes, " bytes, expected 0 or more");
}

/// Why the result cannot be used as a corpus; empty if it can.
std::string problem_of(const PrepareOptions& o, const PrepareSummary& s) {
  if (o.part.of > 1) return {};  // a part may lack anything
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

std::string folder_of_part(const PrepareOptions& options) {
  if (options.part.of == 1) return options.output;
  char name[64];
  std::snprintf(name, sizeof name, "part-%05lld-of-%05lld", static_cast<long long>(options.part.number),
                static_cast<long long>(options.part.of));
  return (fs::path(options.output) / name).string();
}

}  // namespace

PrepareSummary prepare(const PrepareOptions& options) {
  check_options(options);
  const DocumentEncoder encoder(Tokenizer::load(options.tokenizer), framing_of(options.bos, options.eos));
  const FoundFiles found(options.inputs, TextReader::suffixes());
  const Splitting splitting{options.valid_fraction,
                            options.valid_fraction > 0 && has_few_documents(options, encoder.tokenizer().vocab_size())};
  const bool by_rows = int64_t(found.files.size()) < options.part.of;
  std::vector<std::string> files;
  for (size_t i = 0; i < found.files.size(); ++i)
    if (by_rows || int64_t(i) % options.part.of == options.part.number - 1) files.push_back(found.files[i]);
  GroupReader reader(options, encoder.tokenizer().vocab_size(), files, by_rows, splitting);
  Staging staging(folder_of_part(options), plan_of(options, encoder.tokenizer(), files, splitting.tails),
                  options.overwrite);
  if (options.on_warning && !staging.warning().empty()) options.on_warning(staging.warning());
  SplitWriter train(staging, shard_info(encoder.tokenizer(), "train", encoder.framing()), options);
  SplitWriter valid(staging, shard_info(encoder.tokenizer(), "valid", encoder.framing()), options);
  const auto writer_of = [&](const SplitDocument& d) -> SplitWriter& { return d.valid ? valid : train; };
  const int64_t kept = train.kept().shards + valid.kept().shards;
  if (kept && options.on_resume) options.on_resume(kept, train.kept().tokens + valid.kept().tokens);

  // One group is read while the one before is encoded and written.
  Group group = reader.next();
  for (bool more = true; more;) {
    std::future<Group> next;  // its destructor waits
    const Abandon at_the_end(reader.abandoned());
    if (group.more) next = std::async([&] { return reader.next(); });
    std::erase_if(group.documents, [&](const auto& d) { return writer_of(d).is_kept(d.document.bytes()); });
    const std::vector<FramedDocument> framed = encode_all(encoder, options, group.documents);
    for (size_t i = 0; i < framed.size(); ++i) {
      if (options.check_stop) options.check_stop();
      writer_of(group.documents[i]).add(framed[i], group.documents[i].document.set);
    }
    const int64_t tokens = train.total().tokens + valid.total().tokens;
    if (options.on_progress) options.on_progress({group.bytes_read, reader.reader().total_bytes(), tokens});
    more = group.more;
    if (more) group = next.get();
  }
  train.close();
  valid.close();
  PrepareSummary summary{train.total(),     valid.total(),       reader.reader().skipped(),
                         found.passed_over, reader.duplicates(), splitting.tails};
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
