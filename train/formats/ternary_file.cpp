#include "train/formats/ternary_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "core/ops/elementwise.h"
#include "core/parallel.h"
#include "core/quantize.h"
#include "core/rng.h"
#include "core/system/hash.h"
#include "layers/parameters.h"
#include "train/config/config.h"
#include "train/formats/safetensors.h"

namespace mmfree {
namespace {

constexpr int64_t kRowsAtATime = 64;
constexpr const char* kEmbedding = "model.embeddings.weight";

/// One tensor of the file: its name, the dtype it is stored as, and its value.
struct Item {
  std::string name, dtype;
  Tensor value;
};

/// Rows of `table` as int8 codes with one scale per row, by the absmax quantiser of activations.
std::pair<Tensor, Tensor> quantise_rows(const Tensor& table) {
  const int64_t rows = table.dim(0), cols = table.dim(1);
  Tensor codes(table.shape(), DType::i8), scale({rows}, DType::f32);
  const float* from = table.data<float>();
  int8_t* code = codes.mut<int8_t>();
  float* step = scale.mut<float>();
  parallel_for(rows, kRowsAtATime, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = from + r * cols;
      float absmax = 0;
      for (int64_t k = 0; k < cols; ++k) absmax = std::max(absmax, std::abs(x[k]));
      const auto s = activation_scale(absmax);
      for (int64_t k = 0; k < cols; ++k) code[r * cols + k] = activation_code(x[k], s.inverse);
      step[r] = s.step;
    }
  });
  return {codes, scale};
}

void dequantise_rows(const Tensor& codes, const Tensor& scale, Tensor& table) {
  const int64_t cols = table.dim(1);
  const int8_t* code = codes.data<int8_t>();
  const float* step = scale.data<float>();
  float* to = table.mut<float>();
  parallel_for(table.dim(0), kRowsAtATime, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t k = 0; k < cols; ++k) to[r * cols + k] = float(code[r * cols + k]) * step[r];
  });
}

std::vector<Item> items_of(const Model& model, EmbeddingStore embedding) {
  std::vector<Item> items;
  std::set<std::string> done;
  model.lm->for_each_projection([&](const BitLinear& p) {
    if (!p.owns_matrix()) return;
    if (p.precision == Precision::ternary) {
      items.push_back({p.name + ".codes", "U8", p.matrix->ternary.codes});
      items.push_back({p.name + ".scale", "F32", p.matrix->ternary.scale});
    } else {
      items.push_back({p.name + ".weight", p.precision == Precision::bf16 ? "BF16" : "F32", p.matrix->plain});
    }
    done.insert(p.name + ".weight");
  });
  for (const ParamSpec& spec : model.params->specs()) {
    const Tensor value = (*model.params)[spec.name].value();
    if (done.count(spec.name)) continue;
    if (spec.name == kEmbedding && embedding == EmbeddingStore::int8) {
      const auto [codes, scale] = quantise_rows(value);
      items.push_back({spec.name, "I8", codes});
      items.push_back({spec.name + ".scale", "F32", scale});
    } else {
      items.push_back(
          {spec.name, spec.name == kEmbedding && embedding == EmbeddingStore::bf16 ? "BF16" : "F32", value});
    }
  }
  if (model.tokenizer) {
    const std::string& bytes = model.tokenizer->serialized();
    items.push_back({"tokenizer.model", "U8",
                     Tensor::from({int64_t(bytes.size())}, reinterpret_cast<const uint8_t*>(bytes.data()))});
  }
  return items;
}

/// Hash over the configuration and each tensor's name, dtype, shape and stored bytes.
class ContentHash {
 public:
  explicit ContentHash(const std::string& config) : text_(config) {}
  void add(const std::string& name, const std::string& dtype, const Tensor& stored) {
    text_ +=
        concat('\n', name, ' ', dtype, ' ', stored.shape(), ' ', hex16(hash64({stored.raw(), size_t(stored.bytes())})));
  }
  std::string value() const { return hex16(hash64(text_)); }

 private:
  std::string text_;
};

DType stored_dtype(const std::string& name) {
  return name == "U8" ? DType::u8 : name == "I8" ? DType::i8 : name == "BF16" ? DType::bf16 : DType::f32;
}

bool is_code_dtype(DType t) { return t == DType::u8 || t == DType::i8; }

