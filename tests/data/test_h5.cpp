#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <future>
#include <numeric>

#include "data/h5/h5.h"
#include "data/h5/session.h"
#include "tests/support/h5_repair.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

template <class T>
std::vector<T> ramp(int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = T(float(i % 251) - 3.0f);
  return v;
}

template <class T>
void expect_round_trip(const Shape& shape) {
  SCOPED_TRACE(concat(name_of(dtype_of<T>()), " ", shape));
  TempDir dir;
  const std::vector<T> values = ramp<T>(shape.size());
  h5::Writer writer(dir / "a.h5", "checkpoint");
  writer.write("param/layers.0/x", dtype_of<T>(), shape, values.data());
  writer.commit();
  const h5::Reader reader(dir / "a.h5", "checkpoint");
  EXPECT_EQ(reader.dtype("param/layers.0/x"), dtype_of<T>());
  const Tensor back = reader.read_tensor("param/layers.0/x", dtype_of<T>());
  ASSERT_EQ(back.shape(), shape);
  if (back.bytes()) {
    EXPECT_EQ(std::memcmp(back.raw(), values.data(), size_t(back.bytes())), 0);
  }
}

TEST(H5, EveryTypeAndShapeComesBack) {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{0}, Shape{3, 0}, Shape{7, 5}, Shape{3, 1, 5, 2}}) {
    expect_round_trip<double>(shape);
    expect_round_trip<float>(shape);
    expect_round_trip<bf16>(shape);
    expect_round_trip<int8_t>(shape);
    expect_round_trip<uint8_t>(shape);
    expect_round_trip<int32_t>(shape);
    expect_round_trip<int64_t>(shape);
  }
  expect_round_trip<float>({1031, 517});   // several chunks of whole rows, the last one short
  expect_round_trip<double>({3, 300007});  // rows longer than a chunk
  expect_round_trip<int8_t>({2, 3, 700001});
}

TEST(H5, SeriesGrowAndRowsReadAnywhere) {
  TempDir dir;
  h5::Writer writer(dir / "a.h5", "tokens");
  writer.create_series("tokens", h5::SeriesType::u16);
  writer.create_series("starts", h5::SeriesType::i64);
  writer.create_series("empty", h5::SeriesType::u32);
  std::vector<int32_t> all(100003);
  std::iota(all.begin(), all.end(), 0);
  for (int32_t& t : all) t %= 65536;
  for (size_t at = 0, step = 1; at < all.size(); at += step, step = step * 3 % 7001 + 1)
    writer.append("tokens", &all[at], int64_t(std::min(step, all.size() - at)));
  const int64_t start = int64_t(1) << 40;
  writer.append("starts", &start, 1);
  EXPECT_THROW(writer.append("missing", &start, 1), Error);
  writer.commit();

  const h5::Reader reader(dir / "a.h5", "tokens");
  EXPECT_EQ(reader.shape("tokens"), Shape({100003}));
  EXPECT_EQ(reader.shape("empty"), Shape({0}));
  EXPECT_EQ(reader.dtype("tokens"), DType::i32);
  EXPECT_EQ(reader.dtype("starts"), DType::i64);
  std::vector<int32_t> got(70000);
  reader.read("tokens", 30001, 70000, DType::i32, got.data());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), all.begin() + 30001));
  int64_t back = 0;
  reader.read("starts", 0, 1, DType::i64, &back);
  EXPECT_EQ(back, start);
  EXPECT_THROW(reader.read("tokens", 100000, 4, DType::i32, got.data()), ShapeError);
  EXPECT_THROW(reader.read("tokens", INT64_MAX, 4, DType::i32, got.data()), ShapeError);
  EXPECT_THROW(reader.read("tokens", 0, 4, DType::f32, got.data()), DataError);
  EXPECT_THROW(reader.shape("absent"), DataError);
}

TEST(H5, SeriesRefuseValuesTheyCannotHold) {
  TempDir dir;
  h5::Writer writer(dir / "a.h5", "tokens");
  writer.create_series("tokens", h5::SeriesType::u16);
  for (int32_t bad : {-1, 65536}) EXPECT_THROW(writer.append("tokens", &bad, 1), Error);
}

