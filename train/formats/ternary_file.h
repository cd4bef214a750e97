#pragma once
#include <functional>
#include <string>

#include "train/inference/model.h"

namespace mmfree {

/// How the embedding table of an export is stored: as trained, rounded to bf16, or as int8 with one scale per row.
enum class EmbeddingStore { f32, bf16, int8 };

/// The deployment format: a safetensors file that holds codes *and* scales, never latent weights (quantising a
/// dequantised matrix again would shrink its scale). Tensors:
///   NAME.codes   U8 [O, ceil(K/128)·32]   four 2-bit codes per byte, weight + 1 in {0, 1, 2}, for each ternary
///   projection:
///                                         byte j of a 32-byte block holds columns j, j+32, j+64, j+96 of its 128, low
///                                         bits first
///   NAME.scale   F32 [1]                  weight = (code − 1) · scale
///   NAME.weight  F32 | BF16               projections that are not ternary, norms, lower bounds
///   model.embeddings.weight               F32 | BF16 | I8 [V, D] with model.embeddings.weight.scale F32 [V]
///   tokenizer.model  U8                   the SentencePiece model, if there is one
/// Metadata: format "mmfree-ternary", version "1", config (YAML), content_hash over config and all tensors.
/// `before_tensor` is called before each tensor is written, and `check` with the name under which the whole file can be
/// read before it gets its own: what they throw leaves an older file at `path` as it is.
/// @throws CreateError, IoError, what the callbacks throw; UsageError if the model holds no latents or codes for a
/// projection
void write_ternary_file(const std::string& path, const Model& model, EmbeddingStore embedding,
                        const std::function<void()>& before_tensor = {},
                        const std::function<void(const std::string& written)>& check = {});

/// @throws MissingError, DataError (damaged, a code outside {0, 1, 2}, a value that is not finite, a missing tensor),
/// IoError
Model read_ternary_file(const std::string& path);

/// What an export with this store gives back of an embedding table [V, D] f32.
Tensor rounded_embedding(const Tensor& table, EmbeddingStore embedding);

/// Exports and proves it: writes the file, loads it again, and compares its embedding with the model's, rounded, and
/// the logits that both give for 256 tokens from the same embedding. All must agree to the bit before the file gets its
/// name. `before_tensor` as above. @throws Error if they do not; an older file at `path` stays
void export_ternary(const std::string& path, const Model& model, EmbeddingStore embedding,
                    const std::function<void()>& before_tensor = {});

}  // namespace mmfree
