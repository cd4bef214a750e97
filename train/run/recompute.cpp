#include "train/run/recompute.h"

namespace mmfree {

int64_t selective_saves(const RunConfig& config) {
  int64_t width = 0;
  for (int l = 0; l < config.model.num_hidden_layers - config.train.keep_blocks; ++l) {
    const LayerConfig layer = config.model.layer(l);
    width += layer.channel == ChannelKind::glu ? 2 * layer.inner : layer.inner;
  }
  return config.train.micro_batch() * config.data.seq_len * width * int64_t(sizeof(float));
}

Recompute recompute_of(const RunConfig& config, Device device) {
  const bool saves = device == Device::cuda || selective_saves(config) > kAutoSavesAtLeast;
  return config.train.recompute.value_or(saves ? Recompute::selective : Recompute::none);
}

}  // namespace mmfree
