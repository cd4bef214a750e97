#pragma once
#include <optional>
#include <string>
#include <vector>

#include "train/config/config.h"
#include "train/inference/model.h"

/// train.init_from: a run that starts with the weights of a model that is there already.
namespace mmfree {

/// The model that train.init_from names. @throws what load_model throws
Model load_source(const TrainConfig& train);

/// The model keys that hold where none are given (see load_config): those of the run itself if it goes on from its own
/// checkpoints, because train.resume says so or `resume` is set, else those of the model that train.init_from names,
/// which then is in `source`. @throws what load_source and load_config throw
ModelConfig inherited_model(const TrainConfig& train, bool resume, std::optional<Model>& source);

/// Copies each parameter of `source` to the one of the same name in `params`, which are those of `config` and hold
/// their initial values. A gate and an up projection that are one matrix in one of the two models are split or joined;
/// a head of its own starts as a copy of the embedding table of a source with tie_word_embeddings. Returns lines for
/// people: what starts fresh because the source lacks it, and what of the source has no place.
/// @throws ConfigError naming key, tensor and both shapes where they differ; DataError as latents_of
std::vector<std::string> init_parameters(ParamStore& params, const RunConfig& config, const Model& source);

/// Latent weights [O, K] f32 that quantise to exactly the codes and the scale of `w`. Codes times scale would not do:
/// their absmean is scale · (share of non-zero codes). So the magnitude is scale / share, rounded down, and as many
/// latents as it takes have the next larger float. @throws DataError if quantisation gives no such scale
Tensor latents_of(const TernaryTensor& w, const std::string& name);

}  // namespace mmfree
