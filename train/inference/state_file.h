#pragma once
#include <string>

#include "train/inference/generate.h"
#include "train/inference/model.h"

namespace mmfree {

/// 16 hex digits over what a model computes with: its layers, matrices as they are multiplied, and norms. The same on
/// every device, and for a checkpoint and its ternary export. The embedding table, and how it is stored, do not count.
std::string model_fingerprint(const Model& model);

/// The state after a prompt as a safetensors file: state.0, state.1, … F32 as SlotState, seen I32 [ceil(V / 32)].
/// Metadata: format "mmfree-state", version "1", model (the fingerprint), position and last (whole numbers),
/// content_hash over all of it. @throws CreateError, IoError
void write_state(const std::string& path, const Model& model, const PromptState& state);

/// Reads such a file for a model. @throws MissingError, IoError, VersionError, DamagedError, DataError for another kind
/// of file or a state of another model
PromptState read_state(const std::string& path, const Model& model);

}  // namespace mmfree
