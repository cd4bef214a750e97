#include "data/h5/deflate.h"

#include <zlib.h>

namespace mmfree::h5 {

std::string inflated(std::string_view stored, size_t size) {
  std::string bytes(size, '\0');
  uLongf made = size;
  const int result = ::uncompress(reinterpret_cast<Bytef*>(bytes.data()), &made,
                                  reinterpret_cast<const Bytef*>(stored.data()), uLong(stored.size()));
  if (result != Z_OK || made != size) bytes.clear();
  return bytes;
}

std::string unshuffled(std::string_view bytes, size_t width) {
  std::string values(bytes.size(), '\0');
  const size_t count = bytes.size() / width;
  for (size_t b = 0; b < width; ++b)
    for (size_t i = 0; i < count; ++i) values[i * width + b] = bytes[b * count + i];
  return values;
}

}  // namespace mmfree::h5
