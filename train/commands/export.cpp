#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>

#include "core/system/console.h"
#include "core/system/folder_mark.h"
#include "core/system/signals.h"
#include "layers/parameters.h"
#include "train/commands/commands.h"
#include "train/formats/gguf_model.h"
#include "train/formats/hf_folder.h"
#include "train/formats/llama_config.h"
#include "train/formats/ternary_file.h"
#include "train/formats/tokenizer_json.h"
#include "train/inference/model.h"
#include "train/run/checkpoint.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model, out, tokenizer, format = "ternary", embedding = "f32", dtype = "float32", gguf_type = "TQ2_0",
                                     gguf_other = "auto";
  int64_t max_shard_mb = 5000;
  bool overwrite = false, force = false;
};

bool lies_in(const std::string& source, const std::string& folder) {
  std::error_code ignored;
  fs::path p = fs::weakly_canonical(source, ignored);
  for (; p != p.parent_path(); p = p.parent_path())
    if (fs::equivalent(p, folder, ignored)) return true;
  return false;
}

/// --overwrite replaces an older export, never the model that is exported: its latent weights would be lost.
void refuse_source(const Options& o, const Model& model) {
  std::error_code ignored;
  for (const std::string& source : {o.model, model.source}) {
    const bool same = fs::equivalent(source, o.out, ignored);
    MMFREE_CHECK(UsageError, !same && !(o.overwrite && lies_in(source, o.out)), o.out, same ? ": is" : ": holds",
                 " the model to be exported; choose another name");
  }
  MMFREE_CHECK(UsageError, !fs::exists(o.out) || !lies_in(o.out, model.source), o.out,
               ": is part of the model to be exported; choose another name");
}

std::string size_text(const std::string& path) { return format_bytes(fs::file_size(path)); }

void export_to_ternary(const Options& o, const Model& model) {
  static const std::map<std::string, EmbeddingStore> stores = {{"f32", EmbeddingStore::f32},
                                                               {"bf16", EmbeddingStore::bf16},
                                                               {"int8", EmbeddingStore::int8},
                                                               {"int4", EmbeddingStore::int4}};
  require_replaceable(o.out, o.overwrite, [&] { verify_ternary_file(o.out); });
  export_ternary(o.out, model, stores.at(o.embedding), [] { throw_if_stopped(); });
  console::out.format("wrote %s: %s, %s parameters, embedding in %s\n", o.out.c_str(), size_text(o.out).c_str(),
                      format_count(double(model.config.parameter_count())).c_str(), o.embedding.c_str());
  console::out.format("checked: loaded again, its logits equal the %s's%s to the bit over 256 tokens\n",
                      model.kind.c_str(), o.embedding == "f32" ? "" : " with the embedding rounded so");
}

void export_to_gguf(const Options& o, const Model& model) {
  GgufOptions options{ggml_type_of(o.gguf_type), {}};
  if (o.gguf_other != "auto") options.other = ggml_type_of(o.gguf_other);
  require_replaceable(o.out, o.overwrite, [&] { verify_gguf(o.out); });
  const GgufReport report = export_gguf(o.out, model, options, [] { throw_if_stopped(); });
  std::string bits;
  if (report.ternary_values)
    bits = concat(", ternary matrices of ", format_count(double(report.ternary_values)), " weights in ",
                  8 * double(report.ternary_bytes) / double(report.ternary_values), " bits each");
  console::out.format("wrote %s: GGUF of architecture %s, %s, %lld tensors%s\n", o.out.c_str(),
                      report.architecture.c_str(), size_text(o.out).c_str(), static_cast<long long>(report.tensors),
                      bits.c_str());
  if (!report.fallback.empty()) console::out.format("fallback: %s\n", report.fallback.c_str());
  console::out.format(
      "checked: loaded again, the same codes, logits within %.2g of the %s's over 256 tokens (allowed: %.2g)\n",
      report.difference, model.kind.c_str(), report.bound);
  if (!report.no_tokenizer.empty())
    console::err.format("warning: the file holds no tokenizer: %s\n", report.no_tokenizer.c_str());
}

