#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mmfree {

/// XXH3-64 of `bytes`.
uint64_t hash64(std::string_view bytes);
/// `value` as 16 hex digits.
std::string hex16(uint64_t value);

/// XXH3-128 of bytes that are given in several calls.
class Hash128 {
 public:
  Hash128();
  void update(const void* bytes, size_t n);
  /// Low half first.
  std::array<uint64_t, 2> digest() const;

 private:
  std::unique_ptr<void, void (*)(void*)> state_;
};

}  // namespace mmfree