TEST(H5, AttributesAndNames) {
  TempDir dir;
  const std::string large(500000, 'x');
  h5::Writer writer(dir / "a.h5", "checkpoint");
  writer.attribute("config", large);
  writer.attribute("empty", "");
  writer.attribute("step", int64_t(-7));
  for (const char* name : {"param/b", "param/a", "optim/m/a", "x"}) writer.write(name, DType::i8, {1}, "q");
  writer.commit();
  const h5::Reader reader(dir / "a.h5", "checkpoint");
  EXPECT_EQ(reader.attribute_string("config"), large);
  EXPECT_EQ(reader.attribute_string("empty"), "");
  EXPECT_EQ(reader.attribute_int("step"), -7);
  EXPECT_THROW(reader.attribute_int("config"), DataError);
  EXPECT_THROW(reader.attribute_string("absent"), DataError);
  EXPECT_EQ(reader.names("param/"), (std::vector<std::string>{"param/a", "param/b"}));
  EXPECT_EQ(reader.names().size(), 4u);
  EXPECT_TRUE(reader.has("optim/m/a"));
  EXPECT_FALSE(reader.has("optim"));
}

TEST(H5, TensorsOfAnyRankAreWrittenInParts) {
  TempDir dir;
  const float half = 0.5f;
  const Tensor scalar = Tensor::from({}, &half), large = random_tensor({3000, 257}, DType::f32, 3);
  int64_t parts = 0, rows = 0;
  {
    h5::Writer writer(dir / "a.h5", "checkpoint");
    writer.write("scalar", scalar);
    writer.write("large", large, [&](const Tensor& part) {
      ++parts;
      rows += part.dim(0);
      EXPECT_LE(part.bytes(), 1 << 20);
    });
    writer.commit();
    h5::Writer refusing(dir / "b.h5", "checkpoint");
    EXPECT_THROW(refusing.write("large", large, [](const Tensor&) { throw DivergedError("no"); }), DivergedError);
  }
  EXPECT_EQ(parts, 3);
  EXPECT_EQ(rows, 3000);
  const h5::Reader reader(dir / "a.h5", "checkpoint");
  EXPECT_TRUE(same_bits(reader.read_tensor("scalar", DType::f32), scalar));
  EXPECT_TRUE(same_bits(reader.read_tensor("large", DType::f32), large));
}

TEST(H5, AFileThatBecomesShorterIsNoFileOfZeros) {
  TempDir dir;
  const Tensor large = random_tensor({3000, 1000}, DType::f32, 3);
  {
    h5::Writer writer(dir / "a.h5", "checkpoint");
    writer.write("large", large);
    writer.commit();
  }
  const h5::Reader reader(dir / "a.h5", "checkpoint");
  std::filesystem::resize_file(dir / "a.h5", 8192);
  try {
    reader.read_tensor("large", DType::f32);
    ADD_FAILURE() << "read";
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("read of a file that has become shorter failed"), std::string::npos)
        << e.what();
  }
}

std::string small_file(const TempDir& dir, const std::string& name, double value) {
  h5::Writer writer(dir / name, "checkpoint");
  writer.attribute("config", "depth: 2");
  const std::vector<double> values(300, value);
  writer.write("param/w", DType::f64, {20, 15}, values.data());
  writer.create_series("tokens", h5::SeriesType::u16);
  const std::vector<int32_t> tokens(40000, 7);
  writer.append("tokens", tokens.data(), int64_t(tokens.size()));
  writer.commit();
  EXPECT_EQ(writer.hash().size(), 32u);
  return dir / name;
}

TEST(H5, SameCallsSameBytes) {
  TempDir dir;
  EXPECT_EQ(slurp(small_file(dir, "a.h5", 1)), slurp(small_file(dir, "b.h5", 1)));
}

/// Changes one bit of byte `at`, whose value is `was`, for a scope.
class FlippedBit {
 public:
  FlippedBit(const std::string& path, size_t at, char was) : path_(path), at_(at), was_(was) {
    put(char(was ^ (1 << (at % 8))));
  }
  ~FlippedBit() { put(was_); }

 private:
  void put(char c) {
    std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary).seekp(std::streamoff(at_)).put(c);
  }
  std::string path_;
  size_t at_;
  char was_;
};

