#include "train/watch/run_data.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/system/files.h"
#include "layers/parameters.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace fs = std::filesystem;
using Json = nlohmann::json;
namespace {

constexpr int64_t kMostJson = 4 << 20, kMostConfig = 1 << 20;
constexpr size_t kMostFacts = 64, kMostFact = 400, kMostEvaluations = 64, kMostNumbers = 4096, kMostSample = 4000;
constexpr const char* kTokenizer = "tokenizer";  // in run.json
constexpr size_t kFirstSamples = 2, kLastSamples = 10;

/// At most `most` bytes of valid UTF-8; nlohmann replaces what a cut leaves when it is written.
std::string shortened(std::string text, size_t most) {
  if (text.size() <= most) return text;
  text.resize(most);
  return text + "…";
}

/// Does `work`; an error becomes a note.
template <class Work>
void noting(RunData& run, Work&& work) try {
  work();
} catch (const Error& e) {
  run.notes.push_back(e.what());
}

void read_facts(RunData& run, const std::string& file) {
  if (!fs::exists(file)) return;
  const Json facts = parse_json(read_file(file, kMostJson), file);
  MMFREE_CHECK(DataError, facts.is_object(), file, ": expected a JSON object");
  for (const auto& [key, value] : facts.items()) {
    if (run.facts.size() >= kMostFacts) break;
    const std::string text =
        value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    run.facts.emplace_back(shortened(key, kMostFact), shortened(text, kMostFact));
  }
}

void read_config(RunData& run, const std::string& file) {
  if (!fs::exists(file)) return;
  run.config_text = read_file(file, kMostConfig);
  run.config = load_stored_config(run.config_text, file);
}

/// Adds the numbers in `value`, whose keys begin with `prefix`.
void add_numbers(const Json& value, const std::string& prefix, RunData::Evaluated& to) {
  if (to.numbers.size() >= kMostNumbers) return;
  if (value.is_number()) {
    to.numbers.emplace_back(shortened(prefix, kMostFact), value.get<double>());
  } else if (value.is_object()) {
    for (const auto& [key, item] : value.items()) add_numbers(item, prefix.empty() ? key : prefix + "/" + key, to);
  }
}

void read_evaluations(RunData& run) {
  for (const std::string& name : names_in(run.path)) {
    if (!name.ends_with(".json") || name == "run.json" || run.evaluations.size() >= kMostEvaluations) continue;
    noting(run, [&] {
      const std::string file = (fs::path(run.path) / name).string();
      const Json json = parse_json(read_file(file, kMostJson), file);
      if (!json.is_object() || !json.contains("model") || !(json.contains("loss") || json.contains("tasks"))) return;
      RunData::Evaluated evaluated{shortened(name, kMostFact), {}};
      add_numbers(json, "", evaluated);
      run.evaluations.push_back(std::move(evaluated));
    });
  }
}

/// Nothing if the line is no sample.
std::optional<RunData::Sample> sample_of(std::string_view line, const std::string& file) try {
  const Json json = parse_json(line, file);
  return RunData::Sample{json.at("step").get<int64_t>(), shortened(json.value("prompt", ""), kMostSample),
                         shortened(json.at("text").get<std::string>(), kMostSample)};
} catch (const DataError&) {
  return std::nullopt;
} catch (const Json::exception&) {
  return std::nullopt;
}

void read_samples(RunData& run) {
  int64_t damaged = 0;
  GrowingFile file((fs::path(run.path) / "samples.jsonl").string());
  file.read([&](std::string_view line) {
    std::optional<RunData::Sample> sample = sample_of(line, file.path());
    if (!sample) return void(++damaged);
    run.samples.push_back(std::move(*sample));
    if (run.samples.size() > kFirstSamples + kLastSamples) run.samples.erase(run.samples.begin() + kFirstSamples);
  });
  if (damaged) run.notes.push_back(concat(file.path(), ": ", damaged, " damaged lines left out"));
}

/// The folders of runs in a folder, by name.
std::vector<std::string> runs_in(const fs::path& folder) try {
  std::vector<std::string> runs;
  std::error_code ignored;
  for (const std::string& name : names_in(folder.string()))
    if (fs::exists(folder / name / "metrics.jsonl", ignored)) runs.push_back((folder / name).string());
  std::sort(runs.begin(), runs.end());
  return runs;
} catch (const Error&) {
  return {};
}

/// @throws MissingError if `folder` is no run's
void require_run(const std::string& folder, const std::string& metrics) {
  const char* expected =
      "expected the folder of a run (its train.run_dir), in which `mmfree train` writes metrics.jsonl";
  std::error_code ignored;
  if (fs::exists(metrics, ignored)) return;
  MMFREE_CHECK(MissingError, fs::exists(folder, ignored), folder, ": there is no such folder; ", expected);
  MMFREE_CHECK(MissingError, fs::is_directory(folder, ignored), folder, ": is no folder; ", expected);
  const std::vector<std::string> runs = runs_in(folder);
  throw MissingError(concat(folder, ": holds no metrics.jsonl; ", expected,
                            runs.empty() ? ""
                                         : concat("; there are ", runs.size(), " runs in it, name ", runs[0],
                                                  runs.size() > 1 ? " and others" : "")));
}

/// The last `parts` parts of a path.
std::string last_parts(const fs::path& path, size_t parts) {
  fs::path name;
  fs::path rest = path;
  for (; parts > 0 && rest.has_filename(); --parts, rest = rest.parent_path()) name = rest.filename() / name;
  std::string text = name.string();
  if (text.ends_with('/')) text.pop_back();
  return text.empty() ? path.string() : text;
}

}  // namespace

