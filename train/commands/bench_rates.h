#pragma once
#include <string>

#include "train/run/rates_file.h"

namespace mmfree {

/// Measures the rates of a device (auto, cpu, cuda or cuda:N), with lines of progress, puts them into `file` and prints
/// a few of them. @throws UsageError without a file, ConfigError for a device that cannot be used, CreateError, IoError
void bench_rates(const std::string& device, const std::string& file);

}  // namespace mmfree
