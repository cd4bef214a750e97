#include "autograd/parameter.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "core/ops/adamw.h"
#include "core/ops/blocks.h"
#include "core/parallel.h"
#include "core/rng.h"

namespace mmfree {

const char* name_of(ParamRole role) {
  switch (role) {
    case ParamRole::matrix:
      return "matrix";
    case ParamRole::embedding:
      return "embedding";
    case ParamRole::head:
      return "head";
    case ParamRole::vector:
      return "vector";
  }
  throw Error("parameters: unknown role");
}

namespace {

/// Memory that nobody may touch: what is there has a shape and an address, and a kernel that reads it fails at once.
std::shared_ptr<Arena> nowhere(Device device) {
  const auto obtain = [](size_t bytes) {
    void* p = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
  };
  return std::make_shared<Arena>(Arena::Source{device, obtain, [](void*) {}});
}

int64_t padded(int64_t size) { return (size + kParamBlock - 1) / kParamBlock * kParamBlock; }

}  // namespace

ParamStore::ParamStore(std::vector<ParamSpec> specs, DType dtype, Device device, Division division)
    : division_(std::move(division)), specs_(std::move(specs)) {
  for (const ParamSpec& s : specs_) {
    offsets_.push_back(size_);
    size_ += padded(s.shape.size());
  }
  values_ = Tensor::zeros({share().count(size_)}, dtype, device);
  const std::vector<int64_t> places = list_read();
  const ArenaScope no_memory(share().group ? nowhere(device) : Arena::current(device));
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ParamSpec& s = specs_[i];
    MMFREE_CHECK(Error, index_.emplace(s.name, i).second, "parameters: '", s.name, "' is declared twice");
    vars_.emplace_back(QuantTensor(value_of(i, places)),
                       std::make_shared<GradSlot>(GradSlot{s.shape, dtype, device, {}, true, false}));
  }
}

/// Lays out read_; gives the place of each parameter in it.
std::vector<int64_t> ParamStore::list_read() {
  if (!share().group) return {};
  std::vector<int64_t> places, blocks;  // where the blocks begin
  for (size_t i = 0; i < specs_.size(); ++i) {
    places.push_back(int64_t(blocks.size()) * kParamBlock);
    const int64_t end = division_.read[i] ? offsets_[i] + padded(specs_[i].shape.size()) : offsets_[i];
    for (int64_t at = offsets_[i]; at < end; at += kParamBlock) blocks.push_back(at);
  }
  const auto place_of = [&](int64_t at) {
    return (std::lower_bound(blocks.begin(), blocks.end(), at) - blocks.begin()) * kParamBlock;
  };
  for (const Ranges& part : share().parts) {
    read_parts_.emplace_back();
    for (const Range& range : part) read_parts_.back().push_back({place_of(range.begin), place_of(range.end)});
  }
  const auto count = int64_t(blocks.size());
  read_ = share().zeros({count * kParamBlock}, dtype(), device());
  Tensor mine({count}, DType::i32), numbers({count}, DType::i32);
  for (int64_t k = 0; k < count; ++k) {
    mine.mut<int32_t>()[k] = int32_t((blocks[size_t(k)] - share().begin()) / kParamBlock);
    numbers.mut<int32_t>()[k] = int32_t(k);
  }
  read_blocks_ = mine.to(device());
  places_ = numbers.to(device());
  return places;
}

Tensor ParamStore::value_of(size_t i, const std::vector<int64_t>& places) const {
  const Shape& shape = specs_[i].shape;
  if (is_read(i)) return read_.slice(places[i], places[i] + shape.size()).reshape(shape);
  if (own(i).size() == shape.size()) return own_part(values_, i).reshape(shape);
  return Tensor(shape, dtype(), device());
}

ParamStore::Part ParamStore::own(size_t i) const {
  const int64_t size = specs_[i].shape.size(), begin = share().begin() - offsets_[i],
                end = share().end(size_) - offsets_[i];
  const int64_t first = std::clamp<int64_t>(begin, 0, size);
  return {first, std::clamp(end, first, size)};
}

Tensor ParamStore::own_part(const Tensor& piece, size_t i) const {
  MMFREE_CHECK(ShapeError, piece.size() == values_.size(), "parameters: a piece must have ", values_.size(),
               " elements, got ", piece.size());
  const Part part = own(i);
  const int64_t at = part.size() > 0 ? offsets_[i] + part.begin - share().begin() : 0;
  return piece.slice(at, at + part.size());
}

