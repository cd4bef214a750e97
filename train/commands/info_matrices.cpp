#include "train/commands/info_matrices.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/system/console.h"
#include "train/formats/gguf.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

void print_matrix(const std::string& name, const Shape& shape, const std::string& stored, int64_t bytes,
                  const std::string& note) {
  console::out.format("  %-42s %6lld x %-6lld %-8s %11s%s\n", name.c_str(), static_cast<long long>(shape[0]),
                      static_cast<long long>(shape[1]), stored.c_str(), format_bytes(uint64_t(bytes)).c_str(),
                      note.c_str());
}

std::string ternary_note(int64_t not_zero, int64_t all, double least, double largest) {
  char text[96];
  const double density = all ? 100.0 * double(not_zero) / double(all) : 0;
  if (least == largest)
    std::snprintf(text, sizeof text, "  density %5.1f %%  scale %.6g", density, largest);
  else
    std::snprintf(text, sizeof text, "  density %5.1f %%  scales %.6g to %.6g", density, least, largest);
  return text;
}

std::string note_of(const TernaryTensor& t) {
  Tensor weights({t.rows(), t.cols}, DType::f32);
  ternary_dequantise(t, weights, false);
  const float* w = weights.data<float>();
  const double scale = host_f32(t.scale).data<float>()[0];
  return ternary_note(weights.size() - std::count(w, w + weights.size(), 0.0f), weights.size(), scale, scale);
}

std::string note_of(const Tensor& values) {
  const float* x = values.data<float>();
  double least = INFINITY, largest = 0;
  int64_t not_zero = 0;
  for (int64_t i = 0; i < values.size(); ++i)
    if (const double size = std::abs(double(x[i])); size > 0)
      ++not_zero, least = std::min(least, size), largest = std::max(largest, size);
  return ternary_note(not_zero, values.size(), std::min(least, largest), largest);
}

}  // namespace

void print_matrices(const Model& model) {
  model.lm->for_each_projection([](const BitLinear& p) {
    const WeightMatrix& w = *p.matrix;
    const int64_t bytes = w.is_ternary() ? w.ternary.codes.bytes() + w.ternary.scale.bytes() : w.plain.bytes();
    print_matrix(p.name, {w.rows(), w.cols()}, name_of(p.precision), bytes, w.is_ternary() ? note_of(w.ternary) : "");
  });
}

void print_gguf_matrices(const std::string& path) {
  const GgufReader file(path);
  for (const GgufTensor& t : file.tensors())
    if (t.shape.rank() == 2)
      print_matrix(t.name, t.shape, name_of(t.type), t.bytes, is_ternary(t.type) ? note_of(file.read(t.name)) : "");
  if (!file.find(kGgufHash)) return;
  verify_gguf(path);
  console::out.format("hash        %s, verified\n", file.text(kGgufHash).c_str());
}

}  // namespace mmfree
