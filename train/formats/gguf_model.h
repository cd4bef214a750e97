#pragma once
#include <functional>
#include <optional>
#include <string>

#include "train/formats/gguf.h"
#include "train/inference/model.h"

/// Models as GGUF files. What each architecture's file holds is in train/formats/GGUF.md.
namespace mmfree {

/// How an export stores matrices. Norms and lower bounds are F32 always.
struct GgufOptions {
  GgmlType ternary = GgmlType::tq2_0;  ///< of ternary matrices
  /// Of the embedding and all other matrices; nullopt: BF16 where the product rounds the matrix to bf16, else F32.
  std::optional<GgmlType> other;
};

/// What an export consists of.
struct GgufReport {
  std::string architecture;
  int64_t tensors = 0;
  int64_t ternary_values = 0, ternary_bytes = 0;  ///< of the ternary matrices
  std::string fallback;      ///< which matrices have another type than asked for, and why; or empty
  std::string no_tokenizer;  ///< why the file holds no tokenizer; empty: it holds one
  double difference = 0;     ///< ‖logits of the file − the model's‖ / ‖the model's‖, 256 tokens
  double bound = 0;          ///< what `difference` may be at most
};

/// The architecture that computes the model: "llama" (attention), "bitnet" (attention with sub-norms) or "hgrn_bit"
/// (MLGRU, mmfree's own). @throws UsageError starting with `where` and naming the key that llama.cpp's graph cannot
/// express
std::string gguf_architecture(const ModelConfig& config, const std::string& where);

/// Writes the model to `path`, reads the file again and checks it before it gets its name: the same ternary codes,
/// scales and other values within the rounding of their type, the size that follows from bits per weight, and logits
/// within a bound: with ρ = 2^-11 (F16 and its scales; BF16 2^-8, Q8_0 2^-7, F32 0) for each tensor, Σ ρ + 4·d, where d
/// is the difference that the model shows if each scale, and each value that is not ternary, is off by ρ of itself.
/// `before_tensor` is called before each tensor is written.
/// @throws UsageError as gguf_architecture, DataError for a value that its type cannot hold, Error if the check fails
/// (an older file at `path` is then unchanged), CreateError, IoError, what the callback throws
GgufReport export_gguf(const std::string& path, const Model& model, const GgufOptions& options = {},
                       const std::function<void()>& before_tensor = {});

}  // namespace mmfree
