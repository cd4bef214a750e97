#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "core/system/hash.h"

/// Makes all hashes of a changed h5 file right again, as an attacker would, so that what lies behind them is reached.
namespace mmfree {

/// Bob Jenkins' lookup3 (little-endian), HDF5's checksum of metadata.
inline uint32_t lookup3(std::string_view bytes) {
  const auto word = [&](size_t at) {
    uint32_t w = 0;
    std::memcpy(&w, bytes.data() + at, std::min<size_t>(4, at < bytes.size() ? bytes.size() - at : 0));
    return w;
  };
  uint32_t a = 0xdeadbeef + uint32_t(bytes.size()), b = a, c = a;
  size_t at = 0;
  for (; bytes.size() - at > 12; at += 12) {
    a += word(at), b += word(at + 4), c += word(at + 8);
    a -= c, a ^= std::rotl(c, 4), c += b;
    b -= a, b ^= std::rotl(a, 6), a += c;
    c -= b, c ^= std::rotl(b, 8), b += a;
    a -= c, a ^= std::rotl(c, 16), c += b;
    b -= a, b ^= std::rotl(a, 19), a += c;
    c -= b, c ^= std::rotl(b, 4), b += a;
  }
  if (at == bytes.size()) return c;
  a += word(at);
  if (at + 4 < bytes.size()) b += word(at + 4);
  if (at + 8 < bytes.size()) c += word(at + 8);
  c ^= b, c -= std::rotl(b, 14);
  a ^= c, a -= std::rotl(c, 11);
  b ^= a, b -= std::rotl(a, 25);
  c ^= b, c -= std::rotl(b, 16);
  a ^= c, a -= std::rotl(c, 4);
  b ^= a, b -= std::rotl(a, 14);
  c ^= b, c -= std::rotl(b, 24);
  return c;
}

/// Bytes before the checksum of the block of HDF5 metadata at the start of `b`; 0 if there is none that is known.
inline size_t checked_bytes_of_block(std::string_view b) {
  struct Block {
    std::string_view signature;
    size_t bytes;
  };
  static constexpr Block blocks[] = {{"\x89HDF", 44}, {"FAHD", 24}, {"EAHD", 68}, {"FRHP", 142}, {"BTHD", 34}};
  for (const Block& block : blocks)
    if (b.starts_with(block.signature)) return block.bytes;
  if (!b.starts_with("OHDR") || b.size() < 6) return 0;
  const unsigned flags = static_cast<unsigned char>(b[5]);
  size_t at = 6 + (flags & 0x20 ? 16 : 0) + (flags & 0x10 ? 4 : 0);
  const size_t width = size_t(1) << (flags & 3);
  if (at + width > b.size()) return 0;
  uint64_t chunk = 0;
  std::memcpy(&chunk, b.data() + at, width);
  return chunk < b.size() ? at + width + chunk : 0;
}

/// `content`, what follows the user block, with the checksums of those blocks of HDF5 metadata made right whose extent
/// is known.
inline std::string repair_h5_checksums(std::string content) {
  for (size_t at = 0; at + 8 < content.size(); ++at) {
    const std::string_view rest = std::string_view(content).substr(at);
    const size_t n = checked_bytes_of_block(rest);
    if (n == 0 || n + 4 > rest.size()) continue;
    const uint32_t sum = lookup3(rest.substr(0, n));
    std::memcpy(&content[at + n], &sum, 4);
  }
  return content;
}

/// `content` behind a user block whose size and hashes fit it.
inline std::string h5_file_of(const std::string& content, const std::string& kind) {
  std::string file(4096, '\0');
  const uint32_t version = 1;
  const uint64_t size = file.size() + content.size();
  Hash128 hash;
  hash.update(content.data(), content.size());
  const std::array<uint64_t, 2> sum = hash.digest();
  std::memcpy(&file[0], "MMFREEH5", 8);
  std::memcpy(&file[8], &version, 4);
  std::memcpy(&file[16], kind.data(), kind.size());
  std::memcpy(&file[32], &size, 8);
  std::memcpy(&file[40], sum.data(), 16);
  const uint64_t block = hash64({file.data(), 4088});
  std::memcpy(&file[4088], &block, 8);
  return file + content;
}

/// The bytes of an h5 file as a program of the next format version would write them.
inline std::string of_the_next_version(std::string file) {
  file[8] = 2;
  const uint64_t block = hash64({file.data(), 4088});
  std::memcpy(&file[4088], &block, 8);
  return file;
}

}  // namespace mmfree
