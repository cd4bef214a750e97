#pragma once
#include <map>
#include <string>
#include <vector>

#include "autograd/var.h"
#include "core/ranks/share.h"

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

/// How the ranks of a run divide parameters.
struct Division {
  Share share = {};
  std::vector<bool> read = {};  ///< of each parameter: forward passes read its values, so every rank has them
};

/// All parameters of a model in one flat buffer, and their gradients in another (f32; f64 in tests), on one device.
/// Each parameter starts on a block of kParamBlock elements; padding is zero. The layout is in no file: files use
/// names.
///
/// A divided store has the same layout, of which `values` holds this rank's piece. Parameters that forward passes read
/// are there once more, in full; the value of any other is a shape without memory.
class ParamStore {
 public:
  ParamStore(std::vector<ParamSpec> specs, DType dtype, Device device = Device::cpu, Division division = {});
  /// Fills every parameter as its Init says, with random numbers that depend on (seed, name, element index) alone.
  void initialise(uint64_t seed);

  const std::vector<ParamSpec>& specs() const { return specs_; }
  DType dtype() const { return values_.dtype(); }
  Device device() const { return values_.device(); }
  const Share& share() const { return division_.share; }
  bool has(const std::string& name) const { return index_.count(name) != 0; }
  /// @throws Error naming an unknown parameter
  const Var& operator[](const std::string& name) const;

  int64_t size() const { return size_; }  ///< P, elements of a flat buffer of all parameters
  Tensor& values() { return values_; }    ///< [P], or this rank's piece
  const Tensor& values() const { return values_; }
  /// [P], or with divided gradients this rank's piece; allocated by the first begin_gradients.
  Tensor& grads() { return grads_; }
  /// The elements of parameter i in a flat buffer of size P, in its shape. @throws ShapeError for another size
  Tensor view(const Tensor& flat, size_t i) const;
  /// Element of a flat buffer where parameter i starts.
  int64_t offset(size_t i) const { return offsets_[i]; }
  /// @throws Error naming an unknown parameter
  size_t index(const std::string& name) const;
  /// The same of a parameter of this store. @throws Error for another Var
  size_t index(const Var& parameter) const;

  /// Elements [begin, end) of parameter i.
  struct Part {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };
  /// The part of parameter i that lies in `values`.
  Part own(size_t i) const;
  /// These elements, in a buffer like `values`.
  Tensor own_part(const Tensor& piece, size_t i) const;
  /// Whether parameter i is there in full besides.
  bool is_read(size_t i) const { return share().group && division_.read[i]; }
  /// Sets what the store holds of parameter i. `value`: in its shape, of any device.
  void assign(size_t i, const Tensor& value);
  /// Gives all ranks the owners' values of the parameters that forward passes read. Collective if the store is divided.
  void share_values();
  /// Of a divided store: puts those in part i of this rank's piece where all read them, and gives what the ranks then
  /// have to gather.
  Group::Gather offer_values(size_t part);

  /// Starts a step: the next backward pass overwrites the gradients, later ones add to them.
  void begin_gradients();
  /// Sets gradients to zero that no backward pass wrote: of all parameters, or of those from number `first` on.
  void finish_gradients(size_t first = 0);
  /// From now on `grads` of a divided store holds this rank's piece alone, and each backward pass gives gradients of
  /// its own.
  void divide_gradients();
  bool divides_gradients() const { return gradients_divided_; }
  /// With divided gradients: those of a backward pass as a flat buffer [P], which the store then forgets.
  Tensor take_gradients();

 private:
  Tensor value_of(size_t i, const std::vector<int64_t>& places) const;
  std::vector<int64_t> list_read();
  Division division_;
  bool gradients_divided_ = false;
  int64_t size_ = 0;
  std::vector<ParamSpec> specs_;
  std::vector<int64_t> offsets_;
  std::vector<Var> vars_;
  std::map<std::string, size_t> index_;
  Tensor values_, grads_;
  Tensor read_;                     ///< [n]: the blocks that all ranks read, one behind the other
  std::vector<Ranges> read_parts_;  ///< of read_: what is in part i of each rank's piece
  Tensor read_blocks_;              ///< [n / kParamBlock] i32: where they are in this rank's piece, if they are there
  Tensor places_;                   ///< the same size: 0, 1, 2, …
};

}  // namespace mmfree