void ParamStore::assign(size_t i, const Tensor& value) {
  MMFREE_CHECK(ShapeError, value.shape() == specs_[i].shape, "parameters: '", specs_[i].name, "' is ", specs_[i].shape,
               ", got ", value.shape());
  if (is_read(i)) Tensor(vars_[i].value()).copy_from(value);
  const Part part = own(i);
  if (part.size() > 0) own_part(values_, i).copy_from(value.reshape({value.size()}).slice(part.begin, part.end));
}

Group::Gather ParamStore::offer_values(size_t part) {
  const Range mine = read_parts_[part][size_t(share().group->rank())];
  const int64_t begin = mine.begin / kParamBlock, end = mine.end / kParamBlock;
  copy_blocks(values_, read_blocks_.slice(begin, end), read_, places_.slice(begin, end));
  return {read_, read_parts_[part]};
}

void ParamStore::share_values() {
  for (size_t i = 0; share().group && i < share().part_count(); ++i) share().group->all_gather({offer_values(i)});
}

void ParamStore::initialise(uint64_t seed) {
  dispatch_float(dtype(), "initialise", [&]<class T>() {
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (!is_read(i) && own(i).size() == 0) continue;
      const ParamSpec& s = specs_[i];
      const RandomStream random(seed, 0, s.name);
      Tensor host(s.shape, dtype());
      T* out = host.mut<T>();
      parallel_for(s.shape.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const double x = s.init.kind == Init::constant  ? s.init.scale
                           : s.init.kind == Init::uniform ? (2 * random.uniform(uint64_t(k)) - 1) * s.init.scale
                                                          : random.normal(uint64_t(k)) * s.init.scale;
          out[k] = T(float(x));
        }
      });
      assign(i, host);
    }
  });
}

size_t ParamStore::index(const std::string& name) const {
  const auto it = index_.find(name);
  MMFREE_CHECK(Error, it != index_.end(), "parameters: there is no '", name, "'");
  return it->second;
}

size_t ParamStore::index(const Var& parameter) const {
  const auto is_it = [&](const Var& v) { return v.slot() == parameter.slot(); };
  const auto it = std::find_if(vars_.begin(), vars_.end(), is_it);
  MMFREE_CHECK(Error, it != vars_.end(), "parameters: a value that is none of them");
  return size_t(it - vars_.begin());
}

const Var& ParamStore::operator[](const std::string& name) const { return vars_[index(name)]; }

Tensor ParamStore::view(const Tensor& flat, size_t i) const {
  MMFREE_CHECK(ShapeError, flat.size() == size_, "parameters: a flat buffer must have ", size_, " elements, got ",
               flat.size());
  return flat.slice(offsets_[i], offsets_[i] + specs_[i].shape.size()).reshape(specs_[i].shape);
}

void ParamStore::begin_gradients() {
  if (!grads_.defined()) {
    grads_ = Tensor::zeros({gradients_divided_ ? values_.size() : size_}, dtype(), device());
    for (size_t i = 0; i < vars_.size() && !gradients_divided_; ++i) vars_[i].slot()->grad = view(grads_, i);
  }
  for (const Var& v : vars_) v.slot()->written = false;
}

void ParamStore::divide_gradients() {
  if (std::exchange(gradients_divided_, true)) return;
  grads_ = Tensor();
  for (const Var& v : vars_) v.slot()->grad = Tensor();
}

void ParamStore::finish_gradients(size_t first) {
  for (size_t i = first; i < vars_.size(); ++i) {
    GradSlot& slot = *vars_[i].slot();
    if (slot.written || !slot.grad.defined()) continue;
    slot.grad.fill_zero();
    slot.written = true;
  }
}

Tensor ParamStore::take_gradients() {
  Tensor flat = Tensor::zeros({size_}, dtype(), device());
  for (size_t i = 0; i < vars_.size(); ++i) {
    GradSlot& slot = *vars_[i].slot();
    if (slot.written) view(flat, i).copy_from(slot.grad);
    slot.grad = Tensor();
  }
  return flat;
}

}  // namespace mmfree
