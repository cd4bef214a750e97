#include "core/tensor.h"

namespace mmfree {

Tensor::Tensor(Shape shape, DType dtype, Device device)
    : storage_(std::make_shared<Storage>()), shape_(shape), dtype_(dtype) {
  storage_->arena = Arena::current(device);
  storage_->data = storage_->arena->allocate(size_t(bytes()));
}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  t.fill_zero();
  return t;
}

Tensor Tensor::borrowed(Shape shape, DType dtype, const void* data, std::shared_ptr<const void> keeper) {
  MMFREE_CHECK(Error, data && keeper, "tensor: borrowed memory needs an address and a keeper");
  Tensor t;
  t.storage_ = std::make_shared<Storage>();
  t.storage_->arena = Arena::current(Device::cpu);
  t.storage_->data = const_cast<void*>(data);
  t.storage_->keeper = std::move(keeper);
  t.shape_ = shape, t.dtype_ = dtype;
  return t;
}

Tensor Tensor::reshape(Shape shape) const {
  MMFREE_CHECK(ShapeError, shape.size() == size(), "reshape: ", shape, " has ", shape.size(), " elements, the tensor ",
               describe(), " has ", size());
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  MMFREE_CHECK(ShapeError, shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0], "slice: [", begin, ", ",
               end, ") of ", describe());
  Tensor t = *this;
  const int64_t inner = shape_[0] ? size() / shape_[0] : 0;
  int64_t dims[Shape::kMaxRank] = {end - begin};
  for (int i = 1; i < shape_.rank(); ++i) dims[i] = shape_[i];
  t.shape_ = Shape(std::span(dims, size_t(shape_.rank())));
  t.offset_ += begin * inner * size_of(dtype_);
  return t;
}

Tensor Tensor::copied(Device device) const {
  if (!defined()) return {};
  Tensor t(shape_, dtype_, device);
  t.copy_from(*this);
  return t;
}

void Tensor::copy_from(const Tensor& from) {
  MMFREE_CHECK(ShapeError, shape_ == from.shape_, "copy: ", from.describe(), " does not fit ", describe());
  MMFREE_CHECK(DTypeError, dtype_ == from.dtype_, "copy: ", from.describe(), " does not fit ", describe());
  copy_bytes(raw_mut(), device(), from.raw(), from.device(), size_t(bytes()));
}

void Tensor::fill_zero() { zero_bytes(raw_mut(), device(), size_t(bytes())); }

std::string Tensor::describe() const {
  return defined() ? concat(name_of(dtype_), ' ', shape_, ' ', name_of(device())) : std::string("undefined tensor");
}

}  // namespace mmfree
