#pragma once
#include <functional>

#include "autograd/parameter.h"

namespace mmfree {

/// Bounds of a Share of flat buffers: `ranks` pieces of consecutive parameters, of which the largest is as small as
/// possible. A parameter i is in one piece, unless `divisible(i)`: then pieces may meet between its blocks. A piece may
/// be empty.
Bounds owner_bounds(const std::vector<ParamSpec>& specs, int ranks, const std::function<bool(size_t)>& divisible);

}  // namespace mmfree
