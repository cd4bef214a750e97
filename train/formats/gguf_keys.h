#pragma once
#include <string>

#include "train/formats/gguf.h"
#include "train/inference/model.h"

namespace mmfree {

/// The keys of a model's file, without its hash: general.*, those of the architecture, tokenizer.ggml.* and
/// mmfree.config. `no_tokenizer` says why the tokenizer is left out, if it is.
GgufKeys gguf_keys(const Model& model, const std::string& architecture, GgmlType type, std::string& no_tokenizer);

}  // namespace mmfree
