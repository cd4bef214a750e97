#include "train/inference/state_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "core/ops/elementwise.h"
#include "core/system/hash.h"
#include "train/config/config.h"
#include "train/formats/safetensors.h"

namespace mmfree {
namespace {

using Metadata = std::map<std::string, std::string>;

std::string hash_of(const Tensor& t) { return concat(t.shape(), ' ', hex16(hash64({t.raw(), size_t(t.bytes())}))); }

std::string hash_of(const BitLinear& p) {
  const WeightMatrix& w = *p.matrix;
  if (w.is_ternary()) {
    const TernaryTensor host = to_device(w.ternary, Device::cpu);
    return hash_of(host.codes) + hash_of(host.scale.to(Device::cpu));
  }
  // A device may store rounded values in f32 or in bf16.
  const Tensor host = w.plain.to(Device::cpu);
  const DType dtype = p.precision == Precision::bf16 ? DType::bf16 : DType::f32;
  if (host.dtype() == dtype) return hash_of(host);
  Tensor values(host.shape(), dtype);
  cast(host, values);
  return hash_of(values);
}

/// Over metadata and tensors, in the order of the file.
std::string content_hash(const Metadata& metadata, const std::vector<Tensor>& tensors) {
  std::string text;
  for (const auto& [key, value] : metadata)
    if (key != "content_hash") text += concat(key, '=', value, '\n');
  for (const Tensor& t : tensors) text += hash_of(t) + "\n";
  return hex16(hash64(text));
}

/// The whole number from 0 to `most` under a key.
int64_t number(const std::string& path, const Metadata& metadata, const std::string& key, int64_t most) {
  const std::string& text = metadata.at(key);
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  MMFREE_CHECK(DataError, error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= most, path,
               ": '", key, "' is ", quote(text), ", expected a whole number from 0 to ", most);
  return value;
}

/// Checks kind and version, and that no key is missing.
const Metadata& checked(const SafetensorsReader& file) {
  const Metadata& m = file.metadata();
  const auto format = m.find("format");
  MMFREE_CHECK(DataError, format != m.end() && format->second == "mmfree-state", file.path(),
               ": is no saved state; generate --prompt … --state FILE makes one");
  for (const char* key : {"version", "model", "position", "last", "content_hash"})
    MMFREE_CHECK(DataError, m.count(key), file.path(), ": has no '", key, "' in its metadata; make the state again");
  MMFREE_CHECK(VersionError, m.at("version") == "1", file.path(), ": has version ", quote(m.at("version")),
               " of saved states; this program reads version 1; make the state again");
  return m;
}

}  // namespace

/// Keys that have their defaults do not count: a key that is new leaves older states as they are.
std::string model_fingerprint(const Model& model) {
  RunConfig config;
  config.model = model.config;
  std::string text;
  for (const ConfigChange& key : compare(RunConfig(), config)) text += concat(key.key, ": ", key.after, '\n');
  model.lm->for_each_projection([&](const BitLinear& p) { text += concat(p.name, ' ', hash_of(p), '\n'); });
  for (const ParamSpec& spec : model.params->specs())
    if (spec.shape.rank() == 1) text += concat(spec.name, ' ', hash_of(host_f32((*model.params)[spec.name].value())));
  return hex16(hash64(text));
}

void write_state(const std::string& path, const Model& model, const PromptState& state) {
  std::vector<Tensor> tensors = state.slot.tensors;
  tensors.push_back(Tensor::from({int64_t(state.seen.size())}, state.seen.data()));
  Metadata metadata = {{"format", "mmfree-state"},
                       {"version", "1"},
                       {"model", model_fingerprint(model)},
                       {"position", concat(state.slot.position)},
                       {"last", concat(state.last)}};
  metadata["content_hash"] = content_hash(metadata, tensors);
  SafetensorsWriter file(path, metadata);
  const auto name = [&](size_t i) { return i + 1 < tensors.size() ? concat("state.", i) : std::string("seen"); };
  for (size_t i = 0; i < tensors.size(); ++i)
    file.declare(name(i), i + 1 < tensors.size() ? "F32" : "I32", tensors[i].shape());
  for (size_t i = 0; i < tensors.size(); ++i) file.write(name(i), tensors[i]);
  file.commit();
}

PromptState read_state(const std::string& path, const Model& model) {
  const SafetensorsReader file(path);
  const Metadata& metadata = checked(file);
  std::vector<Tensor> tensors;
  for (size_t i = 0; i + 1 < file.names().size(); ++i) tensors.push_back(file.read(concat("state.", i), DType::f32));
  tensors.push_back(file.read("seen", DType::i32));
  MMFREE_CHECK(DamagedError, content_hash(metadata, tensors) == metadata.at("content_hash"), path,
               ": content does not match its hash: the file is damaged; make the state again");
  MMFREE_CHECK(DataError, metadata.at("model") == model_fingerprint(model), path, ": is a state of another model than ",
               model.source, "; make one with this model");
  PromptState state;
  state.slot.position = number(path, metadata, "position", int64_t(1) << 60);
  state.last = int32_t(number(path, metadata, "last", model.config.vocab_size - 1));
  const Tensor seen = tensors.back();
  MMFREE_CHECK(DataError, seen.shape() == Shape({(model.config.vocab_size + 31) / 32}), path, ": tensor 'seen' is ",
               seen.shape(), ", expected [", (model.config.vocab_size + 31) / 32, "]");
  state.seen.assign(seen.data<int32_t>(), seen.data<int32_t>() + seen.size());
  tensors.pop_back();
  for (const Tensor& t : tensors) {
    const float* x = t.data<float>();
    MMFREE_CHECK(DataError, std::all_of(x, x + t.size(), [](float v) { return std::isfinite(v); }), path,
                 ": holds a value that is not finite; make the state again");
  }
  state.slot.tensors = std::move(tensors);
  return state;
}

}  // namespace mmfree
