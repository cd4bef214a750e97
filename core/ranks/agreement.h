#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/ranks/group.h"

namespace mmfree {

/// A run's only rank, as long as the process lives.
Group& lone_group();

/// Calls `body` in every rank; each gets the numbers of all, in the order of ranks. If `body` throws an Error in some
/// ranks, all throw the first one's, with its message and status: then all ranks can do the same about it.
std::vector<int64_t> agree(Group& group, const std::function<int64_t()>& body);

/// Rank 0's answer, in all ranks. Its `body` alone is called.
bool decide(Group& group, const std::function<bool()>& body);

}  // namespace mmfree
