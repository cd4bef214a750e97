#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>
#include <utility>

#include "core/error.h"
#include "core/ranks/group.h"
#include "core/system/console.h"
#include "core/system/files.h"
#include "core/system/folder_mark.h"
#include "core/system/signals.h"
#include "data/paths.h"
#include "data/prepare.h"
#include "data/text/text_reader.h"
#include "data/text/tokenizer.h"
#include "train/commands/commands.h"
#include "train/commands/text_options.h"
#include "train/run/progress.h"

namespace mmfree {

namespace {

/// Never one of the inputs, and only if asked to another tokenizer of ours.
void check_tokenizer_output(const TokenizerTraining& training, bool overwrite) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const TextReader inputs(training.inputs, training.text);
  for (const std::string& input : inputs.files())
    MMFREE_CHECK(UsageError, !fs::equivalent(input, training.output, ignored), training.output,
                 ": is one of the inputs; choose another name for the tokenizer");
  require_replaceable(training.output, overwrite, [&] { Tokenizer::require_trained(training.output); });
}

/// Bytes from a number of megabytes; 0 stays 0, which means all.
int64_t bytes_of(double megabytes) {
  MMFREE_CHECK(UsageError, megabytes >= 0 && megabytes <= 1e12, "--limit-mb: ", megabytes, ", expected 0 to 1e12");
  return int64_t(std::ceil(megabytes * 1e6));
}

/// "3/8"; the whole for "".
PrepareOptions::Part part_of(const std::string& text) {
  PrepareOptions::Part part;
  if (text.empty()) return part;
  const char *begin = text.data(), *end = begin + text.size();
  const auto number = std::from_chars(begin, end, part.number);
  const bool slash = number.ec == std::errc() && number.ptr != end && *number.ptr == '/';
  const auto of = slash ? std::from_chars(number.ptr + 1, end, part.of) : number;
  MMFREE_CHECK(UsageError, slash && of.ec == std::errc() && of.ptr == end && part.of <= 99999, "--part: ", quote(text),
               ", expected k/n such as 1/8, with k from 1 to n");
  return part;
}

Tokenizer train_tokenizer(TokenizerTraining training) {
  const StopSignals signals;
  const std::string path = std::exchange(training.output, ""), folder = std::filesystem::path(path).parent_path();
  // Training takes a while: a folder that cannot be made is better known before.
  { const NeededDirectory attempt(folder); }
  const Tokenizer trained = [&] {
    const LeaveAtOnce without_a_trace;
    return Tokenizer::train(training);
  }();
  const NeededDirectory parent(folder);
  write_file(path, trained.serialized());
  return trained;
}

void print_tokenizer(const Tokenizer& t) {
  const auto special = [&](const char* name, int id) {
    console::out.print(concat("  ", name, ' ', id < 0 ? "none" : concat(id, " ", t.piece(id)), '\n'));
  };
  console::out.format("vocabulary  %d pieces\nhash        %s\nprefix      %s\nspecial ids\n", t.vocab_size(),
                      t.hash().c_str(), t.adds_dummy_prefix() ? "a space before each text" : "none");
  special("unk", t.unk_id());
  special("bos", t.bos_id());
  special("eos", t.eos_id());
  special("pad", t.pad_id());
}

void print_sample(const Tokenizer& t, const std::string& text) {
  const std::vector<int32_t> ids = t.encode(text);
  console::out.format("sample      %zu bytes, %zu tokens\n", text.size(), ids.size());
  for (int32_t id : ids) console::out.print(concat("  ", id, '\t', t.piece(id), '\n'));
  console::out.print(
      concat("decoded     ", t.decode(ids) == text ? "the same text" : "a DIFFERENT text: " + t.decode(ids), '\n'));
}

std::string split_text(const char* name, const PrepareSummary::Split& s) {
  return concat(name, "  ", s.documents, " documents, ", format_bytes(uint64_t(s.bytes)), " of text, ",
                format_count(double(s.tokens)), " tokens in ", s.shards, s.shards == 1 ? " shard\n" : " shards\n");
}

std::string summary_text(const PrepareOptions& options, const PrepareSummary& s) {
  std::string text = split_text("train", s.train);
  if (options.valid_fraction > 0) text += split_text("valid", s.valid);
  if (s.duplicates) text += concat("Dropped ", s.duplicates, " documents that were there already.\n");
  if (s.held_out_tails) text += "Fewer than 20 documents: validation is the tail of each.\n";
  if (!s.skipped.empty()) text += "Skipped " + skipped_text(s.skipped) + ".\n";
  if (!s.passed_over.empty()) text += passed_over_text(s.passed_over) + "\n";
  return text + concat("Written to ", options.output, '\n');
}

/// Ranks that were given no part make one each.
void prepare_by_ranks(PrepareOptions& options, Group& group) {
  if (group.size() > 1) {
    MMFREE_CHECK(UsageError, options.part.of == 1, "--part: ", group.size(), " ranks make a part each; leave it out");
    options.part = {group.rank() + 1, group.size()};
  }
  PrepareSummary summary;
  {
    const StopSignals signals;
    options.check_stop = [&] {
      group.check();
      throw_if_stopped("goes on after the shards that are whole");
    };
    options.on_resume = [](int64_t shards, int64_t tokens) {
      console::err.print(
          concat("going on after ", shards, " whole shards, ", format_count(double(tokens)), " tokens\n"));
    };
    options.on_warning = [](const std::string& warning) { console::err.print("warning: " + warning + "\n"); };
    ShareProgress progress("preparing");
    options.on_progress = [&](const PrepareProgress& p) {
      const double share = double(p.bytes_read) / double(std::max({p.bytes_read, p.total_bytes, int64_t(1)}));
      if (group.rank() == 0) progress.update(share, format_count(double(p.tokens)) + " tokens");
    };
    summary = prepare(options);
  }
  const std::vector<std::string> texts = group.gather_texts(summary_text(options, summary));
  for (size_t r = 0; r < texts.size() && group.rank() == 0; ++r)
    console::out.print((texts.size() > 1 ? concat("part ", r + 1, "/", texts.size(), "\n") : "") + texts[r]);
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
  CLI::App* tokenizer = app.add_subcommand("tokenizer", "Train a SentencePiece tokenizer, or look at one");
  tokenizer->require_subcommand(1);

  auto training = std::make_shared<TokenizerTraining>();
  auto limit_mb = std::make_shared<double>(0);
  auto overwrite = std::make_shared<bool>(false);
  CLI::App* train = tokenizer->add_subcommand("train", "Train a tokenizer on text");
  add_text_inputs(*train, training->inputs);
  train->add_option("-o,--output", training->output, "the .model file to write")->required();
  train->add_option("--vocab-size", training->vocab_size, "number of pieces")->capture_default_str();
  train->add_option("--type", training->type, "bpe or unigram")->capture_default_str();
  train->add_option("--character-coverage", training->character_coverage, "share of characters that get pieces")
      ->capture_default_str();
  train->add_option("--limit-mb", *limit_mb, "use this many MB of text, evenly from all files (0: all)");
  train->add_flag("--overwrite", *overwrite, "replace a tokenizer that mmfree trained");
  add_text_options(*train, training->text);
  train->footer("Example:\n  mmfree tokenizer train corpus/*.jsonl.zst -o tok.model --vocab-size 8000 --limit-mb 100");
  train->callback([training, limit_mb, overwrite] {
    training->limit_bytes = bytes_of(*limit_mb);
    training->on_note = [](const std::string& note) { console::err.print(note + "\n"); };
    check_tokenizer_output(*training, *overwrite);
    print_tokenizer(train_tokenizer(*training));
    console::out.print(concat("Written to ", training->output, '\n'));
  });

  auto path = std::make_shared<std::string>();
  auto text = std::make_shared<std::string>();
  CLI::App* info = tokenizer->add_subcommand("info", "Show a tokenizer's sizes and ids");
  info->add_option("model", *path, "the .model file")->required();
  info->add_option("--text", *text, "a sample to encode");
  info->footer("Example:\n  mmfree tokenizer info tok.model --text 'Once upon a time'");
  info->callback([path, text] {
    const Tokenizer t = Tokenizer::load(*path);
    print_tokenizer(t);
    if (!text->empty()) print_sample(t, *text);
  });
}

void add_prepare_command(CLI::App& app) {
  auto options = std::make_shared<PrepareOptions>();
  auto limit_mb = std::make_shared<double>(0);
  auto part = std::make_shared<std::string>();
  CLI::App* prepare_app = app.add_subcommand("prepare", "Turn text into token shards for training");
  add_text_inputs(*prepare_app, options->inputs);
  prepare_app->add_option("-t,--tokenizer", options->tokenizer, "the .model file")->required();
  prepare_app->add_option("-o,--output", options->output, "directory for the shards")->required();
  prepare_app->add_option("--valid-fraction", options->valid_fraction, "share held out for validation (0: none)")
      ->capture_default_str();
  prepare_app->add_option("--shard-tokens", options->shard_tokens, "tokens per shard")->capture_default_str();
  prepare_app->add_option("--limit-mb", *limit_mb, "stop after this many MB of text (0: never)");
  prepare_app->add_flag("--bos,!--no-bos", options->bos, "begin each document with bos (default)");
  prepare_app->add_flag("--eos,!--no-eos", options->eos, "end each document with eos (default)");
  add_text_options(*prepare_app, options->text);
  prepare_app->add_flag("--drop-duplicates", options->drop_duplicates,
                        "of documents that are equal keep the first; takes about 64 bytes of memory per document; with "
                        "--part within the part");
  prepare_app->add_flag("--compress", options->compress, "compress the shards (deflate): smaller, slower to read");
  prepare_app->add_option("--part", *part,
                          "k/n: make part k of n, in a folder of its own; for job arrays (ranks make a part each)");
  prepare_app->add_flag("--overwrite", options->overwrite, "replace the shards that mmfree prepared in the directory");
  prepare_app->footer(
      "SIGTERM, SIGUSR1, SIGHUP or one Ctrl-C end it after the documents in hand (status 75); then, and after a crash, "
      "the "
      "same\n"
      "command goes on after the shards that are whole. Until all are, the directory's older shards stay.\n"
      "Examples:\n"
      "  mmfree prepare corpus/*.jsonl.zst -t tok.model -o data\n"
      "  mmfree prepare SlimPajama-627B/train -t tok.model -o data --part 3/16    then train on "
      "data/part-*/train-*.h5\n"
      "  zcat chat.jsonl.gz | mmfree prepare - -t tok.model -o data --text-field content\n"
      "  mmfree prepare book.txt -t tok.model -o book --valid-fraction 0.1");
  prepare_app->callback([options, limit_mb, part] {
    options->limit_bytes = bytes_of(*limit_mb);
    options->part = part_of(*part);
    const std::unique_ptr<Group> group = Group::join(detect_launch());
    if (group->threads() > 0) omp_set_num_threads(group->threads());
    group->run([&] { prepare_by_ranks(*options, *group); });
  });
}

}  // namespace mmfree
