#include "train/formats/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "core/ops/elementwise.h"
#include "core/rng.h"
#include "layers/parameters.h"
#include "train/formats/gguf_keys.h"

namespace mmfree {
namespace {

constexpr const char *kEmbedding = "model.embeddings.weight", *kHead = "lm_head.weight";

/// A tensor of the file: rows [begin, end) of one of ours.
struct Part {
  std::string name, ours;
  int64_t begin, end, cols;  ///< cols 0: a vector
  GgmlType type;
  bool ternary = false;
  int64_t head_rows = 0;  ///< of queries and keys with rotary pairs side by side: rows of a head; else 0

  Shape shape() const { return cols ? Shape{end - begin, cols} : Shape{end - begin}; }
};

/// llama.cpp's name of one of our tensors.
std::string llama_name(const std::string& ours) {
  static const std::map<std::string, std::string> names = {
      {kEmbedding, "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"},
      {kHead, "output.weight"},          {"attn_norm", "attn_norm"},
      {"mlp_norm", "ffn_norm"},          {"attn.q_proj", "attn_q"},
      {"attn.k_proj", "attn_k"},         {"attn.v_proj", "attn_v"},
      {"attn.o_proj", "attn_output"},    {"attn.sub_norm", "attn_sub_norm"},
      {"mlp.gate_proj", "ffn_gate"},     {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},     {"mlp.sub_norm", "ffn_sub_norm"}};
  const std::string layers = "model.layers.", end = ".weight";
  if (!ours.starts_with(layers)) return names.at(ours);
  const size_t dot = ours.find('.', layers.size());
  const std::string number = ours.substr(layers.size(), dot - layers.size());
  return "blk." + number + "." + names.at(ours.substr(dot + 1, ours.size() - dot - 1 - end.size())) + end;
}

/// The type to store rows of `cols` values: `wanted`, or the first one that their number divides by. A ternary matrix
/// loses nothing but its scale's rounding in any of them.
GgmlType fitting(GgmlType wanted, bool ternary, int64_t cols) {
  if (cols % group_size(wanted) == 0) return wanted;
  if (ternary && cols % group_size(GgmlType::q2_0) == 0) return GgmlType::q2_0;
  return cols % group_size(GgmlType::q8_0) == 0 ? GgmlType::q8_0 : GgmlType::f16;
}

/// The tensors of the file.
class Plan {
 public:
  Plan(const Model& model, const std::string& architecture, const GgufOptions& options)
      : model_(model), options_(options), own_names_(architecture == "hgrn_bit"), pairs_(architecture == "llama") {
    model.lm->for_each_projection([&](const BitLinear& p) { projections_[p.name + ".weight"] = &p; });
    for (const ParamSpec& spec : parameter_specs(model.config)) add(spec.name, spec.shape);
    const auto head = projections_.find(kHead);  // a tied one is the table, unless only its codes count
    if (head != projections_.end() && !head->second->owns_matrix() && head->second->precision == Precision::ternary)
      add(kHead, {model.config.vocab_size, model.config.hidden_size});
  }

  const std::vector<Part>& parts() const { return parts_; }
  const BitLinear* projection(const std::string& ours) const {
    const auto found = projections_.find(ours);
    return found == projections_.end() ? nullptr : found->second;
  }
  std::string fallback() const {
    std::string text;
    for (const auto& [what, count] : fallbacks_) text += concat(text.empty() ? "" : "; ", count, what);
    return text;
  }

  /// The part's values, f32.
  Tensor values(const Part& part) const {
    Tensor whole;
    if (part.ternary) {
      const TernaryTensor& t = projections_.at(part.ours)->matrix->ternary;
      whole = Tensor({t.rows(), t.cols}, DType::f32);
      ternary_dequantise(t, whole);
    } else {
      whole = (*model_.params)[part.ours].value();
    }
    return permuted(part, whole.slice(part.begin, part.end), true);
  }

