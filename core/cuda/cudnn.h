#pragma once
#include <cudnn_graph.h>

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/error.h"

/// cuDNN's backend interface: operations on tensors are put together to a graph, for which cuDNN has a plan or has
/// none. The library is not linked but opened when it is first wanted, and a program runs without it.
namespace mmfree::cuda {

/// The functions of cuDNN that are used.
struct Cudnn {
  decltype(&::cudnnGetVersion) version;
  decltype(&::cudnnCreate) create;
  decltype(&::cudnnSetStream) set_stream;
  decltype(&::cudnnGetErrorString) status_string;
  decltype(&::cudnnGetLastErrorString) last_error;
  decltype(&::cudnnBackendCreateDescriptor) create_descriptor;
  decltype(&::cudnnBackendDestroyDescriptor) destroy_descriptor;
  decltype(&::cudnnBackendSetAttribute) set_attribute;
  decltype(&::cudnnBackendGetAttribute) get_attribute;
  decltype(&::cudnnBackendFinalize) finalize;
  decltype(&::cudnnBackendExecute) execute;
  std::string problem;  ///< why the library could not be opened; empty if it could
};

/// Opens the library on the first call (core/cuda/library.h says where it is looked for).
const Cudnn& cudnn_library();

/// Throws DeviceError "cuDNN: WHAT: status: cuDNN's own reason" unless `status` is success.
void check_cudnn(cudnnStatus_t status, const std::string& what);

/// The attribute type by which cuDNN knows T. A void* is a descriptor.
template <class T>
constexpr cudnnBackendAttributeType_t attribute_type() {
  if constexpr (std::is_same_v<T, bool>) return CUDNN_TYPE_BOOLEAN;
  if constexpr (std::is_same_v<T, int64_t>) return CUDNN_TYPE_INT64;
  if constexpr (std::is_same_v<T, float>) return CUDNN_TYPE_FLOAT;
  if constexpr (std::is_same_v<T, cudnnHandle_t>) return CUDNN_TYPE_HANDLE;
  if constexpr (std::is_same_v<T, cudnnDataType_t>) return CUDNN_TYPE_DATA_TYPE;
  if constexpr (std::is_same_v<T, cudnnPointwiseMode_t>) return CUDNN_TYPE_POINTWISE_MODE;
  if constexpr (std::is_same_v<T, cudnnReduceTensorOp_t>) return CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
  if constexpr (std::is_same_v<T, cudnnBackendHeurMode_t>) return CUDNN_TYPE_HEUR_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendNumericalNote_t>) return CUDNN_TYPE_NUMERICAL_NOTE;
  if constexpr (std::is_same_v<T, cudnnBackendDescriptor_t>) return CUDNN_TYPE_BACKEND_DESCRIPTOR;
}

/// A descriptor of cuDNN. `name` is for messages.
class Descriptor {
 public:
  Descriptor(cudnnBackendDescriptorType_t type, const char* name);
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : name_(other.name_), raw_(std::exchange(other.raw_, nullptr)) {}
  Descriptor& operator=(Descriptor&&) = delete;

  /// @throws DeviceError
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t attribute, const T* values, size_t count) {
    set_raw(attribute, attribute_type<T>(), int64_t(count), values);
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t attribute, const T& value) {
    return set(attribute, &value, 1);
  }
  /// Addresses of tensors. @throws DeviceError
  Descriptor& set_addresses(cudnnBackendAttributeName_t attribute, void* const* addresses, size_t count) {
    set_raw(attribute, CUDNN_TYPE_VOID_PTR, int64_t(count), addresses);
    return *this;
  }
  /// The number of values that the attribute has; at most `count` of them go to `values`. @throws DeviceError
  template <class T>
  int64_t get(cudnnBackendAttributeName_t attribute, T* values, int64_t count) const {
    return get_raw(attribute, attribute_type<T>(), count, values);
  }
  /// @throws DeviceError
  cudnnBackendDescriptor_t finalize();
  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  void set_raw(cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t count, const void* values);
  int64_t get_raw(cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t count, void* values) const;
  std::string text(const char* verb, cudnnBackendAttributeName_t) const;
  const char* name_;
  cudnnBackendDescriptor_t raw_ = nullptr;
};

/// A graph of operations on tensors of four dimensions. Each function adds a tensor or an operation. Tensors are
/// virtual, parts of the computation that are in no memory, unless they have a number, by which execution gives their
/// address.
class OperationGraph {
 public:
  using Dims = std::array<int64_t, 4>;
  struct TensorShape {
    Dims dims, strides;
  };
  using Id = size_t;

  /// In memory, by number `uid` > 0.
  Id tensor(int64_t uid, const TensorShape&, cudnnDataType_t);
  /// A number in host memory, read at execution.
  Id scalar(int64_t uid, cudnnDataType_t);
  Id virtual_tensor(const TensorShape&, cudnnDataType_t);

  void matmul(Id a, Id b, Id c);
  void reduce(cudnnReduceTensorOp_t, Id x, Id y);
  void reshape(Id x, Id y);
  /// y = mode(x), mode(x, b) or, for BINARY_SELECT, t ? x : b. `compute`: the type in which it is computed.
  void unary(cudnnPointwiseMode_t, Id x, Id y);
  void binary(cudnnPointwiseMode_t, Id x, Id b, Id y, cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  void select(Id x, Id b, Id t, Id y);
  /// y = the index of each element along `axis`.
  void index(int64_t axis, Id x, Id y);

  /// The finished graph, for the GPU of `handle`. @throws DeviceError
  Descriptor finish(cudnnHandle_t handle) const;

 private:
  Descriptor& add(cudnnBackendDescriptorType_t type, const char* name) { return all_.emplace_back(type, name); }
  Id add_tensor(int64_t uid, const TensorShape&, cudnnDataType_t, bool is_virtual, bool by_value);
  Descriptor& pointwise(cudnnPointwiseMode_t, const char* name, Id x, Id y, cudnnDataType_t compute, int64_t axis);
  void finish_operation(Descriptor& operation) { operations_.push_back(operation.finalize()); }
  std::deque<Descriptor> all_;
  std::vector<cudnnBackendDescriptor_t> tensors_, operations_;
  int64_t next_virtual_ = 1000;  ///< numbers of virtual tensors
};

}  // namespace mmfree::cuda