RunData read_run(const std::string& path) {
  fs::path folder = path;
  if (folder.filename() == "metrics.jsonl") folder = folder.parent_path();
  if (!folder.has_filename()) folder = folder.parent_path();
  if (folder.empty()) folder = ".";
  RunData run;
  run.path = folder.string();
  std::error_code ignored;
  const std::string metrics = (folder / "metrics.jsonl").string();
  require_run(run.path, metrics);
  run.metrics = std::make_unique<RunMetrics>(metrics);
  run.metrics->read();
  if (const int64_t damaged = run.metrics->damaged_lines())
    run.notes.push_back(concat(metrics, ": ", damaged, " damaged lines left out"));
  if (run.metrics->left_out())
    run.notes.push_back(concat(metrics, ": has more than ", RunMetrics::kMostKeys, " keys; the others are left out"));
  noting(run, [&] { read_facts(run, (folder / "run.json").string()); });
  noting(run, [&] { read_config(run, (folder / "config.resolved.yaml").string()); });
  noting(run, [&] { read_evaluations(run); });
  noting(run, [&] { read_samples(run); });
  return run;
}

void name_apart(std::vector<RunData>& runs) {
  constexpr size_t kMostParts = 20;
  for (size_t parts = 1; parts <= kMostParts; ++parts) {
    std::set<std::string> names;
    for (RunData& run : runs) {
      std::error_code ignored;
      const fs::path whole = fs::absolute(run.path, ignored).lexically_normal();
      run.name = shortened(last_parts(whole, parts), kMostFact);
      names.insert(run.name);
    }
    if (names.size() == runs.size()) return;
  }
  for (size_t i = 0; i < runs.size(); ++i) runs[i].name += concat(" (", i + 1, ")");
}

std::vector<int> vocabularies(const std::vector<RunData>& runs) {
  const auto tokenizer = [](const RunData& run) {
    const auto fact =
        std::find_if(run.facts.begin(), run.facts.end(), [](const auto& f) { return f.first == kTokenizer; });
    return fact == run.facts.end() ? std::string() : fact->second;
  };
  const auto same = [&](const RunData& a, const RunData& b) {
    const std::string x = tokenizer(a), y = tokenizer(b);
    if (!x.empty() && !y.empty()) return x == y;
    return !a.config || !b.config || a.config->model.vocab_size == b.config->model.vocab_size;
  };
  std::vector<int> numbers;
  std::vector<const RunData*> firsts;
  for (const RunData& run : runs) {
    const auto at = std::find_if(firsts.begin(), firsts.end(), [&](const RunData* first) { return same(*first, run); });
    numbers.push_back(int(at - firsts.begin()));
    if (at == firsts.end()) firsts.push_back(&run);
  }
  return numbers;
}

double flops_per_token(const RunData& run) {
  return run.config ? training_flops(run.config->model, run.config->data.seq_len) : 0;
}

}  // namespace mmfree