Tensor as_stored(const Item& item) {
  const DType t = stored_dtype(item.dtype);
  if (item.value.dtype() == t) return item.value;
  Tensor stored(item.value.shape(), t);
  cast(item.value, stored);
  return stored;
}

void check_finite(const std::string& where, const Tensor& values) {
  const float* x = values.data<float>();
  const bool ok = std::all_of(x, x + values.size(), [](float v) { return std::isfinite(v); });
  MMFREE_CHECK(DataError, ok, where, " holds a value that is not finite; export the model again");
}

void check_codes(const std::string& where, const Tensor& codes) {
  const uint8_t* c = codes.data<uint8_t>();
  uint8_t bad = 0;
  for (int64_t i = 0; i < codes.size(); ++i) bad |= uint8_t(c[i] & (c[i] >> 1) & 0x55);
  MMFREE_CHECK(DataError, !bad, where, " holds a code that is not 0, 1 or 2: the file is damaged; export it again");
}

/// Checks format, version and hash. Returns the stored configuration.
RunConfig verified_config(const SafetensorsReader& file, const std::string& path) {
  const auto meta = [&](const std::string& key) {
    const auto it = file.metadata().find(key);
    MMFREE_CHECK(DataError, it != file.metadata().end(), path, ": is not an mmfree ternary export (no '", key,
                 "' in its metadata)");
    return it->second;
  };
  MMFREE_CHECK(DataError, meta("format") == "mmfree-ternary", path, ": is a safetensors file of format ",
               quote(meta("format")), ", expected mmfree-ternary");
  MMFREE_CHECK(VersionError, meta("version") == "1", path, ": has version ", quote(meta("version")),
               " of the ternary format; this program reads version 1; use a newer mmfree");
  ContentHash hash(meta("config"));
  for (const std::string& name : file.names()) {
    const std::string& dtype = file.dtype_name(name);
    MMFREE_CHECK(DataError, dtype == "U8" || dtype == "I8" || dtype == "BF16" || dtype == "F32", path, ": tensor ",
                 quote(name), " has dtype ", dtype, ", expected U8, I8, BF16 or F32");
    hash.add(name, dtype, file.read(name, stored_dtype(dtype)));
  }
  MMFREE_CHECK(DamagedError, hash.value() == meta("content_hash"), path,
               ": content does not match its hash: the file is damaged");
  return load_stored_config(meta("config"), path);
}

}  // namespace

void verify_ternary_file(const std::string& path) { verified_config(SafetensorsReader(path), path); }

Tensor rounded_embedding(const Tensor& table, EmbeddingStore embedding) {
  if (embedding == EmbeddingStore::f32) return table;
  Tensor back(table.shape(), DType::f32);
  if (embedding == EmbeddingStore::bf16) {
    Tensor rounded(table.shape(), DType::bf16);
    cast(table, rounded);
    cast(rounded, back);
  } else {
    const auto [codes, scale] = quantise_rows(table);
    dequantise_rows(codes, scale, back);
  }
  return back;
}

void write_ternary_file(const std::string& path, const Model& model, EmbeddingStore embedding,
                        const std::function<void()>& before_tensor,
                        const std::function<void(const std::string&)>& check) {
  RunConfig config;
  config.model = model.config;
  config.data.seq_len = model.seq_len;
  config.data.framing = model.framing;
  config.data.reset_state = model.reset_state;
  const std::string yaml = to_yaml(config);
  const std::vector<Item> items = items_of(model, embedding);
  ContentHash hash(yaml);
  for (const Item& item : items) hash.add(item.name, item.dtype, as_stored(item));
  SafetensorsWriter writer(
      path, {{"format", "mmfree-ternary"}, {"version", "1"}, {"config", yaml}, {"content_hash", hash.value()}});
  for (const Item& item : items) writer.declare(item.name, item.dtype, item.value.shape());
  for (const Item& item : items) {
    if (before_tensor) before_tensor();
    writer.write(item.name, as_stored(item));
  }
  if (check) check(writer.temporary_path());
  writer.commit();
}

