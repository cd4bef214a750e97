// A mask from the shard to the trained weights: the feed counts what is scored, the loss is the mean over it, and a
// batch of which nothing is scored is passed over.
#include "data/feed.h"
#include "optim/adamw.h"
#include "tests/support/compare.h"
#include "tests/support/training.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {

constexpr int64_t kLength = 17, kRows = 4, kSteps = 4, kEmptyStep = 2;

/// Random tokens for kSteps batches in order. Two of seven are not scored, nor is any target of batch kEmptyStep.
struct MaskedCorpus {
  TempDir dir;
  std::vector<int32_t> tokens;
  std::vector<uint8_t> mask;

  MaskedCorpus() {
    const Tensor ids = random_ids(kSteps * kRows * kLength + 1, 320, 5);
    tokens.assign(ids.data<int32_t>(), ids.data<int32_t>() + ids.size());
    for (int64_t i = 0; i < ids.size(); ++i)
      mask.push_back(i % 7 != 1 && i % 7 != 4 && (i - 1) / (kRows * kLength) != kEmptyStep);
    ShardWriter shard(path(), shard_info(TinyCorpus::get().tokenizer(), "train"), "test");
    shard.add(tokens, mask);
    shard.commit();
  }
  std::string path() const { return dir / "train-00000.h5"; }
  RunConfig run() const {
    RunConfig c = tiny_run(dir / "run");
    c.data.train = {path()};
    c.data.valid.clear();
    c.data.shuffle = false;
    c.optim.warmup_steps = 0;
    c.train.steps = kSteps;
    c.train.batch_size = kRows;
    c.train.micro_batch_size = 2;
    return c;
  }
  /// Where the inputs of a batch begin; its targets are one further.
  static int64_t begin(int64_t step) { return step * kRows * kLength; }
  Tensor inputs(int64_t step) const { return Tensor::from({kRows * kLength}, tokens.data() + begin(step)); }
  Tensor targets(int64_t step) const { return Tensor::from({kRows * kLength}, tokens.data() + begin(step) + 1); }
  bool scores(int64_t step, int64_t i) const { return mask[size_t(begin(step) + 1 + i)]; }
  int64_t scored(int64_t step) const {
    int64_t n = 0;
    for (int64_t i = 0; i < kRows * kLength; ++i) n += scores(step, i);
    return n;
  }
};

TEST(Masks, TheFeedCountsWhatTheShardScores) {
  const MaskedCorpus corpus;
  const Corpus shards{TokenShards({corpus.path()})};
  const Batches batches(shards, {kLength, 1, false});
  BatchFeed feed(batches, 0, kSteps, kRows, kLength, false);
  for (int64_t step = 0; step < kSteps; ++step) {
    BatchFeed::Slot* slot = feed.next();
    EXPECT_EQ(slot->scored, corpus.scored(step));
    EXPECT_EQ(slot->scored == 0, step == kEmptyStep);
    EXPECT_LT(slot->scored, kRows * kLength);
    for (int64_t i = 0; i < kRows * kLength; ++i)
      EXPECT_EQ(slot->data()[kRows * kLength + i],
                corpus.scores(step, i) ? corpus.targets(step).data<int32_t>()[i] : kIgnoreTarget);
    feed.release(slot);
  }
}

TEST(Masks, ARunMinimisesTheMeanOverScoredTokensAndPassesOverABatchWithoutAny) {
  const MaskedCorpus corpus;
  const RunConfig c = corpus.run();
  RunResult result;
  const std::string said = text_of([&] { result = train(c); });
  EXPECT_TRUE(contains(said, "step 3: no target of its batch is scored: the step was skipped")) << said;
  EXPECT_FALSE(contains(said, "in a row")) << said;
  EXPECT_TRUE(result.finished);

  ParamStore params(parameter_specs(c.model), DType::f32);
  const LM lm(params, c.model);
  AdamW optimizer(params, c.optim);
  params.initialise(uint64_t(c.train.seed));
  lm.requantise();
  std::map<int64_t, double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    const int64_t scored = corpus.scored(step), half = kRows * kLength / 2;
    if (scored == 0) continue;
    const Tensor ids = corpus.inputs(step), nll = lm.nll(ids, corpus.targets(step), kRows);
    Tensor targets = corpus.targets(step).clone();
    for (int64_t i = 0; i < nll.size(); ++i) {
      if (corpus.scores(step, i))
        losses[step + 1] += double(nll.data<float>()[i]) / double(scored);
      else
        targets.mut<int32_t>()[i] = kIgnoreTarget;
    }
    params.begin_gradients();
    for (int64_t at : {int64_t(0), half}) {
      Tape tape;
      tape.backward(lm.loss(ids.slice(at, at + half), targets.slice(at, at + half), kRows / 2, 1 / double(scored)));
    }
    params.finish_gradients();
    optimizer.begin_step(step + 1, kSteps);
    optimizer.update();
    lm.requantise();
  }
  const Model trained = load_model(checkpoint_path(c.train.run_dir, kSteps));
  for (const ParamSpec& spec : params.specs())
    EXPECT_TRUE(same_bits((*trained.params)[spec.name].value(), params[spec.name].value())) << spec.name;

  std::map<int64_t, double> reported;
  for (const nlohmann::json& row : all_metrics(c.train.run_dir))
    if (row.contains("train/loss")) reported[row["step"]] = row["train/loss"];
  ASSERT_EQ(reported.size(), losses.size());
  for (const auto& [step, loss] : losses) EXPECT_NEAR(reported[step], loss, 1e-6 * loss) << "step " << step;
}

TEST(Masks, EvaluationIsTheMeanOverScoredTokens) {
  const MaskedCorpus corpus;
  const TokenShards shards({corpus.path()});
  const Model m = tiny_model(tiny_model_config());
  const Evaluation e = evaluate(*m.lm, TokenSource::shards(shards), {kLength, 0, {}});
  double nats = 0;
  int64_t scored = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    const Tensor nll = m.lm->nll(corpus.inputs(step), corpus.targets(step), kRows);
    for (int64_t i = 0; i < nll.size(); ++i)
      if (corpus.scores(step, i)) nats += double(nll.data<float>()[i]), ++scored;
  }
  EXPECT_EQ(e.tokens, scored);
  EXPECT_NEAR(e.loss(), nats / double(scored), 1e-9 * e.loss());
}

}  // namespace
}  // namespace mmfree
