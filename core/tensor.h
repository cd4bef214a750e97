#pragma once
#include <memory>
#include <string>

#include "core/arena.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace mmfree {

/// A contiguous, row-major array on one device. Copies of a Tensor share its storage. There are two views: `slice`, a
/// range of dimension 0, and `reshape`. Gradients are not part of it (see autograd/var.h).
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised memory from the current arena (see ArenaScope).
  Tensor(Shape shape, DType dtype, Device device = Device::cpu);
  static Tensor zeros(Shape shape, DType dtype, Device device = Device::cpu);
  /// Copies `values` into a new tensor of dtype T.
  template <class T>
  static Tensor from(Shape shape, const T* values);

  /// A tensor over host memory of somebody else, which `keeper` keeps: it can only be read.
  static Tensor borrowed(Shape shape, DType dtype, const void* data, std::shared_ptr<const void> keeper);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->arena->device() : Device::cpu; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t size() const { return shape_.size(); }
  int64_t bytes() const { return size() * size_of(dtype_); }
  /// Elements of the innermost dimension; 1 for rank 0.
  int64_t cols() const { return shape_.rank() ? shape_[-1] : 1; }
  /// Product of all dimensions but the innermost.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < shape_.rank(); ++i) n *= shape_[i];
    return n;
  }

  /// Same storage, other shape of the same size. @throws ShapeError
  Tensor reshape(Shape shape) const;
  /// Same storage, elements [begin, end) of dimension 0. @throws ShapeError
  Tensor slice(int64_t begin, int64_t end) const;
  /// A copy with storage of its own, from the current arena.
  Tensor clone() const { return copied(device()); }
  /// The tensor itself if it is on `device`, else a copy there.
  Tensor to(Device device) const { return device == this->device() ? *this : copied(device); }
  /// Copies the elements of `from`: same shape and dtype, any device. @throws ShapeError, DTypeError
  void copy_from(const Tensor& from);

  /// Typed read access. @throws DTypeError if T is not the tensor's dtype.
  template <class T>
  const T* data() const {
    require(dtype_of<T>());
    return reinterpret_cast<const T*>(raw());
  }
  /// Typed write access; counts as a modification for `version`. @throws DTypeError
  template <class T>
  T* mut() {
    require(dtype_of<T>());
    return reinterpret_cast<T*>(raw_mut());
  }
  const char* raw() const { return storage_ ? static_cast<const char*>(storage_->data) + offset_ : nullptr; }
  /// @throws Error if the memory is borrowed
  char* raw_mut() {
    if (!storage_) return nullptr;
    MMFREE_CHECK(Error, !storage_->keeper, "tensor: ", describe(), " lies in borrowed memory and cannot be changed");
    ++storage_->version;
    return static_cast<char*>(storage_->data) + offset_;
  }
  void fill_zero();

  /// Number of modifications of the storage so far: lets autograd detect in-place changes of saved tensors.
  uint64_t version() const { return storage_ ? storage_->version : 0; }
  /// True if no other Tensor shares the storage.
  bool unique() const { return storage_.use_count() == 1; }
  /// "f32 [2, 3] cpu"
  std::string describe() const;

 private:
  struct Storage {
    void* data = nullptr;
    std::shared_ptr<Arena> arena;
    uint64_t version = 0;
    std::shared_ptr<const void> keeper;  ///< of borrowed memory
    ~Storage() {
      if (data && !keeper) arena->release(data);
    }
  };
  Tensor copied(Device device) const;
  void require(DType t) const {
    MMFREE_CHECK(DTypeError, t == dtype_, "tensor: asked for ", name_of(t), " data of a ", describe(), " tensor");
  }
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // bytes
  Shape shape_;
  DType dtype_ = DType::f32;
};

template <class T>
Tensor Tensor::from(Shape shape, const T* values) {
  Tensor t(shape, dtype_of<T>());
  if (t.size()) std::memcpy(t.mut<T>(), values, size_t(t.bytes()));
  return t;
}

}  // namespace mmfree