/// What would make Hugging Face's classes compute the model, if it is one setting; else "".
std::string missing_for_llama(ModelConfig config) {
  config.fused_gate = false;
  for (LayerEntry& entry : config.layers) entry.fused_gate.reset();
  const auto form = llama_form(config);
  return form ? concat("; with model.fused_gate=false it would be a '", form->model_type, "'") : std::string();
}

void export_to_hf(const Options& o, const Model& model) {
  HfWriteOptions options;
  options.data = {model.framing, model.reset_state};
  if (model.tokenizer) options.data.pad_token_id = model.tokenizer->pad_id();
  options.torch_dtype = o.dtype;
  options.max_shard_bytes = o.max_shard_mb * 1'000'000;
  options.overwrite = o.overwrite;
  NamedShapes tensors;
  for (const ParamSpec& spec : parameter_specs(model.config)) {
    MMFREE_CHECK(UsageError, model.params->has(spec.name), o.model, ": holds no latent weights for '", spec.name,
                 "': a ternary export cannot become a Hugging Face folder; export the checkpoint");
    tensors.emplace_back(spec.name, spec.shape);
  }
  const auto get = [&](const std::string& name) {
    throw_if_stopped();
    return (*model.params)[name].value();
  };
  ModelConfig config = model.config;
  config.max_position_embeddings = model.seq_len;
  HfTokenizer tokenizer;
  if (model.tokenizer) {
    config.bos_token_id = model.tokenizer->bos_id(), config.eos_token_id = model.tokenizer->eos_id();
    tokenizer = hf_tokenizer(*model.tokenizer, model.framing, model.seq_len);
    options.tokenizer_model = model.tokenizer->serialized();
    options.tokenizer_files = tokenizer.files;
  }
  write_hf_folder(o.out, config, tensors, get, options);
  const Architecture& architecture = architecture_of(config);
  console::out.format("wrote %s: config.json of model_type %s and %zu tensors as %s\n", o.out.c_str(),
                      architecture.model_type.c_str(), foreign_tensors(architecture, tensors).size(), o.dtype.c_str());
  if (&architecture == &own_architecture() && !o.force)
    console::err.format(
        "warning: Hugging Face's classes do not compute this model (see the object `mmfree` in config.json): it is "
        "written as model_type '%s', which only mmfree loads%s; --force leaves this warning out\n",
        architecture.model_type.c_str(), missing_for_llama(config).c_str());
  if (!tokenizer.refusal.empty())
    console::err.format("warning: AutoTokenizer stops at this folder: %s\n", tokenizer.refusal.c_str());
}

/// Until something is written, a signal may end the process.
Model load_to_export(const Options& o) {
  const LeaveAtOnce nothing_to_clean_up;
  return load_model(o.model, o.tokenizer);
}

void run_export(const Options& o) {
  MMFREE_CHECK(UsageError, !o.out.empty(), "export: the output has an empty name");
  const StopSignals signals;
  const Model model = load_to_export(o);
  refuse_source(o, model);
  if (o.format == "ternary")
    export_to_ternary(o, model);
  else if (o.format == "gguf")
    export_to_gguf(o, model);
  else
    export_to_hf(o, model);
}

void run_import(const Options& o) {
  MMFREE_CHECK(UsageError, !o.out.empty(), "import: the output has an empty name");
  MMFREE_CHECK(MissingError, fs::exists(o.model), o.model, ": does not exist");
  MMFREE_CHECK(UsageError, fs::is_directory(o.model), o.model,
               ": is not a folder; import reads a Hugging Face folder with config.json and safetensors");
  MMFREE_CHECK(UsageError, !fs::exists(o.out) || !lies_in(o.out, o.model), o.out,
               ": is part of the model to be imported; choose another name");
  require_replaceable(o.out, o.overwrite, [&] {
    MMFREE_CHECK(DataError, !Checkpoint(o.out).has_states(), o.out, ": holds the state of a training run");
  });
  const StopSignals signals;  // a signal does not interrupt the writing
  const Model model = load_to_export(o);
  MMFREE_CHECK(UsageError, model.kind == "Hugging Face folder", o.model,
               ": holds no config.json; import reads a Hugging Face folder");
  RunConfig config;
  config.model = model.config;
  config.data.seq_len = model.seq_len;
  config.data.framing = model.framing;
  config.data.reset_state = model.reset_state;
  load_stored_config(to_yaml(config), o.model);  // refuses what Checkpoint could not read
  save_checkpoint(o.out, config, *model.params, {model.params->values(), {}}, {},
                  model.tokenizer ? model.tokenizer->serialized() : std::string());
  const bool other = fs::exists(fs::path(o.model) / "tokenizer.json");
  const std::string none =
      concat("no tokenizer (", other ? "tokenizer.json is not read; " : "", "give one with --tokenizer)");
  console::out.format("wrote %s: %s, %s parameters, %s\n", o.out.c_str(), size_text(o.out).c_str(),
                      format_count(double(model.config.parameter_count())).c_str(),
                      model.tokenizer ? "tokenizer included" : none.c_str());
}

}  // namespace

