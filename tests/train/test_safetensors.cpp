#include <gtest/gtest.h>
#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"
#include "train/formats/safetensors.h"

namespace mmfree {
namespace {

/// A file from a header text and data bytes, written by hand.
std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

/// Value of a binary16 by its definition.
double f16_value(unsigned bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

TEST(F16, every_pattern_converts_exactly_both_ways) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    f16 h;
    h.bits = uint16_t(bits);
    const float x = h;
    const double truth = f16_value(bits);
    if (std::isnan(truth)) {
      EXPECT_TRUE(std::isnan(x)) << bits;
      EXPECT_TRUE(std::isnan(f16_value(f16(x).bits))) << bits;
      continue;
    }
    ASSERT_EQ(double(x), truth) << bits;
    ASSERT_EQ(std::signbit(x), std::signbit(truth)) << bits;
    ASSERT_EQ(f16(x).bits, bits);
  }
}

TEST(F16, rounds_to_nearest_even_at_and_beside_every_midpoint) {
  for (unsigned bits = 0; bits < 0x7c00; ++bits) {
    const double low = f16_value(bits), high = bits == 0x7bff ? 65536 : f16_value(bits + 1);
    const float middle = float((low + high) / 2);  // exact: at most 12 significant bits
    for (const float sign : {1.0f, -1.0f}) {
      const unsigned s = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(f16(sign * middle).bits, (bits % 2 ? bits + 1 : bits) | s) << bits;
      ASSERT_EQ(f16(sign * std::nextafter(middle, 0.0f)).bits, bits | s) << bits;
      ASSERT_EQ(f16(sign * std::nextafter(middle, 1e9f)).bits, (bits + 1) | s) << bits;
    }
  }
  EXPECT_EQ(f16(std::numeric_limits<float>::max()).bits, 0x7c00);
  EXPECT_EQ(f16(std::numeric_limits<float>::denorm_min()).bits, 0);
}

struct Case {
  const char* file_dtype;
  DType dtype;
};

class SafetensorsRoundTrip : public testing::TestWithParam<Case> {};

TEST_P(SafetensorsRoundTrip, keeps_every_bit) {
  const auto [file_dtype, dtype] = GetParam();
  TempDir dir;
  const std::vector<Shape> shapes = {{}, {0}, {1}, {3, 5}, {2, 0, 7}, {1, 3, 1, 5}, {70001}};
  std::vector<Tensor> tensors;
  SafetensorsWriter writer(dir / "x.safetensors", {{"format", "pt"}, {"note", "\"ü\n"}});
  for (const Shape& shape : shapes) {
    Tensor t(shape, dtype);
    for (int64_t i = 0; i < t.size(); ++i) {
      const int value = int((i * 37 + 11) % 97);
      if (dtype == DType::f64) t.mut<double>()[i] = 1e-300 * value - 1e-310;
      if (dtype == DType::f32) t.mut<float>()[i] = float(value) / (1 << 10) * (i % 2 ? -1 : 1);
      if (dtype == DType::bf16) t.mut<bf16>()[i] = bf16(float(value) * 1e30f);
      if (dtype == DType::i64) t.mut<int64_t>()[i] = INT64_MIN + value;
      if (dtype == DType::i32) t.mut<int32_t>()[i] = 300 * value - 20000;
      if (dtype == DType::i8) t.mut<int8_t>()[i] = int8_t(value - 128);
      if (dtype == DType::u8) t.mut<uint8_t>()[i] = uint8_t(value % (file_dtype == std::string("BOOL") ? 2 : 256));
    }
    tensors.push_back(t);
    writer.declare(concat("t", tensors.size()), file_dtype, shape);
  }
  for (size_t i = 0; i < tensors.size(); ++i) writer.write(concat("t", i + 1), tensors[i]);
  writer.commit();

  const SafetensorsReader reader(dir / "x.safetensors");
  EXPECT_EQ(reader.metadata().at("note"), "\"ü\n");
  ASSERT_EQ(reader.names().size(), shapes.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string name = concat("t", i + 1);
    EXPECT_EQ(reader.shape(name), shapes[i]);
    EXPECT_EQ(reader.dtype_name(name), file_dtype);
    const Tensor t = reader.read(name, dtype);
    ASSERT_EQ(t.shape(), shapes[i]);
    EXPECT_TRUE(t.bytes() == 0 || std::memcmp(t.raw(), tensors[i].raw(), size_t(t.bytes())) == 0) << name;
  }
  EXPECT_EQ(dir.files(), 1u) << "a temporary file was left behind";
}

INSTANTIATE_TEST_SUITE_P(AllDtypes, SafetensorsRoundTrip,
                         testing::Values(Case{"F64", DType::f64}, Case{"F32", DType::f32}, Case{"F16", DType::f32},
                                         Case{"BF16", DType::bf16}, Case{"I64", DType::i64}, Case{"I32", DType::i32},
                                         Case{"I16", DType::i32}, Case{"I8", DType::i8}, Case{"U8", DType::u8},
                                         Case{"BOOL", DType::u8}),
                         [](const auto& info) { return std::string(info.param.file_dtype); });

TEST(Safetensors, bytes_are_those_of_the_format) {
  TempDir dir;
  SafetensorsWriter writer(dir / "x", {});
  writer.declare("b", "I8", {3});
  writer.declare("a", "F32", {1, 1});
  const int8_t b[] = {1, -1, 127};
  const float a = 1.5f;
  writer.write("b", Tensor::from<int8_t>({3}, b));
  writer.write("a", Tensor::from<float>({1, 1}, &a));
  writer.commit();
  std::string header =
      R"({"b":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[3,7]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(slurp(dir / "x"), file_of(header, std::string("\x01\xff\x7f\x00\x00\xc0\x3f", 7)));
}

TEST(Safetensors, converts_between_floats_and_between_integers_and_refuses_the_rest) {
  TempDir dir;
  const double d[] = {1.0 + 0x1p-30, -65504.0, 0.1};
  const float big[] = {65520.0f};
  const int64_t i[] = {-1, 127};
  SafetensorsWriter writer(dir / "x");
  writer.declare("d64", "F64", {3});
  writer.declare("d16", "F16", {3});
  writer.declare("b16", "BF16", {3});
  writer.declare("big", "F32", {1});
  writer.declare("i", "I64", {2});
  for (const char* name : {"d64", "d16", "b16"}) writer.write(name, Tensor::from<double>({3}, d));
  writer.write("big", Tensor::from<float>({1}, big));
  EXPECT_THROW(writer.write("i", Tensor::from<double>({2}, d)), DTypeError);
  EXPECT_THROW(writer.write("i", Tensor::from<int64_t>({1}, i)), ShapeError);
  writer.write("i", Tensor::from<int64_t>({2}, i));
  writer.commit();
  const SafetensorsReader reader(dir / "x");
  EXPECT_EQ(reader.read("d64", DType::f64).data<double>()[0], 1.0 + 0x1p-30);
  EXPECT_EQ(reader.read("d64", DType::f32).data<float>()[2], 0.1f);
  EXPECT_EQ(reader.read("d16", DType::f64).data<double>()[1], -65504.0);
  EXPECT_EQ(reader.read("d16", DType::f32).data<float>()[2], 0x1.998p-4f);
  EXPECT_EQ(reader.read("b16", DType::f64).data<double>()[2], 0x1.9ap-4);
  EXPECT_EQ(reader.read("i", DType::i32).data<int32_t>()[0], -1);
  EXPECT_EQ(reader.read("i", DType::i8).data<int8_t>()[1], 127);
  EXPECT_THROW(reader.read("i", DType::u8), DataError);
  EXPECT_THROW(reader.read("i", DType::f32), DataError);
  EXPECT_THROW(reader.read("d64", DType::i32), DataError);
  EXPECT_THROW(reader.read("absent", DType::f32), DataError);
  EXPECT_EQ(reader.bytes("i"),
            std::vector<char>(reinterpret_cast<const char*>(i), reinterpret_cast<const char*>(i + 2)));

  SafetensorsWriter half(dir / "h");
  half.declare("big", "F16", {1});
  EXPECT_THROW(half.write("big", Tensor::from<float>({1}, big)), DataError);
}

constexpr const char* kOne = R"({"dtype":"U8","shape":[4],"data_offsets":[0,4]})";

/// {what is wrong, file bytes}
std::vector<std::pair<std::string, std::string>> malformed() {
  const auto entry = [](const std::string& body, const std::string& data = "abcd") {
    return file_of("{\"x\":" + body + "}", data);
  };
  const auto length = [](uint64_t n, const std::string& rest) {
    return std::string(reinterpret_cast<const char*>(&n), 8) + rest;
  };
  const std::string one = kOne;
  const auto with_size = [&](const std::string& shape, const std::string& dtype = "U8") {
    return entry(R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[0,4]})");
  };
  const auto offsets = [&](const std::string& o) {
    return entry(R"({"dtype":"U8","shape":[4],"data_offsets":)" + o + "}");
  };
  return {
      {"empty", ""},
      {"seven bytes", "1234567"},
      {"no header", length(0, "")},
      {"no header but data", length(0, "abcd")},
      {"header longer than the file", length(9, "{}")},
      {"header length 2^64-1", length(UINT64_MAX, "{}")},
      {"header length 2^63", length(uint64_t(1) << 63, "{}")},
      {"header of 100 MB and one byte", length(100'000'001, "{}")},
      {"leading space", file_of(" {}")},
      {"byte order mark", file_of("\xef\xbb\xbf{}")},
      {"a list", file_of("[]")},
      {"unclosed", file_of("{")},
      {"text after the header", file_of("{} x")},
      {"zero bytes after the header", file_of(std::string("{}\0\0", 4))},
      {"not UTF-8", file_of("{\"\xff\":" + one + "}", "abcd")},
      {"a lone surrogate", file_of(R"({"\ud800":)" + one + "}", "abcd")},
      {"same name twice", file_of("{\"x\":" + one + ",\"x\":" + one + "}", "abcd")},
      {"same key twice in an entry", entry(R"({"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]})")},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})")},
      {"metadata not an object", file_of(R"({"__metadata__":[]})")},
      {"metadata value not a string", file_of(R"({"__metadata__":{"a":1}})")},
      {"metadata nested", file_of(R"({"__metadata__":{"a":{}}})")},
      {"depth 17", file_of("{\"x\":" + std::string(16, '[') + std::string(16, ']') + "}")},
      {"depth 1000000", file_of("{\"x\":" + std::string(1'000'000, '['))},
      {"objects 100000 deep", file_of([] {
         std::string s;
         for (int i = 0; i < 100000; ++i) s += "{\"x\":";
         return s;
       }())},
      {"entry a list", entry("[]")},
      {"entry null", entry("null")},
      {"no dtype", entry(R"({"shape":[4],"data_offsets":[0,4]})")},
      {"no shape", entry(R"({"dtype":"U8","data_offsets":[0,4]})")},
      {"no offsets", entry(R"({"dtype":"U8","shape":[4]})")},
      {"one key too many", entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":0})")},
      {"dtype a number", entry(R"({"dtype":8,"shape":[4],"data_offsets":[0,4]})")},
      {"dtype unknown", with_size("[4]", "U9")},
      {"dtype in lower case", with_size("[4]", "u8")},
      {"shape a number", with_size("4")},
      {"shape negative", with_size("[-4]")},
      {"shape minus zero", with_size("[-0]")},
      {"shape a float", with_size("[4.0]")},
      {"shape a string", with_size("[\"4\"]")},
      {"shape above 2^64", with_size("[99999999999999999999999]")},
      {"shape of 2^63", with_size("[9223372036854775808]")},
      {"shape product wraps to 4", with_size("[4611686018427387905,4]")},
      {"shape x dtype wraps to 4", with_size("[4611686018427387905]", "F32")},
      {"zero hides an overflow", entry(R"({"dtype":"U8","shape":[4611686018427387904,4,0],"data_offsets":[0,0]})", "")},
      {"rank 9", with_size("[1,1,1,1,1,1,1,1,4]")},
      {"size too small", with_size("[3]")},
      {"size too large", with_size("[5]")},
      {"size of another dtype", with_size("[4]", "F32")},
      {"offsets a number", offsets("4")},
      {"one offset", offsets("[4]")},
      {"three offsets", offsets("[0,4,4]")},
      {"offsets negative", offsets("[-4,0]")},
      {"offsets swapped", offsets("[4,0]")},
      {"offsets beyond the file", offsets("[1,5]")},
      {"offsets near 2^64", offsets("[18446744073709551612,18446744073709551615]")},
      {"offsets start late", entry(R"({"dtype":"U8","shape":[3],"data_offsets":[1,4]})")},
      {"data after the last tensor", entry(one, "abcde")},
      {"data without tensors", file_of("{}", "a")},
      {"gap", file_of(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("y":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                      "abcd")},
      {"overlap", file_of(R"({"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                          R"("y":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                          "abcd")},
      {"two tensors on the same bytes", file_of("{\"x\":" + one + ",\"y\":" + one + "}", "abcd")},
  };
}

TEST(Safetensors, refuses_every_malformed_file_with_one_line_naming_it) {
  TempDir dir;
  const std::string path = dir / "bad.safetensors";
  spit(path, file_of("{\"x\":" + std::string(kOne) + "}  ", "abcd"));
  EXPECT_NO_THROW(SafetensorsReader{path}) << "the valid file that the others are made from";
  for (const auto& [what, bytes] : malformed()) {
    spit(path, bytes);
    try {
      SafetensorsReader reader(path);
      ADD_FAILURE() << what << " was accepted";
    } catch (const DataError& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.find(path), 0u) << what << ": " << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << what;
      EXPECT_LT(message.size(), 500u) << what;
      if (what.find("depth") == 0 || what.find("objects") == 0) {
        EXPECT_NE(message.find("deeper than 16"), std::string::npos) << what << ": " << message;
      }
    }
  }
}

