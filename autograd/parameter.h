#pragma once
#include <map>
#include <string>
#include <vector>

#include "autograd/var.h"

namespace mmfree {

/// How a parameter starts: a constant, U(-scale, scale), or N(0, scale²).
struct Init {
  enum Kind { constant, uniform, normal } kind = constant;
  double scale = 0;
};

/// What a parameter is for, which decides how it is optimized.
enum class ParamRole {
  matrix,     ///< of a projection
  embedding,  ///< table of token vectors
  head,       ///< matrix of the output projection
  vector,     ///< norm weights, lower bounds
};

const char* name_of(ParamRole role);

/// Name, shape and treatment of one parameter. The name is its identity in files and in random-number keys.
struct ParamSpec {
  std::string name;
  Shape shape;
  Init init;
  ParamRole role = ParamRole::vector;
};

/// All parameters of a model in one flat buffer and their gradients in another (f32; f64 in checks) on one device, each
/// parameter starting on a block of kParamBlock elements; padding is zero. The layout is never saved: files keep names.
class ParamStore {
 public:
  ParamStore(std::vector<ParamSpec> specs, DType dtype, Device device = Device::cpu);
  /// Fills every parameter from its Init: Philox keyed by (seed, name, element index).
  void initialise(uint64_t seed);

  const std::vector<ParamSpec>& specs() const { return specs_; }
  DType dtype() const { return values_.dtype(); }
  Device device() const { return values_.device(); }
  bool has(const std::string& name) const { return index_.count(name) != 0; }
  /// @throws Error naming an unknown parameter
  const Var& operator[](const std::string& name) const;

  Tensor& values() { return values_; }  ///< [P]
  const Tensor& values() const { return values_; }
  Tensor& grads() { return grads_; }  ///< [P]; allocated by the first begin_gradients
  /// The part of a flat buffer of size P that belongs to parameter i, in its shape.
  Tensor view(const Tensor& flat, size_t i) const;
  /// Where parameter i starts in a flat buffer, and its index by name. @throws Error naming an unknown parameter
  int64_t offset(size_t i) const { return offsets_[i]; }
  size_t index(const std::string& name) const;

  /// Forgets all gradients: the next backward pass overwrites, later ones accumulate.
  void begin_gradients();
  /// Sets the gradient of every parameter that no backward pass reached to zero.
  void finish_gradients();

 private:
  std::vector<ParamSpec> specs_;
  std::vector<int64_t> offsets_;
  std::vector<Var> vars_;
  std::map<std::string, size_t> index_;
  Tensor values_, grads_;
};

}  // namespace mmfree
