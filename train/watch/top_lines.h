#pragma once
#include <string>
#include <vector>

#include "train/watch/run_data.h"

namespace mmfree {

/// What a terminal can show.
struct TopStyle {
  size_t columns = 80, rows = 24;
  bool color = true;  ///< false with NO_COLOR
  bool utf8 = true;   ///< false: curves of ASCII characters
};

/// `values` as a curve of at most `width` characters, each the mean of its part of them. Outliers are cut off.
std::string sparkline(const std::vector<double>& values, size_t width, bool utf8);

/// At most style.rows lines of at most style.columns characters: of each run how far it is, how long it will take, and
/// its curves with their last values; fewer curves where there is little room. `now` is in seconds since 1970.
std::vector<std::string> top_lines(const std::vector<RunData>& runs, const TopStyle& style, double now);

}  // namespace mmfree
