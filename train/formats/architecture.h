#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

/// Foreign architectures: how each names and lays out the tensors that layers/ declares, as one table.
namespace mmfree {

/// How the foreign layout stores one of our tensors. In names `*` stands for the number of the layer.
struct TensorMap {
  std::string ours;
  /// One name: the tensor is renamed. Several: our tensor consists of theirs, equal parts stacked along the rows (they
  /// split a matrix that is fused in ours).
  std::vector<std::string> theirs;
};

struct Architecture {
  std::string model_type;          ///< of config.json
  std::string class_name;          ///< for `architectures` of config.json
  std::vector<TensorMap> tensors;  ///< a tensor that is not listed has our name and layout
};

/// The published MatMul-free LM; and mmfree's own architecture, for models that no other class computes. Both use our
/// names.
const Architecture& hgrn_bit_architecture();
const Architecture& own_architecture();

/// Attention and a gated mixer as the classes of `model_type` name them: "llama", "mistral" or "bitnet". They hold the
/// gate and the up projection apart; with `fused_gate` ours is one matrix of both. The rows of queries and keys have
/// one order in both: rotary pairs are half a head apart.
const Architecture& llama_architecture(const std::string& model_type, bool fused_gate);

using NamedShapes = std::vector<std::pair<std::string, Shape>>;

/// Names and shapes of the foreign tensors that store `ours`, in order. @throws DataError if a matrix cannot be split
/// evenly
NamedShapes foreign_tensors(const Architecture& architecture, const NamedShapes& ours);

/// Our tensor `name` from theirs; `read` gives a foreign tensor by name.
Tensor from_foreign(const Architecture& architecture, const std::string& name,
                    const std::function<Tensor(const std::string&)>& read);

/// Their tensor `name` from ours; `read` gives one of ours by name.
Tensor to_foreign(const Architecture& architecture, const std::string& name,
                  const std::function<Tensor(const std::string&)>& read);

}  // namespace mmfree
