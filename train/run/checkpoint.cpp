#include "train/run/checkpoint.h"

#include <algorithm>
#include <cmath>

#include "core/ops/elementwise.h"
#include "core/system/files.h"
#include "layers/parameters.h"

namespace mmfree {
namespace {

/// Bytes of a tensor that are read at a time; for another device they pass through host memory.
constexpr int64_t kPartBytes = int64_t(64) << 20;
constexpr int64_t kMostCounted = int64_t(1) << 60;

void write_finite(h5::Writer& writer, const std::string& path, const std::string& name, const Tensor& values) {
  Tensor total({1}, DType::f64);
  writer.write(name, values, [&](const Tensor& part) {
    sum(part, 1, total);
    MMFREE_CHECK(DivergedError, std::isfinite(*total.data<double>()), path, ": not written, because '", name,
                 "' holds a NaN or an infinity; go on from an older checkpoint");
  });
}

/// Whether a tensor of shape `stored` has `rows` rows like those of `some`.
bool are_rows(const Shape& stored, int64_t rows, const Shape& some) {
  bool alike = stored.rank() == some.rank() && stored.rank() > 0 && stored[0] == rows;
  for (int i = 1; alike && i < stored.rank(); ++i) alike = stored[i] == some[i];
  return alike;
}

std::string state_name(int64_t layer, size_t index) { return concat("state/", layer, '/', index); }

}  // namespace

int64_t checkpoint_bytes(const ParamStore& layout, const FlatState& flat, const std::string& tokenizer_model) {
  constexpr int64_t kMetadata = 64 << 10, kOfEach = 1 << 10;
  int64_t bytes = 0;
  for (const ParamSpec& spec : layout.specs()) bytes += spec.shape.size() * size_of(DType::f32) + kOfEach;
  bytes *= int64_t(1 + flat.states.size());
  flat.carried.for_each([&](int64_t, size_t, const Tensor& t) { bytes += t.bytes() + kOfEach; });
  bytes += bytes / 100;  // partial chunks are stored in full
  return bytes + int64_t(tokenizer_model.size()) + kMetadata;
}

void save_checkpoint(const std::string& path, const RunConfig& config, const ParamStore& layout, const FlatState& flat,
                     const LoopState& state, const std::string& tokenizer_model, const ParameterOf& parameter) {
  const auto part = [&](size_t i, const Tensor& from) { return parameter ? parameter(i, from) : layout.view(from, i); };
  require_space(path, checkpoint_bytes(layout, flat, tokenizer_model));
  h5::Writer writer(path, "checkpoint");
  writer.attribute("config", to_yaml(config));
  writer.attribute("step", state.step);
  writer.attribute("updates", state.updates);
  writer.attribute("skipped_in_row", state.skipped_in_row);
  writer.attribute("tokens", state.tokens);
  writer.attribute("data", state.data);
  writer.attribute("loop", to_json(state));
  for (size_t i = 0; i < layout.specs().size(); ++i) {
    const std::string& name = layout.specs()[i].name;
    write_finite(writer, path, "param/" + name, part(i, flat.values));
    for (const OptimizerState& state : flat.states)
      write_finite(writer, path, concat(state.name, '/', name), part(i, state.tensor));
  }
  flat.carried.for_each(
      [&](int64_t layer, size_t index, const Tensor& t) { write_finite(writer, path, state_name(layer, index), t); });
  if (!tokenizer_model.empty())
    writer.write("tokenizer", DType::u8, {int64_t(tokenizer_model.size())}, tokenizer_model.data());
  writer.commit();
}

Checkpoint::Checkpoint(const std::string& path, h5::Verify verify) : reader_(path, "checkpoint", verify) {
  config_ = load_stored_config(reader_.attribute_string("config"), path);
  state_ = {reader_.attribute_int("step"), reader_.attribute_int("updates"), reader_.attribute_int("skipped_in_row"),
            reader_.attribute_int("tokens"), reader_.attribute_string("data")};
  if (reader_.has_attribute("loop")) read_json(reader_.attribute_string("loop"), path, state_);
  for (const int64_t count : {state_.step, state_.updates, state_.skipped_in_row, state_.tokens})
    MMFREE_CHECK(DataError, count >= 0 && count <= kMostCounted, path, ": counts ", count,
                 " steps, updates, skipped steps or tokens");
  specs_ = parameter_specs(config_.model);
  for (const ParamSpec& spec : specs_) require("param/" + spec.name, spec.shape);
}

bool Checkpoint::has_states() const {
  for (const std::string& name : reader_.names())
    if (!name.starts_with("param/") && !name.starts_with("state/") && name != "tokenizer") return true;
  return false;
}

std::string Checkpoint::tokenizer_model() const {
  if (!reader_.has("tokenizer")) return {};
  const Tensor bytes = reader_.read_tensor("tokenizer", DType::u8);
  return std::string(bytes.raw(), size_t(bytes.bytes()));
}

void Checkpoint::require(const std::string& name, const Shape& shape) const {
  MMFREE_CHECK(DataError, reader_.has(name), reader_.path(), ": tensor '", name, "' is missing");
  MMFREE_CHECK(DataError, reader_.shape(name) == shape, reader_.path(), ": tensor '", name, "' is ",
               reader_.shape(name), ", expected ", shape);
}

void Checkpoint::read_into(const std::string& name, const Tensor& to) const {
  require(name, to.shape());
  read_rows(name, 0, to);
}

void Checkpoint::read_rows(const std::string& name, int64_t first, const Tensor& to) const {
  const int64_t rows = to.dim(0),
                at_a_time = std::max<int64_t>(1, kPartBytes / std::max<int64_t>(1, to.bytes() / rows));
  Tensor total({1}, DType::f64);
  for (int64_t begin = 0; begin < rows; begin += at_a_time) {
    Tensor part = to.slice(begin, std::min(rows, begin + at_a_time));
    Tensor host = part.device() == Device::cpu ? part : Tensor(part.shape(), part.dtype());
    reader_.read(name, first + begin, part.dim(0), part.dtype(), host.raw_mut());
    sum(host, 1, total);
    MMFREE_CHECK(DataError, std::isfinite(*total.data<double>()), reader_.path(), ": tensor '", name,
                 "' holds a NaN or an infinity");
    if (part.device() != Device::cpu) part.copy_from(host);
  }
}

/// Fills what `piece`, a buffer like the values of `params`, holds of parameter i.
void Checkpoint::read_part(const std::string& name, const ParamStore& params, size_t i, const Tensor& piece) const {
  const Shape& shape = params.specs()[i].shape;
  const ParamStore::Part part = params.own(i);
  Tensor to = params.own_part(piece, i);
  if (part.size() == shape.size()) return read_into(name, to.reshape(shape));
  require(name, shape);
  if (part.size() == 0) return;
  const int64_t cols = shape.size() / shape[0], first = part.begin / cols, last = (part.end + cols - 1) / cols;
  Tensor rows({last - first, cols}, to.dtype());
  read_rows(name, first, rows);
  to.copy_from(rows.reshape({rows.size()}).slice(part.begin - first * cols, part.end - first * cols));
}

/// In the order in which save_checkpoint writes.
void Checkpoint::load(ParamStore& params, Optimizer* optimizer, const DecodeState& carried, int64_t first_row,
                      int64_t all_rows) const {
  const auto states = optimizer ? optimizer->states() : std::vector<OptimizerState>();
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const std::string& name = params.specs()[i].name;
    if (params.is_read(i)) {
      read_into("param/" + name, params[name].value());
      params.assign(i, params[name].value());
    } else {
      read_part("param/" + name, params, i, params.values());
    }
    for (const OptimizerState& state : states) read_part(concat(state.name, '/', name), params, i, state.tensor);
  }
  carried.for_each([&](int64_t layer, size_t index, const Tensor& t) {
    const std::string name = state_name(layer, index);
    MMFREE_CHECK(ConfigError,
                 reader_.has(name) && are_rows(reader_.shape(name), all_rows > 0 ? all_rows : t.dim(0), t.shape()),
                 path(), ": holds no state '", name, "' of shape ", t.shape(),
                 " that rows of the batch could go on with: resume with the data.carry_state and train.batch_size of "
                 "its run");
    read_rows(name, first_row, t);
  });
  verify();
  if (optimizer) optimizer->set_updates(state_.updates, state_.norms);
}

}  // namespace mmfree
