#pragma once
#include <cstdint>
#include <string>
#include <vector>

/// The block types of ggml that mmfree reads and writes. A row is divided into groups; each group is packed by itself.
/// Source: ggml (https://github.com/ggml-org/ggml), src/ggml-common.h and src/ggml-quants.c at d99724f2b141.
namespace mmfree {

/// ggml's numbers.
///   F32, F16, BF16  one number each
///   Q8_0   32 values in 34 bytes: f16 d, i8 q[32]; value = q·d, d = absmax / 127
///   TQ1_0  256 values in 54 bytes: base-3 digits, five per byte (of the last 16 values four), then f16 d
///   TQ2_0  256 values in 66 bytes: 2-bit codes, byte m of 32 holds values m, m+32, m+64, m+96, low bits first; f16 d
///   Q2_0   64 values in 18 bytes: f16 d, then 2-bit codes of four neighbours per byte, low bits first
/// In the last three value = (code − 1)·d, code in {0, 1, 2}, d = absmax of the group.
enum class GgmlType : uint32_t { f32 = 0, f16 = 1, q8_0 = 8, bf16 = 30, tq1_0 = 34, tq2_0 = 35, q2_0 = 42 };

inline constexpr GgmlType kAllGgmlTypes[] = {GgmlType::f32,   GgmlType::f16,   GgmlType::bf16, GgmlType::q8_0,
                                             GgmlType::tq1_0, GgmlType::tq2_0, GgmlType::q2_0};

/// "TQ2_0".
const char* name_of(GgmlType t);
/// The type of this name. @throws UsageError naming those there are
GgmlType ggml_type_of(const std::string& name);
/// Values of a group, and its bytes.
int64_t group_size(GgmlType t);
int64_t group_bytes(GgmlType t);
inline double bits_per_weight(GgmlType t) { return 8.0 * double(group_bytes(t)) / double(group_size(t)); }
/// Whether it holds three values per group and no others.
bool is_ternary(GgmlType t);

/// Packs n values as ggml's reference quantiser does, n a multiple of group_size: bytes [n / group_size · group_bytes].
/// Values must be finite; a scale beyond f16's range becomes infinite.
void ggml_pack(GgmlType t, const float* x, int64_t n, uint8_t* out);
/// The values of packed bytes. Any bytes are read; an infinite scale gives values that are not finite.
void ggml_unpack(GgmlType t, const uint8_t* in, int64_t n, float* out);

}  // namespace mmfree