TEST(H5, EveryFlippedByteIsFound) {
  TempDir dir;
  h5::Writer writer(dir / "a.h5", "checkpoint");
  const std::vector<float> values(30, 1.5f);
  writer.write("param/w", DType::f32, {5, 6}, values.data());
  writer.attribute("step", int64_t(3));
  writer.commit();
  const std::string good = slurp(dir / "a.h5");
  for (size_t i = 0; i < good.size(); ++i) {
    const FlippedBit flipped(dir / "a.h5", i, good[i]);
    EXPECT_THROW(h5::Reader(dir / "a.h5", "checkpoint"), DataError) << "byte " << i;
    const auto read_and_verify = [&] {
      const h5::Reader reader(dir / "a.h5", "checkpoint", h5::Verify::while_reading);
      reader.read_tensor("param/w", DType::f32);
      reader.verify_content();
    };
    EXPECT_THROW(read_and_verify(), DataError) << "byte " << i;
  }
  // Without the hash, HDF5's own checksums and our checks stand alone: nothing may crash.
  for (size_t i = 4096; i < good.size(); ++i) {
    const FlippedBit flipped(dir / "a.h5", i, good[i]);
    try {
      const h5::Reader reader(dir / "a.h5", "checkpoint", h5::Verify::header);
      const Tensor back = reader.read_tensor("param/w", DType::f32);
      for (int64_t k = 0; k < back.size(); ++k) EXPECT_EQ(back.data<float>()[k], 1.5f) << "byte " << i;
    } catch (const Error&) {
    }
  }
}

TEST(H5, ContentIsVerifiedAtOpeningOnlyIfAskedAndElseAsItIsRead) {
  TempDir dir;
  const Tensor large = random_tensor({3000, 257}, DType::f32, 3);  // three chunks
  {
    h5::Writer writer(dir / "a.h5", "checkpoint");
    writer.write("large", large);
    writer.commit();
  }
  std::string bytes = slurp(dir / "a.h5");
  const size_t at = bytes.find(std::string(large.raw() + 257 * 4 * 2500, 64));  // in the last chunk
  ASSERT_NE(at, std::string::npos);
  bytes[at + 5] ^= 4;
  spit(dir / "a.h5", bytes);
  EXPECT_THROW(h5::Reader(dir / "a.h5", "checkpoint"), DataError);
  EXPECT_THROW(h5::Reader(dir / "a.h5", "checkpoint", h5::Verify::everything), DataError);
  const h5::Reader reader(dir / "a.h5", "checkpoint", h5::Verify::header);
  std::vector<float> rows(257 * 3000);
  reader.read("large", 0, 1000, DType::f32, rows.data());
  EXPECT_EQ(std::memcmp(rows.data(), large.raw(), 257 * 4 * 1000), 0);
  EXPECT_THROW(reader.read("large", 2500, 1, DType::f32, rows.data()), DataError);
  EXPECT_THROW(reader.read_tensor("large", DType::f32), DataError);
}

TEST(H5, ContentIsVerifiedInWhateverOrderItWasRead) {
  TempDir dir;
  const Tensor large = random_tensor({3000, 257}, DType::f32, 3);  // three chunks
  {
    h5::Writer writer(dir / "a.h5", "checkpoint");
    writer.write("first", large.slice(0, 2));
    writer.write("large", large);
    writer.write("last", large.slice(5, 900));
    writer.commit();
  }
  const std::string bytes = slurp(dir / "a.h5");
  const size_t in_large = bytes.find(std::string(large.raw() + 257 * 4 * 1500, 64));
  ASSERT_NE(in_large, std::string::npos);
  const std::vector<std::vector<std::pair<const char*, int64_t>>> orders = {{},
                                                                            {{"first", 0}, {"large", 0}, {"last", 0}},
                                                                            {{"last", 0}, {"first", 0}},
                                                                            {{"large", 2900}, {"large", 900}},
                                                                            {{"first", 0}, {"last", 800}}};
  for (const auto& order : orders) {
    const auto read_and_verify = [&] {
      const h5::Reader reader(dir / "a.h5", "checkpoint", h5::Verify::while_reading);
      for (const auto& [name, row] : order) {
        std::vector<float> to(257);
        reader.read(name, row, 1, DType::f32, to.data());
        const int64_t from = row + (std::string(name) == "last" ? 5 : 0);
        EXPECT_EQ(std::memcmp(to.data(), large.raw() + from * 257 * 4, 257 * 4), 0) << name;
      }
      reader.verify_content();
      reader.verify_content();  // again changes nothing
    };
    spit(dir / "a.h5", bytes);
    EXPECT_NO_THROW(read_and_verify());
    for (const size_t at : {in_large, bytes.size() - 1}) {
      const FlippedBit flipped(dir / "a.h5", at, bytes[at]);
      EXPECT_THROW(read_and_verify(), DataError) << "byte " << at;
    }
  }
}