TEST(Safetensors, refuses_every_truncation_and_survives_every_flipped_bit) {
  TempDir dir;
  SafetensorsWriter writer(dir / "x");
  writer.declare("weight", "F32", {3});
  writer.declare("empty", "F16", {0, 4});
  writer.declare("codes", "I8", {2, 2});
  for (const auto& [name, tensor] : {std::pair{"weight", Tensor::zeros({3}, DType::f32)},
                                     {"empty", Tensor::zeros({0, 4}, DType::f32)},
                                     {"codes", Tensor::zeros({2, 2}, DType::i8)}})
    writer.write(name, tensor);
  writer.commit();
  const std::string whole = slurp(dir / "x");
  for (size_t n = 0; n < whole.size(); ++n) {
    spit(dir / "cut", whole.substr(0, n));
    EXPECT_THROW(SafetensorsReader{dir / "cut"}, DataError) << n << " bytes";
  }
  for (size_t at = 0; at < whole.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[at] = char(flipped[at] ^ (1 << bit));
      spit(dir / "flip", flipped);
      try {
        const SafetensorsReader reader(dir / "flip");
        for (const std::string& name : reader.names()) reader.bytes(name);
      } catch (const DataError&) {
      }
    }
}

TEST(Safetensors, rank_five_is_listed_but_not_read) {
  TempDir dir;
  spit(dir / "x", file_of(R"({"x":{"dtype":"U8","shape":[1,1,2,1,2],"data_offsets":[0,4]}})", "abcd"));
  const SafetensorsReader reader(dir / "x");
  EXPECT_THROW(reader.shape("x"), DataError);
  EXPECT_THROW(reader.read("x", DType::u8), DataError);
  EXPECT_EQ(reader.bytes("x").size(), 4u);
}

