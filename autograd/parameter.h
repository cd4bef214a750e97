#pragma once
#include <map>
#include <string>
#include <vector>

#include "autograd/var.h"

namespace mmfree {

/// Initial values of a parameter: the constant `scale`, U(-scale, scale), or N(0, scale²).
struct Init {
  enum Kind { constant, uniform, normal } kind = constant;
  double scale = 0;
};

/// The use of a parameter in the model. It decides how the parameter is optimized.
enum class ParamRole {
  matrix,     ///< of a projection
  embedding,  ///< table of token vectors
  head,       ///< matrix of the output projection
  vector,     ///< norm weights, lower bounds
};

const char* name_of(ParamRole role);

/// Name, shape, initial values and role of one parameter. The name identifies it in files and in random-number keys.
struct ParamSpec {
  std::string name;
  Shape shape;
  Init init;
  ParamRole role = ParamRole::vector;
};

/// All parameters of a model in one flat buffer, and their gradients in another (f32; f64 in tests), on one device.
/// Each parameter starts on a block of kParamBlock elements; padding is zero. The layout is in no file: files use
/// names.
class ParamStore {
 public:
  ParamStore(std::vector<ParamSpec> specs, DType dtype, Device device = Device::cpu);
  /// Fills every parameter as its Init says, with random numbers that depend on (seed, name, element index) alone.
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
  /// The elements of parameter i in a flat buffer of size P, in its shape. @throws ShapeError for another size
  Tensor view(const Tensor& flat, size_t i) const;
  /// Element of a flat buffer where parameter i starts.
  int64_t offset(size_t i) const { return offsets_[i]; }
  /// @throws Error naming an unknown parameter
  size_t index(const std::string& name) const;

  /// Starts a step: the next backward pass overwrites the gradients, later ones add to them.
  void begin_gradients();
  /// Sets gradients to zero that no backward pass wrote.
  void finish_gradients();

 private:
  std::vector<ParamSpec> specs_;
  std::vector<int64_t> offsets_;
  std::vector<Var> vars_;
  std::map<std::string, size_t> index_;
  Tensor values_, grads_;
};

}  // namespace mmfree
