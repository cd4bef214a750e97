#pragma once
#include <string>
#include <string_view>

/// What HDF5's filters shuffle and deflate make, undone into memory of a known size. HDF5 1.10 itself trusts the size
/// that comes out. Private to h5.
namespace mmfree::h5 {

/// The `size` bytes that `stored` inflates to; empty if it is damaged or gives any other number of bytes.
std::string inflated(std::string_view stored, size_t size);

/// Puts the bytes of values of `width` bytes together again: first the lowest byte of all values, then the next.
std::string unshuffled(std::string_view bytes, size_t width);

}  // namespace mmfree::h5
