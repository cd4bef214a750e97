#pragma once
#include <functional>
#include <string>

#include "core/ops/embedding.h"
#include "train/inference/model.h"

namespace mmfree {

/// How the embedding table of an export is stored.
using EmbeddingStore = TableStore;

/// The deployment format: a safetensors file with codes and scales, without latent weights (a dequantised matrix cannot
/// stand for them: quantising it again would shrink its scale). Tensors:
///   NAME.codes   U8 [O, ceil(K/128)·32]   of each ternary projection: codes weight + 1 in {0, 1, 2}, four per byte;
///   byte j
///                                         of a 32-byte block holds columns j, j+32, j+64, j+96, low bits first
///   NAME.scale   F32 [1]                  weight = (code − 1) · scale
///   NAME.weight  F32 | BF16               projections that are not ternary, norms, lower bounds
///   model.embeddings.weight               F32 | BF16 | I8 [V, D] with model.embeddings.weight.scale F32 [V], or U8
///                                         [V, D / 2] with a scale BF16 [V, ceil(D / 32)]: see store_table
///   tokenizer.model  U8                   the SentencePiece model, if there is one
/// Metadata: format "mmfree-ternary", version "1", config (YAML), content_hash over config and all tensors.
/// `before_tensor` is called before each tensor is written. `check` is called with the temporary path of the complete
/// file before it is renamed to `path`. If one of them throws, an older file at `path` is unchanged.
/// @throws CreateError, IoError, what the callbacks throw
void write_ternary_file(const std::string& path, const Model& model, EmbeddingStore embedding,
                        const std::function<void()>& before_tensor = {},
                        const std::function<void(const std::string& written)>& check = {});

/// Reads a file of write_ternary_file. @throws MissingError, IoError, DataError (damaged, a code outside {0, 1, 2}, a
/// value that is not finite, a missing tensor)
Model read_ternary_file(const std::string& path);

/// The same model with its ternary matrices and its embedding table where they lie in the mapped file: it starts at
/// once, and processes share the pages. Its `params` have no embedding table. For inference on the CPU; the file must
/// stay as it is while the model is used (see MappedFile). @throws as read_ternary_file
Model map_ternary_file(const std::string& path);

/// Checks format, version and hash of such a file. @throws MissingError, IoError, DataError
void verify_ternary_file(const std::string& path);

/// An embedding table [V, D] f32 after an export with this store: rounded, in f32.
Tensor rounded_embedding(const Tensor& table, EmbeddingStore embedding);

/// Writes the file, reads it again and checks it before it gets its name: its embedding must be the rounded embedding
/// of the model, and with the same embedding both must give the same logits for 256 tokens, to the bit. `before_tensor`
/// as in write_ternary_file. @throws Error if the check fails; then an older file at `path` is unchanged
void export_ternary(const std::string& path, const Model& model, EmbeddingStore embedding,
                    const std::function<void()>& before_tensor = {});

}  // namespace mmfree
