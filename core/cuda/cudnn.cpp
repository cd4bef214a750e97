#include "core/cuda/cudnn.h"

#include <dlfcn.h>

#include "core/cuda/library.h"

namespace mmfree::cuda {
namespace {

Cudnn open_cudnn() {
  Cudnn c{};
  const std::string name = concat("libcudnn.so.", CUDNN_MAJOR);
  void* library = open_library(name);
  if (!library) {
    c.problem =
        concat(name, " was not found; install cuDNN ", CUDNN_MAJOR, ", for example `pip install nvidia-cudnn-cu",
               CUDART_VERSION / 1000, "`, or name its folder in LD_LIBRARY_PATH");
    return c;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function) c.problem = concat("this libcudnn has no ", name, "; another version is needed");
  };
  find(c.version, "cudnnGetVersion");
  find(c.create, "cudnnCreate");
  find(c.set_stream, "cudnnSetStream");
  find(c.status_string, "cudnnGetErrorString");
  find(c.last_error, "cudnnGetLastErrorString");
  find(c.create_descriptor, "cudnnBackendCreateDescriptor");
  find(c.destroy_descriptor, "cudnnBackendDestroyDescriptor");
  find(c.set_attribute, "cudnnBackendSetAttribute");
  find(c.get_attribute, "cudnnBackendGetAttribute");
  find(c.finalize, "cudnnBackendFinalize");
  find(c.execute, "cudnnBackendExecute");
  return c;
}

}  // namespace

const Cudnn& cudnn_library() {
  static const Cudnn library = open_cudnn();
  return library;
}

void check_cudnn(cudnnStatus_t status, const std::string& what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char reason[512] = {};
  cudnn_library().last_error(reason, sizeof reason - 1);
  for (char& c : reason)
    if (c == '\n') c = ' ';
  throw DeviceError(concat("cuDNN: ", what, ": ", cudnn_library().status_string(status), ": ", reason));
}

Descriptor::Descriptor(cudnnBackendDescriptorType_t type, const char* name) : name_(name) {
  check_cudnn(cudnn_library().create_descriptor(type, &raw_), concat("no descriptor of ", name));
}
Descriptor::~Descriptor() {
  if (raw_) cudnn_library().destroy_descriptor(raw_);
}

std::string Descriptor::text(const char* verb, cudnnBackendAttributeName_t attribute) const {
  return concat(verb, " attribute ", int(attribute), " of ", name_);
}
void Descriptor::set_raw(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, int64_t count,
                         const void* values) {
  check_cudnn(cudnn_library().set_attribute(raw_, attribute, type, count, values), text("setting", attribute));
}
int64_t Descriptor::get_raw(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, int64_t count,
                            void* values) const {
  int64_t have = 0;
  check_cudnn(cudnn_library().get_attribute(raw_, attribute, type, count, &have, values), text("reading", attribute));
  return have;
}
cudnnBackendDescriptor_t Descriptor::finalize() {
  check_cudnn(cudnn_library().finalize(raw_), concat("finishing ", name_));
  return raw_;
}

OperationGraph::Id OperationGraph::add_tensor(int64_t uid, const TensorShape& shape, cudnnDataType_t type,
                                              bool is_virtual, bool by_value) {
  const int64_t alignment = 16;
  tensors_.push_back(add(CUDNN_BACKEND_TENSOR_DESCRIPTOR, "a tensor")
                         .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid)
                         .set(CUDNN_ATTR_TENSOR_DATA_TYPE, type)
                         .set(CUDNN_ATTR_TENSOR_DIMENSIONS, shape.dims.data(), shape.dims.size())
                         .set(CUDNN_ATTR_TENSOR_STRIDES, shape.strides.data(), shape.strides.size())
                         .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, alignment)
                         .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual)
                         .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value)
                         .finalize());
  return tensors_.size() - 1;
}
OperationGraph::Id OperationGraph::tensor(int64_t uid, const TensorShape& shape, cudnnDataType_t type) {
  return add_tensor(uid, shape, type, false, false);
}
OperationGraph::Id OperationGraph::scalar(int64_t uid, cudnnDataType_t type) {
  return add_tensor(uid, {{1, 1, 1, 1}, {1, 1, 1, 1}}, type, false, true);
}
OperationGraph::Id OperationGraph::virtual_tensor(const TensorShape& shape, cudnnDataType_t type) {
  return add_tensor(next_virtual_++, shape, type, true, false);
}

void OperationGraph::matmul(Id a, Id b, Id c) {
  const auto product =
      add(CUDNN_BACKEND_MATMUL_DESCRIPTOR, "a product").set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT).finalize();
  finish_operation(add(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, "the operation of a product")
                       .set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensors_[a])
                       .set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensors_[b])
                       .set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensors_[c])
                       .set(CUDNN_ATTR_OPERATION_MATMUL_DESC, product));
}
void OperationGraph::reduce(cudnnReduceTensorOp_t mode, Id x, Id y) {
  const auto reduction = add(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, "a reduction")
                             .set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT)
                             .set(CUDNN_ATTR_REDUCTION_OPERATOR, mode)
                             .finalize();
  finish_operation(add(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, "the operation of a reduction")
                       .set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensors_[x])
                       .set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensors_[y])
                       .set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction));
}
void OperationGraph::reshape(Id x, Id y) {
  finish_operation(add(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, "the operation of a reshape")
                       .set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensors_[x])
                       .set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensors_[y]));
}

Descriptor& OperationGraph::pointwise(cudnnPointwiseMode_t mode, const char* name, Id x, Id y, cudnnDataType_t compute,
                                      int64_t axis) {
  Descriptor& kind = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR, name)
                         .set(CUDNN_ATTR_POINTWISE_MODE, mode)
                         .set(CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
  if (axis >= 0) kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
  const auto finished = kind.finalize();
  return add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, name)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, finished)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensors_[x])
      .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensors_[y]);
}
void OperationGraph::unary(cudnnPointwiseMode_t mode, Id x, Id y) {
  finish_operation(pointwise(mode, "a function of a tensor", x, y, CUDNN_DATA_FLOAT, -1));
}
void OperationGraph::binary(cudnnPointwiseMode_t mode, Id x, Id b, Id y, cudnnDataType_t compute) {
  finish_operation(pointwise(mode, "a function of two tensors", x, y, compute, -1)
                       .set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensors_[b]));
}
void OperationGraph::select(Id x, Id b, Id t, Id y) {
  finish_operation(pointwise(CUDNN_POINTWISE_BINARY_SELECT, "a selection", x, y, CUDNN_DATA_FLOAT, -1)
                       .set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensors_[b])
                       .set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensors_[t]));
}
void OperationGraph::index(int64_t axis, Id x, Id y) {
  finish_operation(pointwise(CUDNN_POINTWISE_GEN_INDEX, "an index", x, y, CUDNN_DATA_FLOAT, axis));
}

Descriptor OperationGraph::finish(cudnnHandle_t handle) const {
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "the graph of operations");
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations_.data(), operations_.size());
  if (handle) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  graph.finalize();
  return graph;
}

}  // namespace mmfree::cuda