TEST(H5, AnAbsentChunkIsNoChunkOfZeros) {
  TempDir dir;
  const std::vector<float> values(10, 1);
  h5::Writer writer(dir / "a.h5", "tokens");
  writer.write("x", DType::f32, {10}, values.data());
  writer.commit();
  std::string content = slurp(dir / "a.h5").substr(4096);
  // The layout's message: one chunk of 10 values of 4 bytes, its size, its mask of filters, its address.
  const size_t layout = content.find(std::string_view("\x04\x02\x02\x02\x01\x0a\x04\x01\x2c", 9));
  ASSERT_NE(layout, std::string::npos);
  const auto open = [&] {
    spit(dir / "a.h5", h5_file_of(repair_h5_checksums(content), "tokens"));
    return h5::Reader(dir / "a.h5", "tokens");
  };
  EXPECT_NO_THROW(open().read_tensor("x", DType::f32));
  std::string whole = content;
  content.replace(layout + 20, 8, 8, '\xff');
  EXPECT_THROW(open().read_tensor("x", DType::f32), DataError) << "nowhere";
  content = whole;
  content[layout + 8] = 40;
  EXPECT_THROW(open().read_tensor("x", DType::f32), DataError) << "stored without its last value";
}

/// HDF5 as one that is not thread-safe, for a scope.
class NeedsLock {
 public:
  NeedsLock() { h5::needs_lock() = true; }
  ~NeedsLock() { h5::needs_lock() = before_; }

 private:
  const bool before_ = h5::needs_lock();
};

template <class T>
bool is_done(const std::future<T>& task, int milliseconds) {
  return task.wait_for(std::chrono::milliseconds(milliseconds)) == std::future_status::ready;
}

TEST(H5, WhereTheLibraryIsNotThreadSafeOneThreadAtATimeIsInIt) {
  TempDir dir;
  const std::string path = small_file(dir, "a.h5", 1);
  const NeedsLock locked;
  const auto read = [&] { return h5::Reader(path, "checkpoint").attribute_string("config"); };
  std::future<std::string> other;
  {
    const h5::Session outer, nested;
    EXPECT_EQ(read(), "depth: 2") << "its own thread may go on";
    other = std::async(std::launch::async, read);
    EXPECT_FALSE(is_done(other, 50));
  }
  ASSERT_TRUE(is_done(other, 60000));
  EXPECT_EQ(other.get(), "depth: 2");
}

TEST(H5, AWriterLetsReadersInWhileItWaitsForItsRows) {
  TempDir dir;
  const std::string path = small_file(dir, "a.h5", 1);
  const NeedsLock locked;
  h5::Writer writer(dir / "b.h5", "checkpoint");
  int parts = 0;
  writer.write("large", random_tensor({3000, 257}, DType::f32, 3), [&](const Tensor&) {
    auto other = std::async(std::launch::async, [&] { return h5::Reader(path, "checkpoint").names().size(); });
    ASSERT_TRUE(is_done(other, 60000));
    EXPECT_EQ(other.get(), 3u);
    ++parts;
  });
  EXPECT_EQ(parts, 3);
}

TEST(H5, ThreadsReadAndWriteAtOnceUnderTheLock) {
  TempDir dir;
  const NeedsLock locked;
  const Tensor large = random_tensor({600, 257}, DType::f32, 3);
  std::vector<std::future<bool>> all;
  for (int i = 0; i < 4; ++i)
    all.push_back(std::async(std::launch::async, [&, i] {
      bool same = true;
      for (int round = 0; round < 5; ++round) {
        const std::string path = dir / concat(i, ".h5");
        h5::Writer writer(path, "checkpoint");
        writer.attribute("round", int64_t(round));
        writer.write("x", large);
        writer.commit();
        const h5::Reader reader(path, "checkpoint");
        same = same && reader.attribute_int("round") == round && same_bits(reader.read_tensor("x", DType::f32), large);
      }
      return same;
    }));
  for (auto& one : all) EXPECT_TRUE(one.get());
}

TEST(H5, TruncatedExtendedForeignAndMissingFiles) {
  TempDir dir;
  const std::string good = slurp(small_file(dir, "a.h5", 1));
  for (size_t n : {size_t(0), size_t(1), size_t(4095), size_t(4096), size_t(4097), good.size() / 2, good.size() - 1}) {
    spit(dir / "bad.h5", good.substr(0, n));
    EXPECT_THROW(h5::Reader(dir / "bad.h5", "checkpoint"), DataError) << n;
    EXPECT_THROW(h5::Reader(dir / "bad.h5", "checkpoint", h5::Verify::header), DataError) << n;
  }
  spit(dir / "bad.h5", good + "x");
  EXPECT_THROW(h5::Reader(dir / "bad.h5", "checkpoint"), DataError);
  spit(dir / "bad.h5", std::string(9000, 'z'));
  EXPECT_THROW(h5::Reader(dir / "bad.h5", "checkpoint"), DataError);
  EXPECT_THROW(h5::Reader(dir / "a.h5", "tokens"), DataError);
  EXPECT_THROW(h5::Reader(dir / "absent.h5", "tokens"), MissingError);
  EXPECT_THROW(h5::Reader(dir.path(), "tokens"), DataError);
}

