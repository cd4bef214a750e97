#include "core/system/machine.h"

#include <fstream>

namespace mmfree {

std::string processor_name(const std::string& at) {
  std::ifstream in(at + "/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos && line.size() > colon + 2)
      return line.substr(colon + 2);
  }
  return "unknown";
}

std::string huge_pages(const std::string& at) {
  std::ifstream in(at + "/sys/kernel/mm/transparent_hugepage/enabled");  // always [madvise] never
  for (std::string word; in >> word;)
    if (word.size() > 2 && word.front() == '[' && word.back() == ']') return word.substr(1, word.size() - 2);
  return "unknown";
}

}  // namespace mmfree
