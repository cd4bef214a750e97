#include "train/formats/gguf_types.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "train/formats/safetensors.h"

namespace mmfree {
namespace {

struct TypeInfo {
  GgmlType type;
  const char* name;
  int64_t group, bytes;
};

constexpr TypeInfo kTypes[] = {{GgmlType::f32, "F32", 1, 4},        {GgmlType::f16, "F16", 1, 2},
                               {GgmlType::bf16, "BF16", 1, 2},      {GgmlType::q8_0, "Q8_0", 32, 34},
                               {GgmlType::tq1_0, "TQ1_0", 256, 54}, {GgmlType::tq2_0, "TQ2_0", 256, 66},
                               {GgmlType::q2_0, "Q2_0", 64, 18}};

const TypeInfo& info_of(GgmlType t) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeInfo& i) { return i.type == t; });
}

float absmax(const float* x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::abs(x[i]));
  return most;
}

void put_f16(float x, uint8_t* out) {
  const f16 half(x);
  std::memcpy(out, &half.bits, 2);
}

float get_f16(const uint8_t* in) {
  f16 half;
  std::memcpy(&half.bits, in, 2);
  return half;
}

/// Code 0, 1 or 2 of a value; `inverse` is 1 / absmax of its group, or 0.
int ternary_code(float x, float inverse) { return int(std::lround(x * inverse)) + 1; }

float inverse_of(float d) { return d > 0 ? 1.0f / d : 0.0f; }

template <class T>
void pack_numbers(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const T value(x[i]);
    std::memcpy(out + i * int64_t(sizeof(T)), &value, sizeof(T));
  }
}

template <class T>
void unpack_numbers(const uint8_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, in + i * int64_t(sizeof(T)), sizeof(T));
    out[i] = value;
  }
}

void pack_q8_0(const float* x, uint8_t* out) {
  const float d = absmax(x, 32) / 127, inverse = inverse_of(d);
  put_f16(d, out);
  for (int i = 0; i < 32; ++i) out[2 + i] = uint8_t(int8_t(std::round(x[i] * inverse)));
}

void unpack_q8_0(const uint8_t* in, float* out) {
  const float d = get_f16(in);
  for (int i = 0; i < 32; ++i) out[i] = float(int8_t(in[2 + i])) * d;
}

void pack_tq2_0(const float* x, uint8_t* out) {
  const float d = absmax(x, 256), inverse = inverse_of(d);
  std::memset(out, 0, 64);
  for (int i = 0; i < 256; ++i)
    out[i / 128 * 32 + i % 32] |= uint8_t(ternary_code(x[i], inverse) << (i % 128 / 32 * 2));
  put_f16(d, out + 64);
}

void unpack_tq2_0(const uint8_t* in, float* out) {
  const float d = get_f16(in + 64);
  for (int i = 0; i < 256; ++i) out[i] = float((in[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1) * d;
}

void pack_q2_0(const float* x, uint8_t* out) {
  const float d = absmax(x, 64), inverse = inverse_of(d);
  put_f16(d, out);
  std::memset(out + 2, 0, 16);
  for (int i = 0; i < 64; ++i) out[2 + i / 4] |= uint8_t(ternary_code(x[i], inverse) << (i % 4 * 2));
}

void unpack_q2_0(const uint8_t* in, float* out) {
  const float d = get_f16(in);
  for (int i = 0; i < 64; ++i) out[i] = float((in[2 + i / 4] >> (i % 4 * 2) & 3) - 1) * d;
}

/// The parts of a TQ1_0 block: so many bytes with so many digits each. Byte m of a part holds the part's values
/// m, m + bytes, m + 2·bytes, …, the first one as the most significant digit.
struct DigitPart {
  int bytes, digits;
};
constexpr DigitPart kTq1Parts[] = {{32, 5}, {16, 5}, {4, 4}};
constexpr int kPow3[] = {1, 3, 9, 27, 81, 243};

/// A number below 243 as a fraction of 256, rounded up: multiplying by 3 then brings out digit after digit.
void pack_tq1_0(const float* x, uint8_t* out) {
  const float d = absmax(x, 256), inverse = inverse_of(d);
  for (const auto [bytes, digits] : kTq1Parts) {
    for (int m = 0; m < bytes; ++m) {
      int number = 0;
      for (int n = 0; n < digits; ++n) number = number * 3 + ternary_code(x[m + n * bytes], inverse);
      number *= kPow3[5 - digits];
      *out++ = uint8_t((number * 256 + 242) / 243);
    }
    x += bytes * digits;
  }
  put_f16(d, out);
}

void unpack_tq1_0(const uint8_t* in, float* out) {
  const float d = get_f16(in + 52);
  for (const auto [bytes, digits] : kTq1Parts) {
    for (int n = 0; n < digits; ++n)
      for (int m = 0; m < bytes; ++m) *out++ = float((uint8_t(in[m] * kPow3[n]) * 3 >> 8) - 1) * d;
    in += bytes;
  }
}

}  // namespace

const char* name_of(GgmlType t) { return info_of(t).name; }
int64_t group_size(GgmlType t) { return info_of(t).group; }
int64_t group_bytes(GgmlType t) { return info_of(t).bytes; }
bool is_ternary(GgmlType t) { return t == GgmlType::tq1_0 || t == GgmlType::tq2_0 || t == GgmlType::q2_0; }

GgmlType ggml_type_of(const std::string& name) {
  std::string known;
  for (const TypeInfo& info : kTypes) {
    if (name == info.name) return info.type;
    known += concat(' ', info.name);
  }
  throw UsageError(concat("GGUF type ", quote(name), ", expected one of", known));
}

void ggml_pack(GgmlType t, const float* x, int64_t n, uint8_t* out) {
  if (t == GgmlType::f32) return pack_numbers<float>(x, n, out);
  if (t == GgmlType::f16) return pack_numbers<f16>(x, n, out);
  if (t == GgmlType::bf16) return pack_numbers<bf16>(x, n, out);
  const auto pack = t == GgmlType::q8_0    ? pack_q8_0
                    : t == GgmlType::tq1_0 ? pack_tq1_0
                    : t == GgmlType::tq2_0 ? pack_tq2_0
                                           : pack_q2_0;
  const int64_t group = group_size(t), bytes = group_bytes(t);
  for (int64_t i = 0; i < n / group; ++i) pack(x + i * group, out + i * bytes);
}

void ggml_unpack(GgmlType t, const uint8_t* in, int64_t n, float* out) {
  if (t == GgmlType::f32) return unpack_numbers<float>(in, n, out);
  if (t == GgmlType::f16) return unpack_numbers<f16>(in, n, out);
  if (t == GgmlType::bf16) return unpack_numbers<bf16>(in, n, out);
  const auto unpack = t == GgmlType::q8_0    ? unpack_q8_0
                      : t == GgmlType::tq1_0 ? unpack_tq1_0
                      : t == GgmlType::tq2_0 ? unpack_tq2_0
                                             : unpack_q2_0;
  const int64_t group = group_size(t), bytes = group_bytes(t);
  for (int64_t i = 0; i < n / group; ++i) unpack(in + i * bytes, out + i * group);
}

}  // namespace mmfree
