#include "train/inference/model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/ops/elementwise.h"
#include "core/system/console.h"
#include "core/system/files.h"
#include "layers/parameters.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace fs = std::filesystem;
namespace {

Model from_checkpoint(const Checkpoint& file) {
  Model m;
  m.config = file.config().model;
  m.seq_len = file.config().data.seq_len;
  m.framing = file.config().data.framing.value_or(Framing::both);
  m.reset_state = file.config().data.reset_state;
  m.params = std::make_unique<ParamStore>(parameter_specs(m.config), DType::f32);
  file.load(*m.params, nullptr);
  m.lm = std::make_unique<LM>(*m.params, m.config);
  if (const std::string bytes = file.tokenizer_model(); !bytes.empty())
    m.tokenizer = Tokenizer::from_bytes(bytes, file.path());
  const LoopState& s = file.state();
  m.training = {{s.step, file.config().train.steps, s.tokens, file.has_states()}};
  m.kind = "checkpoint";
  m.source = file.path();
  return m;
}

Model from_hf_folder(const std::string& dir) {
  const HfFolder folder(dir);
  Model m;
  m.config = read_hf_config(dir);
  m.seq_len = std::min(m.config.max_position_embeddings, kMaxSeqLen);
  const HfData data = read_hf_data(dir);
  m.framing = data.framing;
  m.reset_state = data.reset_state;
  const Architecture& architecture = architecture_of(m.config);
  NamedShapes ours;
  for (const ParamSpec& spec : parameter_specs(m.config)) ours.emplace_back(spec.name, spec.shape);
  // Before anything is allocated: config.json alone may claim any size.
  for (const auto& [name, shape] : foreign_tensors(architecture, ours)) {
    MMFREE_CHECK(DataError, folder.has(name), dir, ": tensor '", name, "' is missing");
    MMFREE_CHECK(DataError, folder.shape(name) == shape, dir, ": tensor '", name, "' is ", folder.shape(name),
                 ", expected ", shape, " by config.json");
  }
  m.params = std::make_unique<ParamStore>(parameter_specs(m.config), DType::f32);
  for (size_t i = 0; i < m.params->specs().size(); ++i) {
    Tensor to = m.params->view(m.params->values(), i);
    const std::string& name = m.params->specs()[i].name;
    const Tensor values =
        from_foreign(architecture, m.config, name, [&](const std::string& n) { return folder.read(n, DType::f32); });
    const float* x = values.data<float>();
    MMFREE_CHECK(DataError, std::all_of(x, x + values.size(), [](float v) { return std::isfinite(v); }), dir,
                 ": tensor '", name, "' holds a value that is not finite");
    cast(values, to);
  }
  m.lm = std::make_unique<LM>(*m.params, m.config);
  if (const fs::path model = fs::path(dir) / "tokenizer.model"; fs::exists(model))
    m.tokenizer = Tokenizer::load(model.string());
  m.kind = "Hugging Face folder";
  m.source = dir;
  return m;
}

Model from_directory(const std::string& dir) {
  if (fs::exists(fs::path(dir) / "config.json")) return from_hf_folder(dir);
  std::optional<Model> m;
  newest_checkpoint(
      dir, [](const std::string& w) { console::err.format("warning: %s\n", w.c_str()); },
      [&](const Checkpoint& file) { m = from_checkpoint(file); });
  MMFREE_CHECK(MissingError, m, dir, ": holds neither config.json nor an intact checkpoint (checkpoints/step-*.h5)");
  return std::move(*m);
}

Model from_file(const std::string& path) {
  const Fd file = open_input(path);
  char begin[9] = {};
  read_exactly(file, path, 0, begin, std::min<int64_t>(sizeof begin, size_of_file(file, path)));
  if (std::string_view(begin, 8) == "MMFREEH5") return from_checkpoint(Checkpoint(path, h5::Verify::while_reading));
  MMFREE_CHECK(DataError, begin[8] == '{', path,
               ": is no model; give a checkpoint, a run folder, a ternary export or a Hugging Face folder");
  return read_ternary_file(path);
}

}  // namespace

const Tokenizer& Model::need_tokenizer() const {
  MMFREE_CHECK(MissingError, tokenizer, source, ": holds no tokenizer; give one with --tokenizer");
  return *tokenizer;
}

Model load_model(const std::string& path, const std::string& tokenizer_path) {
  Model m = fs::is_directory(path) ? from_directory(path) : from_file(path);
  if (!tokenizer_path.empty()) {
    const Tokenizer given = Tokenizer::load(tokenizer_path);
    MMFREE_CHECK(UsageError, !m.tokenizer || m.tokenizer->hash() == given.hash(), tokenizer_path,
                 ": is another tokenizer than the one that ", m.source, " holds; leave --tokenizer out");
    m.tokenizer = given;
  }
  MMFREE_CHECK(DataError, !m.tokenizer || m.tokenizer->vocab_size() <= m.config.vocab_size, path,
               ": the tokenizer has ", m.tokenizer->vocab_size(), " pieces, the model only ", m.config.vocab_size);
  return m;
}

Model move_model(Model model, const ComputeTarget& target) {
  if (target.device == Device::cpu) return model;
  auto params = std::make_unique<ParamStore>(model.params->specs(), DType::f32, target.device);
  params->values().copy_from(model.params->values());
  auto lm = std::make_unique<LM>(*params, model.config, target.compute);
  std::vector<const BitLinear*> from;
  model.lm->for_each_projection([&](const BitLinear& p) { from.push_back(&p); });
  size_t i = 0;
  lm->for_each_projection([&](const BitLinear& p) {
    const WeightMatrix& w = *from[i++]->matrix;
    if (p.weight.defined()) return;
    if (w.is_ternary()) {
      p.matrix->ternary = to_device(w.ternary, target.device);
    } else {
      const DType dtype = p.precision == Precision::f32 ? w.plain.dtype() : target.compute;
      p.matrix->plain = Tensor(w.plain.shape(), dtype, target.device);
      cast(w.plain.to(target.device), p.matrix->plain);
    }
  });
  model.lm = std::move(lm);
  model.params = std::move(params);
  return model;
}

}  // namespace mmfree
