#pragma once
#include <gtest/gtest.h>

#include "core/gpu.h"

/// Skips the test, by name and with the reason, where there is no usable GPU.
#define MMFREE_NEEDS_GPU()                                                                   \
  do {                                                                                       \
    if (const std::string why = ::mmfree::gpu::problem(); !why.empty()) GTEST_SKIP() << why; \
  } while (0)
