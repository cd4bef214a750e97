#include "train/inference/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "core/ops/elementwise.h"
#include "core/system/console.h"
#include "core/system/files.h"
#include "layers/parameters.h"
#include "train/formats/hf_folder.h"
#include "train/formats/llama_config.h"
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

/// That the folder has the tensors of the model and, of an architecture of others, no more. Nothing is allocated:
/// config.json alone may claim any size.
void check_tensors(const HfFolder& folder, const std::string& dir, const HfModel& model) {
  NamedShapes ours;
  for (const ParamSpec& spec : parameter_specs(model.config)) ours.emplace_back(spec.name, spec.shape);
  std::set<std::string> read;
  for (const auto& [name, shape] : foreign_tensors(*model.architecture, ours)) {
    read.insert(name);
    MMFREE_CHECK(DataError, folder.has(name), dir, ": tensor '", name, "' is missing");
    MMFREE_CHECK(DataError, folder.dtype_name(name) != "U8", dir, ": tensor '", name,
                 "' holds packed weights (U8), which lack the latent weights that mmfree needs; use the model's folder "
                 "with its bf16 master weights");
    MMFREE_CHECK(DataError, folder.shape(name) == shape, dir, ": tensor '", name, "' is ", folder.shape(name),
                 ", expected ", shape, " by config.json");
  }
  if (!is_llama_type(model.architecture->model_type)) return;
  for (const std::string& name : folder.names()) {
    if (read.count(name) || name.ends_with(".rotary_emb.inv_freq")) continue;  // older files hold these angles
    const bool head = name == "lm_head.weight" && model.config.tie_word_embeddings;
    MMFREE_CHECK(DataError, head, dir, ": tensor ", quote(name), " has no place in a model of type ",
                 model.architecture->model_type, " as config.json describes it");
  }
}

/// A tied head may be stored too: it must be the embedding table.
void check_tied_head(const HfFolder& folder, const std::string& dir, const Model& m) {
  const std::string head = "lm_head.weight";
  if (!m.config.tie_word_embeddings || !folder.has(head)) return;
  const Tensor table = (*m.params)["model.embeddings.weight"].value(), stored = folder.read(head, DType::f32);
  MMFREE_CHECK(DataError,
               table.shape() == stored.shape() && std::memcmp(table.raw(), stored.raw(), size_t(table.bytes())) == 0,
               dir, ": tensor '", head, "' differs from the embedding table, but config.json says ",
               "tie_word_embeddings: true");
}

Model from_hf_folder(const std::string& dir) {
  const HfFolder folder(dir);
  const HfModel read = read_hf_model(dir);
  Model m;
  m.config = read.config;
  m.seq_len = std::min(m.config.max_position_embeddings, kMaxSeqLen);
  const HfData data = read_hf_data(dir);
  m.framing = data.framing;
  m.reset_state = data.reset_state;
  check_tensors(folder, dir, read);
  m.params = std::make_unique<ParamStore>(parameter_specs(m.config), DType::f32);
  for (size_t i = 0; i < m.params->specs().size(); ++i) {
    Tensor to = m.params->view(m.params->values(), i);
    const std::string& name = m.params->specs()[i].name;
    const Tensor values =
        from_foreign(*read.architecture, name, [&](const std::string& n) { return folder.read(n, DType::f32); });
    const float* x = values.data<float>();
    MMFREE_CHECK(DataError, std::all_of(x, x + values.size(), [](float v) { return std::isfinite(v); }), dir,
                 ": tensor '", name, "' holds a value that is not finite");
    cast(values, to);
  }
  check_tied_head(folder, dir, m);
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

Model from_file(const std::string& path, bool map) {
  const Fd file = open_input(path);
  char begin[9] = {};
  read_exactly(file, path, 0, begin, std::min<int64_t>(sizeof begin, size_of_file(file, path)));
  if (std::string_view(begin, 8) == "MMFREEH5") return from_checkpoint(Checkpoint(path, h5::Verify::while_reading));
  MMFREE_CHECK(DataError, begin[8] == '{', path,
               ": is no model; give a checkpoint, a run folder, a ternary export or a Hugging Face folder");
  return map ? map_ternary_file(path) : read_ternary_file(path);
}

Model loaded(const std::string& path, const std::string& tokenizer_path, bool map) {
  Model m = fs::is_directory(path) ? from_directory(path) : from_file(path, map);
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

}  // namespace

const Tokenizer& Model::need_tokenizer() const {
  const bool other = !tokenizer && fs::exists(fs::path(source) / "tokenizer.json");
  MMFREE_CHECK(MissingError, tokenizer, source, ": holds no ",
               other ? "tokenizer.model of SentencePiece, and tokenizer.json is not read" : "tokenizer",
               "; give one with --tokenizer");
  return *tokenizer;
}

Model load_model(const std::string& path, const std::string& tokenizer_path) {
  return loaded(path, tokenizer_path, false);
}

Model map_model(const std::string& path, const std::string& tokenizer_path) {
  return loaded(path, tokenizer_path, true);
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
