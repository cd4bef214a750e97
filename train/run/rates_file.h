#pragma once
#include <optional>
#include <string>
#include <vector>

#include "train/run/op_rates.h"

/// The file in which measured rates of devices are kept, JSON:
///   {"mmfree_rates": 1, "devices": [{"device": "…", "program": "0.1.0", "date": "2026-11-27", "beside": 1.01,
///    "ops": {"matmul bf16 nt": [[kind, amount, inner, seconds], …], …}}, …]}
namespace mmfree {

/// $XDG_CACHE_HOME/mmfree/rates.json, or ~/.cache/mmfree/rates.json; empty if neither variable holds an absolute path.
std::string default_rates_file();

/// All rates in the file; none if there is no file. @throws DataError if it is not such a file
std::vector<OpRates> read_rates(const std::string& path);

/// Puts `rates` into the file in the place of older ones of the same device, and leaves others of this version. A
/// damaged file is replaced. @throws CreateError, IoError
void write_rates(const std::string& path, const OpRates& rates);

/// Of this program's version those for `key`; with an empty key, of a GPU that this machine lacks, the first GPU's.
std::optional<OpRates> find_rates(const std::vector<OpRates>& all, const std::string& key);

}  // namespace mmfree
