#include "train/run/run_inputs.h"

#include "core/error.h"

namespace mmfree {
namespace {

const Corpus& checked(const Corpus& corpus, const RunConfig& config) {
  const ShardInfo& info = corpus.info();
  MMFREE_CHECK(ConfigError, info.vocab_size <= config.model.vocab_size, config.source, ": model.vocab_size is ",
               config.model.vocab_size, " but the training shards use ", info.vocab_size,
               " token ids; set model.vocab_size=", info.vocab_size, " or more");
  const std::optional<Framing>& framing = config.data.framing;
  MMFREE_CHECK(ConfigError, !framing || *framing == info.framing, config.source, ": data.framing is ", name_of(framing),
               ", but the training shards are framed by ", name_of(info.framing));
  return corpus;
}

}  // namespace

RunInputs::RunInputs(const RunConfig& config)
    : corpus(config.data), eval_sets(config.data, checked(corpus, config).info()) {
  if (!config.data.valid.empty()) {
    valid.emplace(config.data.valid);
    require_evaluable("data.valid", *valid, corpus.info());
  }
  if (config.data.tokenizer.empty()) return;
  tokenizer = Tokenizer::load(config.data.tokenizer);
  MMFREE_CHECK(DataError, tokenizer->hash() == corpus.info().tokenizer_hash, config.data.tokenizer,
               ": is not the tokenizer that the training shards were prepared with");
}

}  // namespace mmfree
