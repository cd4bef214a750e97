#include "train/formats/ternary_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"
#include "core/rng.h"
#include "core/system/hash.h"
#include "layers/parameters.h"
#include "train/config/config.h"
#include "train/formats/safetensors.h"

namespace mmfree {
namespace {

constexpr const char* kEmbedding = "model.embeddings.weight";

/// One tensor of the file: its name, the dtype it is stored as, and its value.
struct Item {
  std::string name, dtype;
  Tensor value;
};

DType stored_dtype(const std::string& name) {
  return name == "U8" ? DType::u8 : name == "I8" ? DType::i8 : name == "BF16" ? DType::bf16 : DType::f32;
}

std::string file_dtype(DType t) {
  return t == DType::u8 ? "U8" : t == DType::i8 ? "I8" : t == DType::bf16 ? "BF16" : "F32";
}

bool is_code_dtype(DType t) { return t == DType::u8 || t == DType::i8; }

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
    if (spec.name != kEmbedding) {
      items.push_back({spec.name, "F32", value});
      continue;
    }
    const QuantTensor table = store_table(value, embedding);
    items.push_back({spec.name, file_dtype(table.values.dtype()), table.values});
    if (table.quantised()) items.push_back({spec.name + ".scale", file_dtype(table.scale.dtype()), table.scale});
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

Tensor as_stored(const Item& item) {
  const DType t = stored_dtype(item.dtype);
  if (item.value.dtype() == t) return item.value;
  Tensor stored(item.value.shape(), t);
  cast(item.value, stored);
  return stored;
}

void check_finite(const std::string& where, const Tensor& values) {
  bool ok = true;
  if (values.dtype() == DType::bf16) {
    const bf16* x = values.data<bf16>();
    ok = std::all_of(x, x + values.size(), [](bf16 v) { return std::isfinite(float(v)); });
  } else {
    const float* x = values.data<float>();
    ok = std::all_of(x, x + values.size(), [](float v) { return std::isfinite(v); });
  }
  MMFREE_CHECK(DataError, ok, where, " holds a value that is not finite; export the model again");
}

bool are_codes(const Tensor& codes) {
  const uint8_t* c = codes.data<uint8_t>();
  uint8_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < codes.size(); ++i) bad |= uint8_t(c[i] & (c[i] >> 1) & 0x55);
  return !bad;
}

/// Checks format, version and hash, and that codes are 0, 1 or 2. Returns the stored configuration.
RunConfig verified_config(const SafetensorsReader& file, const std::string& path, bool map) {
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
  std::string bad;  // codes are looked at while they are in the cache, but damage is reported first
  for (const std::string& name : file.names()) {
    const std::string& dtype = file.dtype_name(name);
    MMFREE_CHECK(DataError, dtype == "U8" || dtype == "I8" || dtype == "BF16" || dtype == "F32", path, ": tensor ",
                 quote(name), " has dtype ", dtype, ", expected U8, I8, BF16 or F32");
    const Tensor stored = map ? file.map(name, stored_dtype(dtype)) : file.read(name, stored_dtype(dtype));
    hash.add(name, dtype, stored);
    if (bad.empty() && name.ends_with(".codes") && dtype == "U8" && !are_codes(stored)) bad = name;
  }
  MMFREE_CHECK(DamagedError, hash.value() == meta("content_hash"), path,
               ": content does not match its hash: the file is damaged");
  MMFREE_CHECK(DataError, bad.empty(), path, ": tensor ", quote(bad),
               " holds a code that is not 0, 1 or 2: the file is damaged; export it again");
  return load_stored_config(meta("config"), path);
}

/// Reads the tensors of a file for a model of a configuration.
class TernaryReader {
 public:
  TernaryReader(const std::string& path, bool map)
      : file_(path), path_(path), map_(map), config_(verified_config(file_, path, map)) {}

  Model model() {
    Model m;
    m.kind = "ternary export";
    m.source = path_;
    m.config = config_.model;
    m.seq_len = config_.data.seq_len;
    m.framing = config_.data.framing.value_or(Framing::both);
    m.reset_state = config_.data.reset_state;
    read_parameters(m);
    m.lm->for_each_projection([&](const BitLinear& p) { read_matrix(p); });
    if (file_.has("tokenizer.model")) {
      const std::vector<char> bytes = file_.bytes("tokenizer.model");
      m.tokenizer = Tokenizer::from_bytes(std::string(bytes.begin(), bytes.end()), path_);
    }
    return m;
  }

 private:
  void require(const std::string& name, const Shape& shape, bool integers) const {
    MMFREE_CHECK(DataError, file_.has(name), path_, ": tensor '", name, "' is missing");
    MMFREE_CHECK(DataError, file_.shape(name) == shape, path_, ": tensor '", name, "' is ", file_.shape(name),
                 ", expected ", shape);
    MMFREE_CHECK(DataError, is_code_dtype(stored_dtype(file_.dtype_name(name))) == integers, path_, ": tensor '", name,
                 "' has dtype ", file_.dtype_name(name));
  }
  Tensor read(const std::string& name, const Shape& shape, DType as) const {
    require(name, shape, is_code_dtype(as));
    return map_ ? file_.map(name, as) : file_.read(name, as);
  }