TEST(Safetensors, missing_files_directories_and_shrinking_files) {
  TempDir dir;
  EXPECT_THROW(SafetensorsReader{dir / "absent"}, MissingError);
  EXPECT_THROW(SafetensorsReader{dir.path()}, DataError);
  EXPECT_THROW(SafetensorsReader{"/dev/zero"}, DataError);
  const std::string bytes = file_of("{\"x\":" + std::string(kOne) + "}", "abcd");
  spit(dir / "x", bytes);
  const SafetensorsReader reader(dir / "x");
  std::filesystem::resize_file(dir / "x", bytes.size() - 1);
  EXPECT_THROW(reader.read("x", DType::u8), DataError);
  EXPECT_THROW(reader.read("x", DType::i32), DataError);
}

TEST(SafetensorsWriter, keeps_the_old_file_until_commit) {
  TempDir dir;
  spit(dir / "x", "old");
  {
    SafetensorsWriter writer(dir / "x");
    writer.declare("a", "F32", {2});
    EXPECT_THROW(writer.declare("a", "F32", {2}), DataError);
    EXPECT_THROW(writer.declare("__metadata__", "F32", {2}), DataError);
    EXPECT_THROW(writer.declare("b", "F33", {2}), DataError);
    EXPECT_THROW(writer.commit(), Error) << "a is not written";
    EXPECT_THROW(writer.write("b", Tensor::zeros({2}, DType::f32)), Error);
    writer.write("a", Tensor::zeros({2}, DType::f32));
    EXPECT_THROW(writer.declare("c", "F32", {2}), Error);
  }
  EXPECT_EQ(slurp(dir / "x"), "old");
  EXPECT_EQ(dir.files(), 1u) << "a temporary file was left behind";
  EXPECT_THROW(SafetensorsWriter(dir / "no/such/folder"), CreateError);
  SafetensorsWriter bad_name(dir / "y");
  bad_name.declare("\xff", "F32", {});
  EXPECT_THROW(bad_name.write("\xff", Tensor::zeros({}, DType::f32)), DataError);
}

