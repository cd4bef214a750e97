#include "train/run/rates_file.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "core/system/files.h"
#include "core/system/utf8.h"
#include "train/formats/json_fields.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kVersion = 1, kMostBytes = int64_t(16) << 20;

/// A finite number that is positive, or with `or_zero` not negative.
double number_in(const Json& value, const std::string& where, bool or_zero = false) {
  const double number = value.is_number() ? value.get<double>() : -1;
  MMFREE_CHECK(DataError, std::isfinite(number) && (or_zero ? number >= 0 : number > 0), where,
               "expected a positive number, found ", value.dump());
  return number;
}

OpSample sample_of(const Json& row, const std::string& where) {
  MMFREE_CHECK(DataError, row.is_array() && row.size() == 4, where, "expected lists of four numbers");
  constexpr double kMostInner = 1e15;
  const double kind = number_in(row[0], where, true), inner = number_in(row[2], where, true);
  MMFREE_CHECK(DataError, kind == std::floor(kind) && kind <= double(OpWork::int8) && inner <= kMostInner, where,
               "expected a kind of 0..3 and an inner size, found ", row.dump());
  return {{number_in(row[1], where, true), int64_t(inner), OpWork::Kind(int(kind))}, number_in(row[3], where)};
}

OpRates rates_of(const Json& entry, const std::string& where) {
  const JsonFields fields(entry, where);
  OpRates rates;
  rates.device = fields.text("device", "");
  rates.program = fields.text("program", "");
  rates.date = fields.text("date", "");
  rates.beside = number_in(Json(fields.number("beside", 0)), where + "beside: ");
  MMFREE_CHECK(DataError, fields.has("ops") && fields["ops"].is_object(), where, "ops must be an object");
  for (const auto& [name, rows] : fields["ops"].items()) {
    MMFREE_CHECK(DataError, rows.is_array() && !rows.empty(), where, "ops.", name, " must be a list");
    for (const Json& row : rows) rates.ops[name].push_back(sample_of(row, concat(where, "ops.", name, ": ")));
  }
  return rates;
}

Json json_of(const OpRates& rates) {
  Json ops = Json::object();
  for (const auto& [name, samples] : rates.ops)
    for (const OpSample& s : samples) ops[name].push_back({int(s.size.kind), s.size.amount, s.size.inner, s.seconds});
  return {{"device", rates.device},
          {"program", rates.program},
          {"date", rates.date},
          {"beside", rates.beside},
          {"ops", std::move(ops)}};
}

}  // namespace

std::string default_rates_file() {
  const auto absolute = [](const char* name) {
    const char* value = std::getenv(name);
    return value && *value == '/' ? std::string(value) : std::string();
  };
  if (const std::string cache = absolute("XDG_CACHE_HOME"); !cache.empty()) return cache + "/mmfree/rates.json";
  const std::string home = absolute("HOME");
  return home.empty() ? "" : home + "/.cache/mmfree/rates.json";
}

std::vector<OpRates> read_rates(const std::string& path) {
  std::error_code error;
  if (path.empty() || !fs::exists(path, error)) return {};
  const Json file = parse_json(read_file(path, kMostBytes), path);
  const JsonFields fields(file, path + ": ");
  MMFREE_CHECK(DataError, fields.integer("mmfree_rates", 0) == kVersion, path,
               ": is no file of rates that this version reads; measure anew: mmfree bench --rates");
  std::vector<OpRates> all;
  for (const Json& entry : fields.list("devices")) all.push_back(rates_of(entry, path + ": "));
  return all;
}

void write_rates(const std::string& path, const OpRates& rates) {
  std::vector<OpRates> others;
  try {
    others = read_rates(path);
  } catch (const DataError&) {
    // What cannot be read is not worth keeping: it can be measured again.
  }
  Json devices = Json::array();
  for (const OpRates& other : others)
    if (other.device != rates.device && other.program == rates.program) devices.push_back(json_of(other));
  devices.push_back(json_of(rates));
  NeededDirectory folder(fs::absolute(path).parent_path().string());
  write_file(path, Json{{"mmfree_rates", kVersion}, {"devices", std::move(devices)}}.dump() + "\n");
  folder.keep();
}

std::optional<OpRates> find_rates(const std::vector<OpRates>& all, const std::string& key) {
  for (const OpRates& rates : all)
    if (rates.program == MMFREE_VERSION && (key.empty() ? is_gpu_key(rates.device) : rates.device == key)) return rates;
  return std::nullopt;
}

}  // namespace mmfree
