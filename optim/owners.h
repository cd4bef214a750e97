#pragma once
#include <functional>

#include "autograd/parameter.h"

namespace mmfree {

/// Bounds of a Share of flat buffers: `ranks` pieces of consecutive parameters, of which the largest is as small as
/// possible. A parameter i is in one piece, unless `divisible(i)`: then pieces may meet between its blocks. A piece may
/// be empty.
Bounds owner_bounds(const std::vector<ParamSpec>& specs, int ranks, const std::function<bool(size_t)>& divisible);

/// The same pieces in `count` parts of about one size, each of consecutive parameters; a parameter that is not
/// `divisible` is in one part, which ends with it. Parts may be empty.
std::vector<Ranges> owner_parts(const std::vector<ParamSpec>& specs, const Bounds& bounds, int count,
                                const std::function<bool(size_t)>& divisible);

}  // namespace mmfree