TEST(H5, WithoutCommitNothingRemains) {
  TempDir dir;
  {
    h5::Writer writer(dir / "a.h5", "checkpoint");
    writer.write("x", DType::i8, {1}, "q");
    EXPECT_EQ(dir.files(), 1u);
  }
  EXPECT_EQ(dir.files(), 0u);
  EXPECT_THROW(h5::Writer(dir / "no/such/directory.h5", "checkpoint"), CreateError);
}

/// Caps the size of files this process may write: beyond it, write fails with EFBIG.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST(H5, FailedWritesLeaveTheOldFile) {
  TempDir dir;
  const std::string old = slurp(small_file(dir, "a.h5", 1));
  for (size_t limit = 0; limit < old.size(); limit += 509) {
    {
      const FileSizeLimit cap(limit);
      EXPECT_THROW(small_file(dir, "a.h5", 2), IoError) << limit;
    }
    ASSERT_EQ(slurp(dir / "a.h5"), old) << limit;
    ASSERT_EQ(dir.files(), 1u) << limit;
  }
  const FileSizeLimit cap(old.size());
  small_file(dir, "a.h5", 2);
  EXPECT_NE(slurp(dir / "a.h5"), old);
}

TEST(H5, WhatDoesNotFitIsRefused) {
  TempDir dir;
  h5::Writer writer(dir / "a.h5", "checkpoint");
  const bf16 half[3] = {bf16(1.0f), bf16(2.0f), bf16(3.0f)};
  writer.write("half", DType::bf16, {3}, half);
  writer.write("bytes", DType::u8, {3}, "abc");
  EXPECT_THROW(writer.write("bytes", DType::u8, {3}, "abc"), IoError) << "a name twice";
  writer.attribute("large", std::string(33 << 20, 'x'));
  writer.commit();
  const h5::Reader reader(dir / "a.h5", "checkpoint");
  int32_t out[3];
  EXPECT_THROW(reader.read("half", 0, 3, DType::i32, out), DataError);
  EXPECT_THROW(reader.read("bytes", -1, 1, DType::u8, out), ShapeError);
  EXPECT_THROW(reader.read("bytes", 0, -1, DType::u8, out), ShapeError);
  EXPECT_THROW(reader.attribute_string("large"), DataError);

  h5::Writer long_kind(dir / "b.h5", "a kind of 16 byt");
  EXPECT_THROW(long_kind.commit(), Error);
}

TEST(H5, AnotherVersionIsNamed) {
  TempDir dir;
  spit(dir / "a.h5", of_the_next_version(slurp(small_file(dir, "a.h5", 1))));
  try {
    h5::Reader(dir / "a.h5", "checkpoint");
    ADD_FAILURE() << "read";
  } catch (const VersionError& e) {
    EXPECT_NE(std::string(e.what()).find("format version 2"), std::string::npos) << e.what();
  }
}

