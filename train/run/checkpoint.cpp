#include "train/run/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "core/ops/elementwise.h"
#include "core/system/files.h"
#include "layers/parameters.h"

namespace mmfree {
namespace fs = std::filesystem;

namespace {

/// So much of a tensor is read at a time; on its way to another device it is in the host's memory.
constexpr int64_t kPartBytes = int64_t(64) << 20;

void write_finite(h5::Writer& writer, const std::string& path, const std::string& name, const Tensor& values) {
  Tensor total({1}, DType::f64);
  writer.write(name, values, [&](const Tensor& part) {
    sum(part, 1, total);
    MMFREE_CHECK(DivergedError, std::isfinite(*total.data<double>()), path, ": not written, because '", name,
                 "' holds a NaN or an infinity; go on from an older checkpoint");
  });
}

}  // namespace

int64_t checkpoint_bytes(const ParamStore& layout, size_t states, const std::string& tokenizer_model) {
  constexpr int64_t kMetadata = 64 << 10, kOfEach = 1 << 10;
  int64_t bytes = 0;
  for (const ParamSpec& spec : layout.specs()) bytes += spec.shape.size() * size_of(DType::f32) + kOfEach;
  bytes += bytes / 100;  // chunks at the edges are stored whole
  return int64_t(1 + states) * bytes + int64_t(tokenizer_model.size()) + kMetadata;
}

void save_checkpoint(const std::string& path, const RunConfig& config, const ParamStore& layout, const FlatState& flat,
                     const LoopState& state, const std::string& tokenizer_model) {
  require_space(path, checkpoint_bytes(layout, flat.states.size(), tokenizer_model));
  h5::Writer writer(path, "checkpoint");
  writer.attribute("config", to_yaml(config));
  writer.attribute("step", state.step);
  writer.attribute("updates", state.updates);
  writer.attribute("skipped_in_row", state.skipped_in_row);
  writer.attribute("tokens", state.tokens);
  writer.attribute("data", state.data);
  for (size_t i = 0; i < layout.specs().size(); ++i) {
    const std::string& name = layout.specs()[i].name;
    write_finite(writer, path, "param/" + name, layout.view(flat.values, i));
    for (const OptimizerState& state : flat.states)
      write_finite(writer, path, concat(state.name, '/', name), layout.view(state.tensor, i));
  }
  if (!tokenizer_model.empty())
    writer.write("tokenizer", DType::u8, {int64_t(tokenizer_model.size())}, tokenizer_model.data());
  writer.commit();
}

Checkpoint::Checkpoint(const std::string& path) : reader_(path, "checkpoint") {
  config_ = load_stored_config(reader_.attribute_string("config"), path);
  state_ = {reader_.attribute_int("step"), reader_.attribute_int("updates"), reader_.attribute_int("skipped_in_row"),
            reader_.attribute_int("tokens"), reader_.attribute_string("data")};
  for (const int64_t count : {state_.step, state_.updates, state_.skipped_in_row, state_.tokens})
    MMFREE_CHECK(DataError, count >= 0, path, ": counts ", count, " steps, updates, skipped steps or tokens");
  specs_ = parameter_specs(config_.model);
  for (const ParamSpec& spec : specs_) require("param/" + spec.name, spec.shape);
}

bool Checkpoint::has_states() const {
  for (const std::string& name : reader_.names())
    if (!name.starts_with("param/") && name != "tokenizer") return true;
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
  const int64_t rows = to.dim(0), most = std::max<int64_t>(1, kPartBytes / std::max<int64_t>(1, to.bytes() / rows));
  Tensor total({1}, DType::f64);
  for (int64_t begin = 0; begin < rows; begin += most) {
    Tensor part = to.slice(begin, std::min(rows, begin + most));
    Tensor host = part.device() == Device::cpu ? part : Tensor(part.shape(), part.dtype());
    reader_.read(name, begin, part.dim(0), part.dtype(), host.raw_mut());
    sum(host, 1, total);
    MMFREE_CHECK(DataError, std::isfinite(*total.data<double>()), reader_.path(), ": tensor '", name,
                 "' holds a NaN or an infinity");
    if (part.device() != Device::cpu) part.copy_from(host);
  }
}

void Checkpoint::load(ParamStore& params, Optimizer* optimizer) const {
  const auto states = optimizer ? optimizer->states() : std::vector<OptimizerState>();
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const std::string& name = params.specs()[i].name;
    read_into("param/" + name, params.view(params.values(), i));
    for (const OptimizerState& state : states) read_into(concat(state.name, '/', name), params.view(state.tensor, i));
  }
  if (optimizer) optimizer->set_updates(state_.updates);
}

std::string checkpoint_path(const std::string& run_dir, int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%08lld.h5", static_cast<long long>(step));
  return (fs::path(run_dir) / "checkpoints" / name).string();
}

std::vector<int64_t> checkpoint_steps(const std::string& run_dir) {
  const fs::path folder = fs::path(run_dir) / "checkpoints";
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(folder.string())) {
    if (name.size() < 9 || !name.starts_with("step-") || !name.ends_with(".h5")) continue;
    int64_t step = -1;
    const char* end = name.data() + name.size() - 3;
    if (std::from_chars(name.data() + 5, end, step).ptr == end && step >= 0 &&
        checkpoint_path(run_dir, step) == folder / name)
      steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<std::string> newest_checkpoint(const std::string& run_dir, std::vector<std::string>& warnings) {
  const std::vector<int64_t> steps = checkpoint_steps(run_dir);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    const std::string path = checkpoint_path(run_dir, *it);
    try {
      h5::Reader verified(path, "checkpoint");
      return path;
    } catch (const Error& e) {
      const char* kind = e.status() == Exit::bad_data ? "a damaged" : "an unreadable";
      warnings.push_back(concat("passing over ", kind, " checkpoint: ", e.what()));
    }
  }
  return std::nullopt;
}

void retain_checkpoints(const std::string& run_dir, int64_t newest, int64_t keep) {
  const h5::Reader verified(checkpoint_path(run_dir, newest), "checkpoint");
  std::vector<int64_t> steps;
  try {
    steps = checkpoint_steps(run_dir);
  } catch (const IoError&) {
    return;  // what stays is removed after the next save
  }
  steps.erase(std::upper_bound(steps.begin(), steps.end(), newest), steps.end());
  for (size_t i = 0; i + size_t(keep) < steps.size(); ++i) {
    std::error_code ignored;
    fs::remove(checkpoint_path(run_dir, steps[i]), ignored);
  }
}

std::vector<std::string> set_aside(const std::string& run_dir, int64_t step) {
  std::vector<std::string> renamed;
  for (const int64_t later : checkpoint_steps(run_dir)) {
    if (later <= step) continue;
    const std::string path = checkpoint_path(run_dir, later);
    std::error_code error;
    std::string name = path + ".damaged";
    for (int i = 1; fs::exists(fs::symlink_status(name, error)); ++i) name = concat(path, ".damaged-", i);
    fs::rename(path, name, error);
    if (!error) renamed.push_back(name);
  }
  if (!renamed.empty()) sync_directory((fs::path(run_dir) / "checkpoints").string());
  return renamed;
}

void remove_unfinished_checkpoints(const std::string& run_dir) {
  const fs::path folder = fs::path(run_dir) / "checkpoints";
  for (const std::string& name : names_in(folder.string())) {
    std::error_code ignored;
    if (name.starts_with("step-") && name.find(concat(".h5", kTemporaryMark)) != std::string::npos)
      fs::remove(folder / name, ignored);
  }
}

}  // namespace mmfree