  /// Rows of a head in the file's order, or with `to_file` false in ours: pair i of ours is rows i and i + W/2, of the
  /// file rows 2i and 2i + 1.
  static Tensor permuted(const Part& part, const Tensor& rows, bool to_file) {
    if (!part.head_rows) return rows;
    Tensor out(rows.shape(), DType::f32);
    const int64_t half = part.head_rows / 2;
    for (int64_t r = 0; r < rows.dim(0); ++r) {
      const int64_t in_head = r % part.head_rows, paired = r - in_head + in_head % half * 2 + in_head / half;
      const int64_t from = to_file ? r : paired, to = to_file ? paired : r;
      std::memcpy(out.mut<float>() + to * part.cols, rows.data<float>() + from * part.cols, size_t(part.cols) * 4);
    }
    return out;
  }

 private:
  void add(const std::string& ours, const Shape& shape) {
    const BitLinear* p = projection(ours);
    const bool ternary = p && p->precision == Precision::ternary;
    const bool matrix = p || ours == kEmbedding;
    GgmlType wanted = GgmlType::f32;
    if (matrix) wanted = ternary ? options_.ternary : options_.other.value_or(plain_type(ours, p));
    Part part{own_names_ ? ours : llama_name(ours), ours,   0,       shape[0],
              shape.rank() == 2 ? shape[1] : 0,     wanted, ternary, 0};
    part.type = fitting(wanted, ternary, shape[-1]);
    if (part.type != wanted)
      ++fallbacks_[concat(" of rows of ", shape[-1], " as ", name_of(part.type), " instead of ", name_of(wanted),
                          " (groups of ", group_size(wanted), ")")];
    const bool rotated = ours.ends_with(".q_proj.weight") || ours.ends_with(".k_proj.weight");
    if (pairs_ && rotated) part.head_rows = model_.config.layer(0).head_dim;
    const bool fused = !own_names_ && ours.ends_with(".gate_proj.weight") && model_.config.layer(0).fused_gate;
    if (!fused) return parts_.push_back(part);
    Part up = part;
    part.end = up.begin = shape[0] / 2;
    up.name.replace(up.name.find("ffn_gate"), 8, "ffn_up");
    parts_.push_back(part);
    parts_.push_back(up);
  }
  /// A tied head rounds the table for its product only; lookups use the table as it is.
  GgmlType plain_type(const std::string& ours, const BitLinear* p) const {
    return p && ours != kEmbedding && p->precision == Precision::bf16 ? GgmlType::bf16 : GgmlType::f32;
  }