Model read_ternary_file(const std::string& path) {
  const SafetensorsReader file(path);
  const RunConfig config = verified_config(file, path);
  Model model;
  model.kind = "ternary export";
  model.source = path;
  model.config = config.model;
  model.seq_len = config.data.seq_len;
  model.framing = config.data.framing.value_or(Framing::both);
  model.reset_state = config.data.reset_state;

  const auto require = [&](const std::string& name, const Shape& shape, bool integers) {
    MMFREE_CHECK(DataError, file.has(name), path, ": tensor '", name, "' is missing");
    MMFREE_CHECK(DataError, file.shape(name) == shape, path, ": tensor '", name, "' is ", file.shape(name),
                 ", expected ", shape);
    MMFREE_CHECK(DataError, is_code_dtype(stored_dtype(file.dtype_name(name))) == integers, path, ": tensor '", name,
                 "' has dtype ", file.dtype_name(name));
  };
  const auto read = [&](const std::string& name, const Shape& shape, DType as) {
    require(name, shape, is_code_dtype(as));
    return file.read(name, as);
  };
  const auto in_codes = [&](const std::string& name) {
    return name == kEmbedding && file.has(name) && file.dtype_name(name) == "I8";
  };
  // The configuration may claim any size, so compare it with the tensors of the file before anything is allocated.
  for (const ParamSpec& spec : unpacked_specs(model.config)) require(spec.name, spec.shape, in_codes(spec.name));
  model.params = std::make_unique<ParamStore>(unpacked_specs(model.config), DType::f32);
  for (size_t i = 0; i < model.params->specs().size(); ++i) {
    const ParamSpec& spec = model.params->specs()[i];
    Tensor to = model.params->view(model.params->values(), i);
    if (in_codes(spec.name))
      dequantise_rows(read(spec.name, spec.shape, DType::i8), read(spec.name + ".scale", {spec.shape[0]}, DType::f32),
                      to);
    else
      cast(read(spec.name, spec.shape, DType::f32), to);
    check_finite(path + ": tensor '" + spec.name + "'", to);
  }
  model.lm = std::make_unique<LM>(*model.params, model.config);
  for (const ParamSpec& spec : parameter_specs(model.config)) {
    if (model.params->has(spec.name)) continue;
    const std::string name = spec.name.substr(0, spec.name.size() - std::strlen(".weight"));
    model.lm->for_each_projection([&](const BitLinear& p) {
      if (p.name != name) return;
      TernaryTensor& ternary = p.matrix->ternary;
      ternary.codes = read(name + ".codes", {spec.shape[0], ternary_row_bytes(spec.shape[1])}, DType::u8);
      ternary.scale = read(name + ".scale", {1}, DType::f32);
      ternary.cols = spec.shape[1];
      check_codes(path + ": tensor '" + name + ".codes'", ternary.codes);
      const float scale = ternary.scale.data<float>()[0];
      MMFREE_CHECK(DataError, std::isfinite(scale) && scale > 0, path, ": tensor '", name, ".scale' is ", scale,
                   ", expected a positive number");
    });
  }
  if (file.has("tokenizer.model")) {
    const std::vector<char> bytes = file.bytes("tokenizer.model");
    model.tokenizer = Tokenizer::from_bytes(std::string(bytes.begin(), bytes.end()), path);
  }
  return model;
}

void export_ternary(const std::string& path, const Model& model, EmbeddingStore embedding,
                    const std::function<void()>& before_tensor) {
  const auto same = [](const Tensor& a, const Tensor& b) {
    return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), size_t(a.bytes())) == 0;
  };
  write_ternary_file(path, model, embedding, before_tensor, [&](const std::string& written) {
    const Model loaded = read_ternary_file(written);
    const Tensor& table = (*model.params)[kEmbedding].value();
    Tensor loaded_table = (*loaded.params)[kEmbedding].value();
    MMFREE_CHECK(Error, same(loaded_table, rounded_embedding(table, embedding)), path,
                 ": the export's embedding differs from the model's; nothing was written");
    loaded_table.copy_from(table);
    if (model.config.tie_word_embeddings) loaded.lm->requantise();
    constexpr int64_t kRows = 4, kTokens = 256;
    Tensor ids({kTokens}, DType::i32);
    const RandomStream random(1, 0, "export check");
    for (int64_t i = 0; i < kTokens; ++i)
      ids.mut<int32_t>()[i] = int32_t(random.uniform(uint64_t(i)) * double(model.config.vocab_size));
    const Tensor expected = model.lm->logits(ids, kRows), got = loaded.lm->logits(ids, kRows);
    MMFREE_CHECK(Error, same(expected, got), path,
                 ": the export's logits differ from the model's; nothing was written");
  });
}

}  // namespace mmfree
