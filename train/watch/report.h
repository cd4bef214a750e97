#pragma once
#include <string>
#include <vector>

#include "train/watch/run_data.h"

namespace mmfree {

struct ReportOptions {
  std::string title;  ///< empty: the names of the runs
  double price = 0;   ///< of a device for an hour, in any currency; 0: unknown
};

/// One HTML page that shows the runs: curves, differences of their configurations, evaluations, samples, what they ran
/// on. It needs no other file and no network. Its size is bounded, however much the runs hold: each curve has at most
/// 1,000 points, each with mean, least and greatest value.
std::string report_page(const std::vector<RunData>& runs, const ReportOptions& options);

/// Checks that a file is such a page. @throws DataError if not, MissingError, IoError
void verify_report(const std::string& path);

}  // namespace mmfree
