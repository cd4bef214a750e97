#include "train/run/run_batches.h"

namespace mmfree {
namespace {

/// The mixture of data.sources and data.stages. A stage begins with the first sample after its tokens.
std::vector<Mixture::Stage> stages_of(const DataConfig& data) {
  std::vector<Mixture::Stage> stages;
  if (data.sources.empty()) return stages;
  stages.emplace_back();
  for (const DataSource& source : data.sources) stages[0].weights.push_back(source.weight);
  for (const DataStage& stage : data.stages)
    stages.push_back({(stage.from_tokens + data.seq_len - 1) / data.seq_len, stage.weights});
  return stages;
}

}  // namespace

BatchOptions batch_options(const RunConfig& config) {
  const DataConfig& data = config.data;
  const int64_t tracks = data.carry_state ? config.train.batch_size : 0;
  return {data.seq_len, uint64_t(config.train.seed), data.shuffle, stages_of(data), data.reset_state, tracks};
}

int64_t next_sample(const RunConfig& config, const LoopState& state) {
  return state.tokens / config.data.seq_len + state.left_out;
}

BatchFeed::Samples samples_of(const RunConfig& config, const LoopState& state, int rank, int ranks) {
  const int64_t rows = config.train.batch_size / ranks;
  return {next_sample(config, state) + rank * rows, rows, config.train.batch_size};
}

}  // namespace mmfree
