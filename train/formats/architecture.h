#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "layers/model_config.h"

/// How foreign architectures name and lay out the tensors of a model that we name in layers/: one small table each.
namespace mmfree {

/// Which heads a matrix' rows belong to, where the foreign layout orders the rows of a head in another way.
enum class HeadRows { none, heads, kv_heads };

/// How one of our tensors is held. In names `*` stands for the number of the layer.
struct TensorMap {
  std::string ours;
  /// One name: the tensor is renamed. Several: ours is theirs one below the other, in equal parts (a fused matrix is
  /// split).
  std::vector<std::string> theirs;
  /// Not none: row 2i + j of a head of width w is row j·w/2 + i in theirs (rotary pairs are side by side in ours and
  /// half a head apart in theirs).
  HeadRows permute = HeadRows::none;
};

struct Architecture {
  std::string model_type;          ///< of config.json
  std::string class_name;          ///< for `architectures` of config.json
  std::vector<TensorMap> tensors;  ///< a tensor that is not listed has our name and layout
};

/// The published MatMul-free LM, and models that it cannot express: our names are theirs.
const Architecture& hgrn_bit_architecture();
const Architecture& own_architecture();

using NamedShapes = std::vector<std::pair<std::string, Shape>>;

/// Their names and shapes of the tensors that hold `ours`, in order. @throws DataError if a matrix cannot be split
/// evenly
NamedShapes foreign_tensors(const Architecture& architecture, const NamedShapes& ours);

/// Our tensor `name` from theirs; `read` gives a foreign tensor by name.
Tensor from_foreign(const Architecture& architecture, const ModelConfig& config, const std::string& name,
                    const std::function<Tensor(const std::string&)>& read);

/// Their tensor `name` from ours; `read` gives one of ours by name.
Tensor to_foreign(const Architecture& architecture, const ModelConfig& config, const std::string& name,
                  const std::function<Tensor(const std::string&)>& read);

}  // namespace mmfree
