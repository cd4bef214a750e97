#pragma once
#include "core/error.h"

namespace mmfree {

/// Where a tensor's memory lives and which backend computes on it.
enum class Device : unsigned char { cpu, cuda };

constexpr const char* name_of(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

}  // namespace mmfree