  /// The embedding table [V, D] as it is stored; checked.
  QuantTensor table(const Shape& shape) const {
    MMFREE_CHECK(DataError, file_.has(kEmbedding), path_, ": tensor '", kEmbedding, "' is missing");
    const DType t = stored_dtype(file_.dtype_name(kEmbedding));
    const std::string scale = concat(kEmbedding, ".scale");
    QuantTensor out;
    if (t == DType::u8) {
      MMFREE_CHECK(DataError, shape[1] % 2 == 0, path_, ": tensor '", kEmbedding, "' is U8, so its width must be even");
      out.values = read(kEmbedding, {shape[0], shape[1] / 2}, t);
      out.scale = read(scale, {shape[0], (shape[1] + kTableGroup - 1) / kTableGroup}, DType::bf16);
      out.axis = ScaleAxis::group;
    } else if (t == DType::i8) {
      out = QuantTensor(read(kEmbedding, shape, t), read(scale, {shape[0]}, DType::f32), DType::f32);
    } else {
      out.values = read(kEmbedding, shape, t);
    }
    const Tensor& floats = out.quantised() ? out.scale : out.values;
    check_finite(concat(path_, ": tensor '", kEmbedding, out.quantised() ? ".scale'" : "'"), floats);
    return out;
  }

  /// Parameters that are values, and the model without its ternary matrices.
  void read_parameters(Model& m) {
    std::vector<ParamSpec> specs = unpacked_specs(m.config);
    const auto embedding =
        std::find_if(specs.begin(), specs.end(), [](const ParamSpec& spec) { return spec.name == kEmbedding; });
    const Shape shape = embedding->shape;
    // The configuration may claim any size, so compare it with the tensors of the file before anything is allocated.
    for (const ParamSpec& spec : specs)
      if (spec.name != kEmbedding) require(spec.name, spec.shape, false);
    QuantTensor stored = table(shape);
    if (map_) specs.erase(embedding);
    m.params = std::make_unique<ParamStore>(specs, DType::f32);
    for (size_t i = 0; i < specs.size(); ++i) {
      Tensor to = m.params->view(m.params->values(), i);
      if (specs[i].name == kEmbedding) {
        unpack(stored, to);
        continue;
      }
      cast(read(specs[i].name, specs[i].shape, DType::f32), to);
      check_finite(path_ + ": tensor '" + specs[i].name + "'", to);
    }
    if (!map_) stored = {};
    m.lm = std::make_unique<LM>(*m.params, m.config, DType::f32, BackwardProducts(), stored);
    if (map_ && m.config.tie_word_embeddings) fill_tied_head(m, stored, shape);
  }

  static void unpack(const QuantTensor& stored, Tensor& to) {
    Tensor ids({to.dim(0)}, DType::i32);
    for (int64_t i = 0; i < ids.size(); ++i) ids.mut<int32_t>()[i] = int32_t(i);
    stored_embedding(stored, ids, to);
  }

  static void fill_tied_head(const Model& m, const QuantTensor& stored, const Shape& shape) {
    Tensor table(shape, DType::f32);
    unpack(stored, table);
    BitLinear head = m.lm->parts().head;  // shares its matrix
    head.weight = Var(QuantTensor(table));
    head.prepare(DType::f32);
    if (head.precision == Precision::ternary) ternary_quantise(table, head.matrix->ternary);
    head.round();
  }

  void read_matrix(const BitLinear& p) const {
    if (p.precision != Precision::ternary || !p.owns_matrix()) return;
    for (const ProjectionSpec& spec : projections_) {
      if (spec.path != p.name) continue;
      const Shape shape = spec.matrix.shape();
      TernaryTensor& ternary = p.matrix->ternary;
      ternary.codes = read(p.name + ".codes", {shape[0], ternary_row_bytes(shape[1])}, DType::u8);
      ternary.scale = file_.read(p.name + ".scale", DType::f32);
      MMFREE_CHECK(DataError, ternary.scale.shape() == Shape({1}), path_, ": tensor '", p.name, ".scale' is ",
                   ternary.scale.shape(), ", expected [1]");
      ternary.cols = shape[1];
      const float scale = ternary.scale.data<float>()[0];
      MMFREE_CHECK(DataError, std::isfinite(scale) && scale > 0, path_, ": tensor '", p.name, ".scale' is ", scale,
                   ", expected a positive number");
    }
  }

  const SafetensorsReader file_;
  const std::string path_;
  const bool map_;
  const RunConfig config_;
  const std::vector<ProjectionSpec> projections_ = projections(config_.model);
};

}  // namespace

void verify_ternary_file(const std::string& path) { verified_config(SafetensorsReader(path), path, true); }

Tensor rounded_embedding(const Tensor& table, EmbeddingStore embedding) {
  Tensor ids({table.dim(0)}, DType::i32), back(table.shape(), DType::f32);
  for (int64_t i = 0; i < ids.size(); ++i) ids.mut<int32_t>()[i] = int32_t(i);
  stored_embedding(store_table(table, embedding), ids, back);
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

Model read_ternary_file(const std::string& path) { return TernaryReader(path, false).model(); }

Model map_ternary_file(const std::string& path) { return TernaryReader(path, true).model(); }

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
