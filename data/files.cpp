#include "data/files.h"

#include <fcntl.h>
#include <glob.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace mmfree {

namespace fs = std::filesystem;

std::string read_file(const std::string& path, int64_t max_bytes) {
  std::error_code ignored;
  std::ifstream in(path, std::ios::binary);
  MMFREE_CHECK(MissingError, in && fs::is_regular_file(path, ignored), path,
               ": cannot open: ", errno ? std::strerror(errno) : "not a regular file");
  const auto size = fs::file_size(path, ignored);
  MMFREE_CHECK(DataError, size <= uint64_t(max_bytes), path, ": ", size, " bytes; at most ", max_bytes, " are allowed");
  std::string bytes(size, '\0');
  in.read(bytes.data(), std::streamsize(size));
  MMFREE_CHECK(IoError, uint64_t(in.gcount()) == size, path, ": read failed: ", std::strerror(errno));
  return bytes;
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  const std::string temporary = concat(path, ".tmp-", ::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  MMFREE_CHECK(CreateError, fd >= 0, temporary, ": cannot create: ", std::strerror(errno));
  bool ok = true;
  while (ok && !bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n > 0) bytes.remove_prefix(size_t(n));
    ok = n > 0 || (n < 0 && errno == EINTR);
  }
  ok = ok && ::fsync(fd) == 0;
  int error = errno;
  ::close(fd);
  if (ok && ::rename(temporary.c_str(), path.c_str()) == 0) return;
  if (ok) error = errno;
  ::unlink(temporary.c_str());
  throw IoError(concat(path, ": write failed: ", std::strerror(error)));
}

std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes) {
  const auto wanted = [&](const std::string& name) {
    return std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& s) { return name.ends_with(s); });
  };
  std::vector<std::string> out;
  for (const std::string& entry : entries) {
    std::vector<std::string> found;
    std::error_code error;
    if (fs::is_directory(entry, error)) {
      for (const auto& e : fs::directory_iterator(entry, error))
        if (wanted(e.path().filename().string())) found.push_back(e.path().string());
      std::string list;
      for (const std::string& s : suffixes) list += " *" + s;
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": the directory holds none of:", list);
    } else if (fs::exists(entry, error)) {
      found.push_back(entry);
    } else {
      glob_t matches{};
      ::glob(entry.c_str(), 0, nullptr, &matches);
      for (size_t i = 0; i < matches.gl_pathc; ++i) found.emplace_back(matches.gl_pathv[i]);
      ::globfree(&matches);
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": no such file, and no file matches it as a pattern");
    }
    std::sort(found.begin(), found.end());
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

int utf8_char(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  if (s.empty()) return 0;
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const int length = first >= 0xC2 && first < 0xE0   ? 2
                     : first >= 0xE0 && first < 0xF0 ? 3
                     : first >= 0xF0 && first < 0xF5 ? 4
                                                     : 0;
  for (int i = 1; i < length; ++i) {
    if (size_t(i) == s.size()) return -1;
    const unsigned low = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte(size_t(i)) < low || byte(size_t(i)) > high) return 0;
  }
  return length;
}

size_t find_invalid_utf8(std::string_view s) {
  for (size_t at = 0; at < s.size();) {
    const int n = utf8_char(s.substr(at));
    if (n <= 0) return at;
    at += size_t(n);
  }
  return std::string_view::npos;
}

uint64_t hash64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string hex16(uint64_t value) {
  std::string out(16, '0');
  for (size_t i = 16; i-- > 0; value >>= 4) out[i] = "0123456789abcdef"[value & 15];
  return out;
}

}  // namespace mmfree