  const Model& model_;
  const GgufOptions options_;
  bool own_names_, pairs_;
  std::map<std::string, const BitLinear*> projections_;
  std::map<std::string, int64_t> fallbacks_;
  std::vector<Part> parts_;
};

/// Relative rounding of values that are stored in this type, of one scale for ternary ones.
double rounding(GgmlType t) {
  switch (t) {
    case GgmlType::f32:
      return 0;
    case GgmlType::bf16:
      return 0x1p-8;
    case GgmlType::q8_0:
      return 0x1p-7;
    default:
      return 0x1p-11;
  }
}

/// Codes and scale of a matrix of which all values are −s, 0 or s. @throws DataError
TernaryTensor ternary_of(const std::string& where, const Tensor& values) {
  const int64_t n = values.size();
  const float* x = values.data<float>();
  float scale = 0;
  for (int64_t i = 0; i < n; ++i) scale = std::max(scale, std::abs(x[i]));
  std::vector<int8_t> codes(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    MMFREE_CHECK(DataError, x[i] == 0 || std::abs(x[i]) == scale, where, " holds ", x[i], " in a matrix of scale ",
                 scale, "; a ternary matrix has one scale");
    codes[size_t(i)] = int8_t((x[i] > 0) - (x[i] < 0));
  }
  TernaryTensor t = make_ternary(values.dim(0), values.dim(1), DType::f32);
  pack_ternary(codes.data(), values.dim(0), values.dim(1), t.codes.mut<uint8_t>());
  *t.scale.mut<float>() = scale;
  return t;
}

/// The model with the configuration of `model` and the values that `read` gives in the file's order.
Model rebuilt(const Model& model, const Plan& plan, const std::function<Tensor(const Part&)>& read) {
  std::map<std::string, int64_t> rows;  // of our tensors
  for (const Part& part : plan.parts()) rows[part.ours] = std::max(rows[part.ours], part.end);
  std::map<std::string, Tensor> whole;
  for (const Part& part : plan.parts()) {
    const Tensor values = Plan::permuted(part, read(part), false);
    MMFREE_CHECK(DataError, values.shape() == part.shape(), "tensor '", part.name, "' is ", values.shape(),
                 ", expected ", part.shape());
    Tensor& to = whole[part.ours];
    const int64_t all = rows[part.ours];
    if (!to.defined()) to = Tensor(part.cols ? Shape{all, part.cols} : Shape{all}, DType::f32);
    to.slice(part.begin, part.end).copy_from(values);
  }
  Model back;
  back.config = model.config;
  back.params = std::make_unique<ParamStore>(unpacked_specs(model.config), DType::f32);
  for (size_t i = 0; i < back.params->specs().size(); ++i)
    back.params->view(back.params->values(), i).copy_from(whole.at(back.params->specs()[i].name));
  back.lm = std::make_unique<LM>(*back.params, back.config);
  back.lm->for_each_projection([&](const BitLinear& p) {
    if (p.precision != Precision::ternary) return;
    p.matrix->ternary = ternary_of("tensor '" + p.name + "'", whole.at(p.name + ".weight"));
  });
  return back;
}

/// The part's values, each off by the most that its type rounds, up or down at random; a scale as a whole.
Tensor shaken(const Plan& plan, const Part& part) {
  const Tensor values = plan.values(part);
  const double by = rounding(part.type);
  if (by == 0) return values;
  const RandomStream random(1, 0, part.ours);
  Tensor out(values.shape(), DType::f32);
  for (int64_t i = 0; i < values.size(); ++i) {
    const double sign = random.uniform(part.ternary ? 0 : uint64_t(i)) < 0.5 ? -1 : 1;
    out.mut<float>()[i] = float(double(values.data<float>()[i]) * (1 + sign * by));
  }
  return out;
}

/// Whether |a − b| is what rounding to `t` may do to values of which `absmax` is the largest.
void check_values(const std::string& where, GgmlType t, const Tensor& expected, const Tensor& got) {
  const float *a = expected.data<float>(), *b = got.data<float>();
  float most = 0;
  for (int64_t i = 0; i < expected.size(); ++i) most = std::max(most, std::abs(a[i]));
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double allowed = rounding(t) * double(t == GgmlType::q8_0 ? most : std::abs(a[i]));
    MMFREE_CHECK(Error, std::abs(double(a[i]) - double(b[i])) <= allowed + (rounding(t) > 0 ? 0x1p-25 : 0), where,
                 ": holds ", b[i], " for ", a[i], "; nothing was written");
  }
}

/// ‖logits of `back` − those of `model`‖ / ‖those of `model`‖ for four sequences of 64 tokens.
double logit_difference(const Model& model, const Model& back) {
  constexpr int64_t kRows = 4, kTokens = 256;
  Tensor ids({kTokens}, DType::i32);
  const RandomStream random(1, 0, "export check");
  for (int64_t i = 0; i < kTokens; ++i)
    ids.mut<int32_t>()[i] = int32_t(random.uniform(uint64_t(i)) * double(model.config.vocab_size));
  const Tensor a = model.lm->logits(ids, kRows), b = back.lm->logits(ids, kRows);
  double error = 0, size = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double x = a.data<float>()[i], d = x - double(b.data<float>()[i]);
    error += d * d, size += x * x;
  }
  return error == 0 ? 0 : std::sqrt(error / size);
}

