#pragma once
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/h5_repair.h"
#include "tests/support/temp_dir.h"

namespace mmfree {

/// Turns bytes of a file to zeros in their place, as a hole does. They begin where `values` are found.
template <class T>
void zero_out(const std::string& path, const std::vector<T>& values, size_t bytes) {
  const size_t at =
      slurp(path).find(std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
  ASSERT_NE(at, std::string::npos) << path;
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(std::streamoff(at))
      .write(std::string(bytes, '\0').data(), std::streamsize(bytes));
}

/// Bytes of a chunk of a series of T in a file, with HDF5's checksum, which is 0 for zeros.
template <class T>
constexpr size_t kChunkBytes = 32768 * sizeof(T) + 4;

/// Where HDF5's checksum of a block of metadata lies, and how many bytes it is over, itself taken as zeros if inside.
struct Checked {
  size_t block = 0, sum_at = 0, bytes = 0;
};

/// The block that holds byte `at`: part of an object header, or of a heap of attributes. `bytes` 0: not found.
inline Checked block_around(const std::string& content, size_t at) {
  constexpr size_t kSumInHeap = 18, kMostBytes = 1 << 16;
  Checked c;
  bool in_heap = false;
  for (const char* signature : {"OHDR", "OCHK", "FHDB"})
    if (const size_t found = content.rfind(signature, at); found != std::string::npos && found >= c.block)
      c.block = found, in_heap = std::string_view(signature) == "FHDB";
  const auto stored = [&](size_t place) { return *reinterpret_cast<const uint32_t*>(&content[place]); };
  std::string block = content.substr(c.block, kMostBytes);
  if (in_heap) std::memset(&block[kSumInHeap], 0, 4);
  for (size_t n = at + 4 - c.block; n + 4 <= block.size(); ++n) {
    const size_t sum_at = c.block + (in_heap ? kSumInHeap : n);
    if ((!in_heap || std::has_single_bit(n)) && lookup3(std::string_view(block).substr(0, n)) == stored(sum_at))
      return {c.block, sum_at, n};
  }
  return c;
}

/// Makes a shard one of an older mmfree: its table of sums gets a name that no reader looks for.
inline void take_sums_away(const std::string& path) {
  std::string content = slurp(path).substr(4096);
  int renamed = 0;
  for (size_t at = content.find("sums"); at != std::string::npos; at = content.find("sums", at + 1), ++renamed) {
    const Checked c = block_around(content, at);
    ASSERT_GT(c.bytes, 0u);
    std::memcpy(&content[at], "none", 4);
    if (c.sum_at < c.block + c.bytes) std::memset(&content[c.sum_at], 0, 4);
    const uint32_t right = lookup3(std::string_view(content).substr(c.block, c.bytes));
    std::memcpy(&content[c.sum_at], &right, 4);
  }
  ASSERT_EQ(renamed, 2);  // dataset and attribute
  spit(path, h5_file_of(content, "tokens"));
}

}  // namespace mmfree