TEST(SafetensorsWriter, a_full_disk_is_an_io_error_and_keeps_the_old_file) {
  TempDir dir;
  spit(dir / "x", "old");
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  {
    SafetensorsWriter writer(dir / "x");
    writer.declare("a", "F64", {1000});
    EXPECT_THROW(writer.write("a", Tensor::zeros({1000}, DType::f32)), IoError);
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(slurp(dir / "x"), "old");
  EXPECT_EQ(dir.files(), 1u) << "a temporary file was left behind";
}

TEST(SafetensorsWriter, refuses_what_no_file_can_hold) {
  TempDir dir;
  SafetensorsWriter sum(dir / "sum");
  sum.declare("a", "U8", {int64_t(1) << 62});
  EXPECT_THROW(sum.declare("b", "U8", {int64_t(1) << 62}), DataError);
  SafetensorsWriter order(dir / "order");
  order.declare("a", "F32", {2});
  EXPECT_THROW(order.write("a", Tensor::zeros({3}, DType::f32)), ShapeError);
  order.write("a", Tensor::zeros({2}, DType::f32));
  EXPECT_THROW(order.write("a", Tensor::zeros({2}, DType::f32)), Error) << "all are written";
  SafetensorsWriter header(dir / "header", {{"text", std::string(100'000'000, 'x')}});
  header.declare("a", "F32", {});
  EXPECT_THROW(header.write("a", Tensor::zeros({}, DType::f32)), DataError);
}

TEST(Safetensors, no_tensors_at_all) {
  TempDir dir;
  SafetensorsWriter(dir / "x", {}).commit();
  EXPECT_EQ(slurp(dir / "x"), file_of("{}      "));
  EXPECT_TRUE(SafetensorsReader(dir / "x").names().empty());
}

TEST(Golden, sets_are_what_their_configs_say) {
  for (const std::string& dir : golden_dirs()) {
    const Golden golden(dir);
    const ModelConfig& c = golden.config;
    EXPECT_EQ(golden.model.metadata().at("format"), "pt");
    EXPECT_EQ(golden.model.shape("model.embeddings.weight"), (Shape{c.vocab_size, c.hidden_size})) << dir;
    const bool trained = golden.expected.has("train/ids");
    int64_t parameters = 0;
    for (const std::string& name : golden.model.names()) {
      parameters += golden.model.shape(name).size();
      EXPECT_EQ(golden.expected.shape("grad/" + name), golden.model.shape(name)) << dir;
      if (trained) {
        EXPECT_EQ(golden.expected.shape("final/" + name), golden.model.shape(name)) << dir;
      }
    }
    EXPECT_EQ(parameters, c.parameter_count()) << dir;
    const Tensor ids = golden.expected.read("input_ids", DType::i32);
    for (int64_t i = 0; i < ids.size(); ++i) EXPECT_LT(ids.data<int32_t>()[i], c.vocab_size);
    EXPECT_NEAR(golden.expected.read("loss", DType::f64).data<double>()[0], std::log(double(c.vocab_size)), 0.5) << dir;
  }
}

}  // namespace
}  // namespace mmfree
