#pragma once
#include <cstdint>
#include <map>
#include <string>

/// The models that benchmarks measure, by the names of their arguments.
struct Size {
  int64_t width, layers, inner, vocabulary;
};
inline const std::map<std::string, Size> kSizes = {{"8M", {256, 8, 704, 8192}},
                                                   {"50M", {512, 12, 1408, 32000}},
                                                   {"370M", {1024, 24, 2816, 32000}},
                                                   {"1.3B", {2048, 24, 5632, 32000}}};