TEST(H5, StructuresThatWriterNeverMakesAreRefusedBehindRightHashes) {
  TempDir dir;
  const std::vector<float> values(1000);
  h5::Writer writer(dir / "a.h5", "tokens");
  for (int i = 0; i < 20; ++i) writer.write(concat("param/", i), DType::f32, {10, 100}, values.data());
  writer.create_series("tokens", h5::SeriesType::u16);
  const std::vector<int32_t> tokens(40000, 7);
  writer.append("tokens", tokens.data(), int64_t(tokens.size()));
  writer.commit();
  const std::string good = slurp(dir / "a.h5").substr(4096);
  struct Case {
    std::string_view block;
    size_t at;
    int value;
    const char* message;
  };
  const std::string_view layout("\x03\x01\x0a\x64\x04"), unfiltered("\x04\x02\x02\x03\x01\x0a"),
      filter("\x02\x01\x03\x00", 4);
  const Case cases[] = {
      {"FRHP", 5, 9, "a heap with other parameters"},
      {"FRHP", 7, 1, "a heap with other parameters"},
      {"FRHP", 112, 1, "a heap with other parameters"},
      {"FRHP", 130, 2, "a heap with other parameters"},
      {"BTHD", 10, 4, "a tree with other parameters"},
      {"BTHD", 10, 33, "a tree with other parameters"},
      {"BTHD", 12, 9, "a tree with other parameters"},
      {"BTHD", 33, 0x7f, "a tree larger than the file"},
      {"EAHD", 6, 7, "an index of chunks with other"},
      {"EAHD", 6, 21, "an index of chunks with other"},
      {"FRHP", 120, 1, "a heap with other parameters"},
      {layout, 0, 1, "a chunked layout of unknown form"},
      {unfiltered, 2, 0, "is not stored in full"},
      {layout, 1, 9, "a chunked layout of unknown form"},
      {filter, size_t(-4), 0, "other filters than mmfree writes"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(concat(c.block, '+', int64_t(c.at), " = ", c.value));
    std::string bad = good;
    ASSERT_NE(bad.find(c.block), std::string::npos);
    bad[bad.find(c.block) + c.at] = char(c.value);
    spit(dir / "a.h5", h5_file_of(repair_h5_checksums(bad), "tokens"));
    try {
      const h5::Reader reader(dir / "a.h5", "tokens");
      for (const std::string& name : reader.names()) reader.read_tensor(name, reader.dtype(name));
      ADD_FAILURE() << "read";
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(c.message), std::string::npos) << e.what();
    }
  }
  spit(dir / "a.h5", h5_file_of(repair_h5_checksums(good), "tokens"));
  EXPECT_NO_THROW(h5::Reader(dir / "a.h5", "tokens"));
}

std::string refusal(const std::string& path) {
  try {
    h5::Reader(path, "tokens");
    return "read";
  } catch (const DataError& e) {
    return e.what();
  }
}

TEST(H5, WhatIsStoredOnceCountsOnce) {
  TempDir dir;
  // Thirty datasets with the storage of one.
  const std::string shared = slurp(source_dir() + "/tests/faults/seeds/shard/shared_storage");
  ASSERT_FALSE(shared.empty());
  spit(dir / "a.h5", h5_file_of(repair_h5_checksums(shared), "tokens"));
  EXPECT_NE(refusal(dir / "a.h5").find("shares its place with another"), std::string::npos) << refusal(dir / "a.h5");

  // A megabyte with a root group whose header goes on 26 thousand times in one and the same half megabyte.
  constexpr uint64_t kBytes = 1 << 20, kFirst = 524280, kContinuation = 20, kRoot = 48;
  std::string bomb = "\x89HDF\r\n\x1a\n";
  const auto put = [&](uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) bomb.push_back(char(value >> (8 * i)));
  };
  put(0x00080803, 4), put(4096, 8), put(~uint64_t(0), 8), put(4096 + kBytes, 8), put(kRoot, 8), put(0, 4);
  ASSERT_EQ(bomb.size(), kRoot);
  bomb += "OHDR";
  put(2, 1), put(2, 1), put(kFirst, 4);
  const uint64_t more = bomb.size() + kFirst + 4;
  for (uint64_t i = 0; i < kFirst / kContinuation; ++i)
    put(16, 1), put(16, 2), put(0, 1), put(more, 8), put(kBytes - more, 8);
  put(0, 4);  // a checksum
  bomb += "OCHK";
  bomb.resize(kBytes);
  spit(dir / "a.h5", h5_file_of(repair_h5_checksums(bomb), "tokens"));
  EXPECT_NE(refusal(dir / "a.h5").find("more headers than the file has room for"), std::string::npos)
      << refusal(dir / "a.h5");
}

TEST(H5, TheKindIsReadFromTheHeaderAlone) {
  TempDir dir;
  std::string bytes = slurp(small_file(dir, "a.h5", 1));
  EXPECT_EQ(h5::kind_of(dir / "a.h5"), "checkpoint");
  bytes.back() ^= 1;
  EXPECT_EQ(h5::kind_of(spit(dir / "b.h5", bytes)), "checkpoint");
  bytes[17] ^= 1;
  EXPECT_EQ(h5::kind_of(spit(dir / "b.h5", bytes)), "");
  EXPECT_EQ(h5::kind_of(spit(dir / "b.h5", "text")), "");
  EXPECT_THROW(h5::kind_of(dir.path()), DataError);
  EXPECT_THROW(h5::kind_of(dir / "absent"), MissingError);
}

}  // namespace
}  // namespace mmfree