void add_export_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("export", "Write a model for deployment (ternary) or exchange (hf, gguf)");
  c->add_option("model", o->model, "checkpoint, run folder or Hugging Face folder")->required();
  c->add_option("out", o->out, "file (ternary, gguf) or folder (hf) to write")->required();
  c->add_option("--format", o->format,
                "ternary: 2-bit codes and scales; hf: latent weights as safetensors; gguf: a file for llama.cpp")
      ->check(CLI::IsMember({"ternary", "hf", "gguf"}))
      ->capture_default_str();
  c->add_option("--embedding", o->embedding, "ternary: how the embedding table is stored")
      ->check(CLI::IsMember({"f32", "bf16", "int8", "int4"}))
      ->capture_default_str();
  c->add_option("--dtype", o->dtype, "hf: type of the weights")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  c->add_option("--max-shard-mb", o->max_shard_mb, "hf: megabytes per safetensors file")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 30))
      ->capture_default_str();
  c->add_option(
       "--gguf-type", o->gguf_type,
       "gguf: type of the ternary matrices; where their rows do not divide by its groups, the output says which "
       "other one they have")
      ->check(CLI::IsMember({"TQ2_0", "TQ1_0", "Q2_0", "Q8_0", "BF16", "F16", "F32"}))
      ->capture_default_str();
  c->add_option("--gguf-other", o->gguf_other,
                "gguf: type of the embedding and of matrices that are not ternary; auto: as precise as they compute")
      ->check(CLI::IsMember({"auto", "F32", "BF16", "F16", "Q8_0"}))
      ->capture_default_str();
  c->add_flag("--overwrite", o->overwrite, "replace an export that mmfree wrote and nobody changed since");
  c->add_flag("--force", o->force, "hf: without a warning for a model that only mmfree can load");
  c->add_option("--tokenizer", o->tokenizer, "SentencePiece model, if the model file holds none");
  c->footer(
      "A ternary export is loaded again and must give the model's logits to the bit, an hf one its tensors, "
      "a gguf one the codes and nearly the logits (scales are rounded to F16), before an older one is replaced.\n"
      "Examples:\n"
      "  mmfree export runs/quickstart model.mmfree\n"
      "  mmfree export runs/quickstart model.mmfree --embedding int8 --overwrite\n"
      "  mmfree export runs/quickstart hf_folder --format hf --dtype bfloat16\n"
      "  mmfree export runs/quickstart model.gguf --format gguf --gguf-type TQ1_0 --gguf-other Q8_0");
  c->callback([o] { run_export(*o); });
}

void add_import_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c =
      app.add_subcommand("import", "Turn a Hugging Face folder (hgrn_bit, llama, mistral, bitnet) into a checkpoint");
  c->add_option("folder", o->model, "folder with config.json and one or several safetensors (f32, bf16 or f16)")
      ->required();
  c->add_option("out", o->out, "checkpoint to write")->required();
  c->add_flag("--overwrite", o->overwrite, "replace a checkpoint that mmfree wrote");
  c->add_option("--tokenizer", o->tokenizer, "SentencePiece model, if the folder holds no tokenizer.model");
  c->footer("Example:\n  mmfree import MMfreeLM-370M imported.h5");
  c->callback([o] { run_import(*o); });
}

}  // namespace mmfree