/// What rounding may do to the logits: the sum of all relative roundings, and four times what happens if each value and
/// scale is off by the most that its type rounds. Sharp attention and int8 activations make more of the same errors in
/// one model than in another, so the model itself is asked, as it came back from the file.
double allowed_difference(const Model& back, const Plan& plan) {
  double sum = 0;
  for (const Part& part : plan.parts()) sum += rounding(part.type);
  if (sum == 0) return 0;
  return sum + 4 * logit_difference(back, rebuilt(back, plan, [&](const Part& p) { return shaken(plan, p); }));
}

void check_written(const std::string& path, const std::string& written, const Model& model, const Plan& plan,
                   GgufReport& report) {
  const GgufReader file(written);
  const Model back = rebuilt(model, plan, [&](const Part& p) { return file.read(p.name); });
  std::map<std::string, Tensor> codes;
  back.lm->for_each_projection([&](const BitLinear& p) { codes[p.name + ".weight"] = p.matrix->ternary.codes; });
  int64_t expected = 0;
  for (const Part& part : plan.parts()) {
    const std::string where = concat(path, ": tensor '", part.name, "'");
    check_values(where, part.type, plan.values(part), file.read(part.name));
    const int64_t n = part.shape().size(), bytes = n / group_size(part.type) * group_bytes(part.type);
    expected += (bytes + 31) / 32 * 32;
    if (!part.ternary) continue;
    report.ternary_values += n, report.ternary_bytes += bytes;
    const Tensor &a = plan.projection(part.ours)->matrix->ternary.codes, &b = codes.at(part.ours);
    MMFREE_CHECK(Error, std::memcmp(a.raw(), b.raw(), size_t(a.bytes())) == 0, where,
                 ": holds other codes than the model; nothing was written");
  }
  const int64_t header = file.data_begin(), size = int64_t(std::filesystem::file_size(written));
  MMFREE_CHECK(Error, size == header + expected, path, ": has ", size, " bytes, expected ", header + expected,
               " by its types; nothing was written");
  report.bound = allowed_difference(back, plan);
  report.difference = logit_difference(model, back);
  MMFREE_CHECK(Error, report.difference <= report.bound, path, ": its logits differ from the model's by ",
               report.difference, " of their norm, more than the ", report.bound,
               " that rounding explains; nothing was written");
}

}  // namespace

GgufReport export_gguf(const std::string& path, const Model& model, const GgufOptions& options,
                       const std::function<void()>& before_tensor) {
  GgufReport report;
  report.architecture = gguf_architecture(model.config, model.source);
  const Plan plan(model, report.architecture, options);
  report.tensors = int64_t(plan.parts().size());
  report.fallback = plan.fallback();
  GgufKeys keys = gguf_keys(model, report.architecture, options.ternary, report.no_tokenizer);
  if (!report.fallback.empty()) keys.emplace_back("mmfree.fallback", GgufValue::text(report.fallback));
  std::vector<GgufTensor> tensors;
  for (const Part& part : plan.parts()) tensors.push_back({part.name, part.type, part.shape()});
  const auto bytes_of = [&](size_t i) {
    const Part& part = plan.parts()[i];
    return packed(concat(path, ": tensor '", part.name, "'"), part.type, plan.values(part));
  };
  keys.emplace_back(kGgufHash, GgufValue::text(gguf_hash(keys, tensors, bytes_of)));
  GgufWriter writer(path, keys);
  for (const GgufTensor& t : tensors) writer.declare(t.name, t.type, t.shape);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (before_tensor) before_tensor();
    writer.write(tensors[i].name, bytes_of(i));
  }
  check_written(path, writer.temporary_path(), model, plan, report);
  writer.commit();
  return report;
}

}  // namespace mmfree
