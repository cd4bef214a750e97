// GGUF: ggml's bytes to the bit, a reader that trusts nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/rng.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"
#include "train/formats/gguf.h"

namespace mmfree {
namespace {

/// Bytes that ggml's own C code made, see tests/golden/gguf/README.md.
std::string golden(const std::string& name) { return slurp(source_dir() + "/tests/golden/gguf/" + name); }

std::vector<float> golden_input() {
  const std::string bytes = golden("x_f32_8x1024.bin");
  std::vector<float> x(bytes.size() / 4);
  std::memcpy(x.data(), bytes.data(), bytes.size());
  return x;
}

std::string packed_text(GgmlType type, const std::vector<float>& x) {
  std::string out(x.size() / size_t(group_size(type)) * size_t(group_bytes(type)), '\xAA');
  ggml_pack(type, x.data(), int64_t(x.size()), reinterpret_cast<uint8_t*>(out.data()));
  return out;
}

std::vector<float> unpacked(GgmlType type, const std::string& bytes, size_t n) {
  std::vector<float> out(n, NAN);
  ggml_unpack(type, reinterpret_cast<const uint8_t*>(bytes.data()), int64_t(n), out.data());
  return out;
}

TEST(GgmlTypes, PacksAsGgmlDoesToTheByte) {
  const std::vector<float> x = golden_input();
  ASSERT_EQ(x.size(), 8u * 1024);
  EXPECT_EQ(packed_text(GgmlType::tq1_0, x), golden("tq1_0_8x1024.bin"));
  EXPECT_EQ(packed_text(GgmlType::tq2_0, x), golden("tq2_0_8x1024.bin"));
  EXPECT_EQ(packed_text(GgmlType::q8_0, x), golden("q8_0_8x1024.bin"));
}

TEST(GgmlTypes, UnpacksAsGgmlDoesToTheBit) {
  for (const auto& [type, name] : {std::pair{GgmlType::tq1_0, "tq1_0"}, {GgmlType::tq2_0, "tq2_0"}}) {
    const std::vector<float> x = unpacked(type, golden(std::string(name) + "_8x1024.bin"), 8 * 1024);
    const std::string expected = golden(std::string(name) + "_dequant_f32.bin");
    ASSERT_EQ(expected.size(), x.size() * 4);
    EXPECT_EQ(std::memcmp(x.data(), expected.data(), expected.size()), 0) << name;
  }
}

/// Written down from the definition: f16 d = 0.5, codes 0, 1, 2 (−d, 0, d) for neighbours, low bits first.
TEST(GgmlTypes, Q2HasTheBytesOfItsDefinition) {
  std::vector<float> x(64, 0.0f);
  x[0] = -0.5f, x[1] = 0.5f, x[6] = -0.5f, x[63] = 0.5f;
  std::string expected("\x00\x38", 2);
  expected += char(0b01'01'10'00);
  expected += char(0b01'00'01'01);
  expected += std::string(13, char(0b01'01'01'01));
  expected += char(0b10'01'01'01);
  EXPECT_EQ(packed_text(GgmlType::q2_0, x), expected);
  EXPECT_EQ(unpacked(GgmlType::q2_0, expected, 64), x);
  EXPECT_EQ(packed_text(GgmlType::q2_0, std::vector<float>(64, 0.0f)), std::string(2, '\0') + std::string(16, '\x55'));
}

TEST(GgmlTypes, TernaryValuesSurviveEveryType) {
  const RandomStream random(5, 0, "codes");
  std::vector<float> x(1024);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 0.625f * float(int(random.uniform(i) * 3) - 1);  // exact in each type
  for (const GgmlType type : kAllGgmlTypes) {
    const std::vector<float> back = unpacked(type, packed_text(type, x), x.size());
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(back[i], x[i], type == GgmlType::q8_0 ? 0.625 * 0x1p-11 : 0) << name_of(type) << " at " << i;
    EXPECT_EQ(ggml_type_of(name_of(type)), type);
  }
  EXPECT_EQ(bits_per_weight(GgmlType::tq1_0), 1.6875);
  EXPECT_EQ(bits_per_weight(GgmlType::tq2_0), 2.0625);
  EXPECT_EQ(bits_per_weight(GgmlType::q2_0), 2.25);
  EXPECT_THROW(ggml_type_of("Q4_K"), UsageError);
}

GgufKeys golden_keys() {
  return {{"general.architecture", GgufValue::text("matmulfree-test")},
          {"general.name", GgufValue::text("golden")},
          {"test.u32", GgufValue::u32(42)},
          {"test.f32", GgufValue::f32(1e-6f)},
          {"test.bool", GgufValue::boolean(true)},
          {"tokenizer.ggml.tokens", GgufValue::array(std::vector<std::string>{"<unk>", "<s>", "</s>"})},
          {"tokenizer.ggml.scores", GgufValue::array(std::vector<float>{0, -1.5f, -2.25f})}};
}

TEST(Gguf, WritesTheGoldenFileToTheByte) {
  const std::vector<float> x = golden_input();
  const Tensor values = Tensor::from({8, 1024}, x.data());
  const TempDir dir;
  GgufWriter writer(dir / "x.gguf", golden_keys());
  const std::pair<const char*, GgmlType> tensors[] = {{"t.f32", GgmlType::f32},
                                                      {"t.f16", GgmlType::f16},
                                                      {"t.tq1_0", GgmlType::tq1_0},
                                                      {"t.tq2_0", GgmlType::tq2_0},
                                                      {"t.q8_0", GgmlType::q8_0}};
  for (const auto& [name, type] : tensors) writer.declare(name, type, {8, 1024});
  for (const auto& [name, type] : tensors) writer.write(name, packed("test", type, values));
  writer.commit();
  EXPECT_EQ(slurp(dir / "x.gguf"), golden("golden.gguf"));
}

TEST(Gguf, ReadsTheGoldenFile) {
  const GgufReader file(source_dir() + "/tests/golden/gguf/golden.gguf");
  const GgufKeys expected = golden_keys();
  ASSERT_EQ(file.keys().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(file.keys()[i].first, expected[i].first);
    EXPECT_EQ(file.keys()[i].second.serialized(), expected[i].second.serialized());
  }
  EXPECT_EQ(file.find("test.u32")->shown(), "42");
  EXPECT_EQ(file.find("test.bool")->shown(), "true");
  EXPECT_EQ(file.find("tokenizer.ggml.tokens")->shown(), "3 of string");
  EXPECT_EQ(file.text("general.name"), "golden");
  ASSERT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.tensor("t.q8_0").shape, (Shape{8, 1024}));
  const std::vector<float> x = golden_input();
  EXPECT_EQ(std::memcmp(file.read("t.f32").raw(), x.data(), x.size() * 4), 0);
  EXPECT_THROW(file.tensor("t"), DataError);
  EXPECT_THROW(verify_gguf(file.path()), DataError);  // another program's
}

/// A small file, of which each of the first bytes matters.
std::string small_file(const std::string& path) {
  GgufWriter writer(path, {{"a", GgufValue::u32(7)}, {"b", GgufValue::array(std::vector<std::string>{"x", ""})}});
  writer.declare("t", GgmlType::f32, {2, 3});
  const float x[] = {1, 2, 3, 4, 5, 6};
  writer.write("t", packed("t", GgmlType::f32, Tensor::from({2, 3}, x)));
  writer.commit();
  return slurp(path);
}

std::string refusal(const TempDir& dir, const std::string& bytes) {
  try {
    const GgufReader file(spit(dir / "bad.gguf", bytes));
    for (const GgufTensor& t : file.tensors()) file.read(t.name);
    return "";
  } catch (const DataError& e) {
    return e.what();
  }
}

TEST(Gguf, EveryCutAndFlippedByteIsRefusedInOneLineOrRead) {
  const TempDir dir;
  const std::string good = small_file(dir / "good.gguf");
  EXPECT_EQ(refusal(dir, good), "");
  for (size_t n = 0; n < good.size() - 8; ++n) {  // the last 8 bytes are padding
    const std::string why = refusal(dir, good.substr(0, n));
    EXPECT_NE(why, "") << n;
    EXPECT_EQ(why.find('\n'), std::string::npos) << why;
  }
  for (size_t i = 0; i < good.size(); ++i)
    for (const int bit : {0, 7}) {
      std::string bad = good;
      bad[i] = char(bad[i] ^ (1 << bit));
      EXPECT_EQ(refusal(dir, bad).find('\n'), std::string::npos) << i;
    }
}

TEST(Gguf, SaysWhatIsWrong) {
  const TempDir dir;
  const std::string good = small_file(dir / "good.gguf");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string bad = good;
    const size_t at = bad.find(from);
    EXPECT_NE(at, std::string::npos);
    return bad.replace(at, to.size(), to);
  };
  const auto number = [](uint64_t n, size_t size) { return std::string(reinterpret_cast<const char*>(&n), size); };
  const auto expect = [&](const std::string& bytes, const std::string& part) {
    EXPECT_NE(refusal(dir, bytes).find(part), std::string::npos) << refusal(dir, bytes) << "\nexpected: " << part;
  };
  const std::string key = number(1, 8) + "b", tensor = number(1, 8) + "t";
  expect("GGML" + good.substr(4), "is no GGUF file");
  expect(changed("GGUF" + number(3, 4), "GGUF" + number(2, 4)), "GGUF of version 2");
  expect(changed("GGUF" + number(3, 4), "GGUF" + number(3, 4) + number(1ull << 60, 8)), "too many");
  expect(changed(key, number(1, 8) + "a"), "is there twice");
  expect(changed(key, number(1ull << 40, 8)), "claims 1099511627776 bytes");
  expect(changed(key, key + number(13, 4)), "has values of type 13");
  expect(changed(key, key + number(9, 4) + number(9, 4)), "an array of arrays");
  expect(changed(key, key + number(9, 4) + number(8, 4) + number(1ull << 50, 8)), "more than the rest of the file");
  expect(changed(tensor, tensor + number(9, 4)), "has 9 dimensions");
  expect(changed(tensor, tensor + number(2, 4) + number(0, 8)), "has an extent of 0");
  expect(changed(tensor, tensor + number(2, 4) + number(1ull << 62, 8) + number(1ull << 62, 8)), "is no shape");
  expect(changed(tensor, tensor + number(2, 4) + number(3, 8) + number(2, 8) + number(12, 4)), "has type 12");
  expect(changed(tensor, tensor + number(2, 4) + number(3, 8) + number(2, 8) + number(35, 4)), "groups of 256");
  expect(changed(tensor, tensor + number(2, 4) + number(3, 8) + number(2, 8) + number(0, 4) + number(32, 8)),
         "data start at 32, expected 0");
  std::string nan = good;
  nan.replace(nan.size() - 32, 4, "\xFF\xFF\xFF\x7F");
  expect(nan, "not finite");
}

TEST(Gguf, WriterRefusesWhatTheFormatCannotHold) {
  const TempDir dir;
  GgufWriter writer(dir / "x.gguf", {});
  writer.declare("a", GgmlType::tq2_0, {2, 256});
  EXPECT_THROW(writer.declare("a", GgmlType::f32, {2}), DataError);
  EXPECT_THROW(writer.declare("b", GgmlType::tq2_0, {2, 255}), DataError);
  EXPECT_THROW(writer.declare(std::string(64, 'n'), GgmlType::f32, {2}), DataError);
  EXPECT_THROW(writer.write("a", std::vector<uint8_t>(131)), ShapeError);
  const float big[] = {1e5f, 0};
  EXPECT_THROW(packed("t", GgmlType::f16, Tensor::from({2}, big)), DataError);
  EXPECT_EQ(packed("t", GgmlType::f32, Tensor::from({2}, big)).size(), 8u);
  const float bad[] = {NAN, 0};
  EXPECT_THROW(packed("t", GgmlType::f32, Tensor::from({2}, bad)), DataError);
  EXPECT_EQ(dir.files(), 1u);  // the temporary one
}

}  // namespace
}  // namespace mmfree
