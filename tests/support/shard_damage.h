#pragma once
#include <gtest/gtest.h>

#include <algorithm>
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

/// Makes a shard one of an older mmfree: its table of sums gets a name that no reader looks for.
inline void take_sums_away(const std::string& path) {
  std::string content = slurp(path).substr(4096);
  int renamed = 0;
  for (size_t at = content.find("sums"); at != std::string::npos; at = content.find("sums", at + 1), ++renamed) {
    // The part of an object header that holds the name.
    size_t block = 0;
    for (const char* signature : {"OHDR", "OCHK"})
      if (const size_t found = content.rfind(signature, at); found != std::string::npos) block = std::max(block, found);
    ASSERT_GT(block, 0u);
    const auto sum = [&](size_t end) { return lookup3(std::string_view(content).substr(block, end - block)); };
    const auto is_end = [&](size_t end) { return sum(end) == *reinterpret_cast<const uint32_t*>(&content[end]); };
    size_t end = at + 4;
    while (end + 4 < content.size() && !is_end(end)) ++end;
    ASSERT_LT(end + 4, content.size());
    std::memcpy(&content[at], "none", 4);
    const uint32_t right = sum(end);
    std::memcpy(&content[end], &right, 4);
  }
  ASSERT_EQ(renamed, 2);  // dataset and attribute
  spit(path, h5_file_of(content, "tokens"));
}

}  // namespace mmfree
