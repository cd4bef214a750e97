#include "autograd/parameter.h"

#include "core/ops/adamw.h"
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

ParamStore::ParamStore(std::vector<ParamSpec> specs, DType dtype, Device device) : specs_(std::move(specs)) {
  int64_t size = 0;
  for (const ParamSpec& s : specs_) {
    offsets_.push_back(size);
    size += (s.shape.size() + kParamBlock - 1) / kParamBlock * kParamBlock;
  }
  values_ = Tensor::zeros({size}, dtype, device);
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ParamSpec& s = specs_[i];
    MMFREE_CHECK(Error, index_.emplace(s.name, i).second, "parameters: '", s.name, "' is declared twice");
    vars_.emplace_back(QuantTensor(view(values_, i)),
                       std::make_shared<GradSlot>(GradSlot{s.shape, dtype, device, {}, true, false}));
  }
}

void ParamStore::initialise(uint64_t seed) {
  dispatch_float(dtype(), "initialise", [&]<class T>() {
    for (size_t i = 0; i < specs_.size(); ++i) {
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
      view(values_, i).copy_from(host);
    }
  });
}

size_t ParamStore::index(const std::string& name) const {
  const auto it = index_.find(name);
  MMFREE_CHECK(Error, it != index_.end(), "parameters: there is no '", name, "'");
  return it->second;
}

const Var& ParamStore::operator[](const std::string& name) const { return vars_[index(name)]; }

Tensor ParamStore::view(const Tensor& flat, size_t i) const {
  MMFREE_CHECK(ShapeError, flat.size() == values_.size(), "parameters: a flat buffer must have ", values_.size(),
               " elements, got ", flat.size());
  return flat.slice(offsets_[i], offsets_[i] + specs_[i].shape.size()).reshape(specs_[i].shape);
}

void ParamStore::begin_gradients() {
  if (!grads_.defined()) {
    grads_ = Tensor::zeros({values_.size()}, values_.dtype(), values_.device());
    for (size_t i = 0; i < vars_.size(); ++i) vars_[i].slot()->grad = view(grads_, i);
  }
  for (const Var& v : vars_) v.slot()->written = false;
}

void ParamStore::finish_gradients() {
  for (const Var& v : vars_)
    if (!v.slot()->written) {
      Tensor grad = v.slot()->grad;
      grad.fill_zero();
    }
}

}  // namespace mmfree
