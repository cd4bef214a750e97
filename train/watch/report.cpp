#include "train/watch/report.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/watch/decimate.h"
#include "train/watch/page.h"

namespace mmfree {
namespace {

constexpr size_t kMostSeries = 16384, kMostPoints = 400000, kFewestBuckets = 24, kMostBuckets = 1000;
constexpr std::string_view kBeginning = "<!doctype html>\n<!-- mmfree report -->\n";

/// JSON that may stand inside an HTML script element: no '<', '>' and '&', and no line ends of JavaScript.
class JsonText {
 public:
  JsonText& raw(std::string_view text) {
    out_ += text;
    return *this;
  }
  JsonText& text(const std::string& value) {
    const std::string dumped = nlohmann::json(value).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    for (const char c : dumped) {
      if (c == '<' || c == '>' || c == '&')
        out_ += c == '<' ? "\\u003c" : c == '>' ? "\\u003e" : "\\u0026";
      else
        out_ += c;
    }
    return *this;
  }
  JsonText& key(const std::string& name) { return separate().text(name).raw(":"); }
  /// A comma, unless the object or list begins here.
  JsonText& separate() {
    if (!out_.empty() && out_.back() != '{' && out_.back() != '[' && out_.back() != ':') out_ += ',';
    return *this;
  }
  JsonText& number(double value) {
    if (!std::isfinite(value)) return raw("null");
    char buffer[32];
    const auto end = value == std::floor(value) && std::fabs(value) < 9e15
                         ? std::to_chars(buffer, buffer + sizeof buffer, int64_t(value)).ptr
                         : std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, 7).ptr;
    return raw({buffer, end});
  }
  template <class Values, class Get>
  JsonText& list(const Values& values, Get&& get) {
    out_ += '[';
    for (const auto& v : values) separate().number(get(v));
    return raw("]");
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

/// Series whose values stand in the same rows share a grid: where each of their buckets stands.
class Grids {
 public:
  Grids(const RunMetrics& metrics, size_t buckets) : metrics_(metrics), buckets_(buckets) {}
  size_t index_of(const RunMetrics::Series& series) {
    for (size_t i = grids_.size(); i-- > 0;)
      if (*grids_[i] == series.rows) return i;
    grids_.push_back(&series.rows);
    return grids_.size() - 1;
  }
  void write(JsonText& json) const {
    json.raw("[");
    for (const std::vector<uint32_t>* rows : grids_) {
      // The middle of each bucket; at the ends the ends.
      std::vector<uint32_t> at;
      const std::vector<Bucket> buckets = decimate(std::vector<double>(rows->size(), 0.0), buckets_);
      for (const Bucket& b : buckets) at.push_back((*rows)[(b.begin + b.end - 1) / 2]);
      at.front() = rows->front();
      at.back() = rows->back();
      json.separate().raw("{");
      json.key("step").list(at, [&](uint32_t r) { return double(metrics_.steps()[r]); });
      json.key("tokens").list(at, [&](uint32_t r) { return metrics_.tokens()[r]; });
      json.key("seconds").list(at, [&](uint32_t r) { return metrics_.seconds()[r]; });
      json.raw("}");
    }
    json.raw("]");
  }

 private:
  const RunMetrics& metrics_;
  size_t buckets_;
  std::vector<const std::vector<uint32_t>*> grids_;
};

void write_series(JsonText& json, const RunData& run, size_t most_series, size_t buckets) {
  Grids grids(*run.metrics, buckets);
  json.key("series").raw("{");
  size_t written = 0;
  for (const RunMetrics::Series& series : run.metrics->series()) {
    if (series.rows.empty() || written++ >= most_series) continue;
    const std::vector<Bucket> made = decimate(series.values, buckets);
    json.key(series.key).raw("{").key("grid").number(double(grids.index_of(series)));
    json.key("count").number(double(series.values.size()));
    json.key("last").number(series.values.back());
    const auto least = std::min_element(series.values.begin(), series.values.end());
    json.key("least").number(*least);
    json.key("greatest").number(*std::max_element(series.values.begin(), series.values.end()));
    json.key("least_step").number(double(run.metrics->steps()[series.rows[size_t(least - series.values.begin())]]));
    json.key("mean").list(made, [](const Bucket& b) { return b.mean; });
    if (made.size() < series.values.size()) {
      json.key("lo").list(made, [](const Bucket& b) { return b.least; });
      json.key("hi").list(made, [](const Bucket& b) { return b.greatest; });
    }
    json.raw("}");
  }
  json.raw("}").key("grids");
  grids.write(json);
}

void write_run(JsonText& json, const RunData& run, int vocabulary, size_t most_series, size_t buckets) {
  const RunMetrics& m = *run.metrics;
  json.separate().raw("{").key("name").text(run.name).key("path").text(run.path);
  json.key("facts").raw("[");
  for (const auto& [key, value] : run.facts) json.separate().raw("[").text(key).raw(",").text(value).raw("]");
  json.raw("]").key("vocabulary").number(vocabulary).key("flops_per_token").number(flops_per_token(run));
  json.key("steps_planned").number(run.config ? double(run.config->train.steps) : 0);
  json.key("lines").number(double(m.steps().size()));
  json.key("steps").number(m.steps().empty() ? 0 : double(m.steps().back()));
  json.key("tokens").number(m.tokens().empty() ? 0 : m.tokens().back());
  json.key("seconds").number(m.seconds().empty() ? 0 : m.seconds().back());
  json.key("first_time").number(m.first_time()).key("last_time").number(m.last_time());
  json.key("config").text(run.config_text);
  json.key("evaluations").raw("[");
  for (const RunData::Evaluated& e : run.evaluations) {
    json.separate().raw("{").key("file").text(e.file).key("numbers").raw("{");
    for (const auto& [key, value] : e.numbers) json.key(key).number(value);
    json.raw("}}");
  }
  json.raw("]").key("samples").raw("[");
  for (const RunData::Sample& s : run.samples)
    json.separate()
        .raw("{")
        .key("step")
        .number(double(s.step))
        .key("prompt")
        .text(s.prompt)
        .key("text")
        .text(s.text)
        .raw("}");
  json.raw("]").key("alarms").raw("[");
  for (const RunMetrics::Alarm& a : m.alarms())
    json.separate().raw("{").key("step").number(double(a.step)).key("text").text(a.text).raw("}");
  json.raw("]").key("notes").raw("[");
  for (const std::string& note : run.notes) json.separate().text(note);
  json.raw("]");
  write_series(json, run, most_series, buckets);
  json.raw("}");
}

/// The keys in which configurations that can be read differ, each with its value in every run ("" where unknown).
void write_differences(JsonText& json, const std::vector<RunData>& runs) {
  json.key("differences").raw("[");
  const auto first = std::find_if(runs.begin(), runs.end(), [](const RunData& r) { return r.config.has_value(); });
  std::vector<std::string> order;
  std::map<std::string, std::vector<std::string>> values;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (first == runs.end() || !runs[i].config) continue;
    for (const ConfigChange& change : compare(*first->config, *runs[i].config)) {
      if (change.key == "train.run_dir" || change.key == "train.resume") continue;
      auto [row, is_new] = values.try_emplace(change.key);
      if (is_new) {
        order.push_back(change.key);
        for (const RunData& r : runs) row->second.push_back(r.config ? change.before : "");
      }
      row->second[i] = change.after;
    }
  }
  for (const std::string& key : order) {
    json.separate().raw("[").text(key);
    for (const std::string& value : values[key]) json.separate().text(value);
    json.raw("]");
  }
  json.raw("]");
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  return text;
}

std::string html_text(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

/// `text` with each {{name}} of `parts` replaced, once, in the order in which they stand there.
std::string filled(std::string_view text, const std::vector<std::pair<std::string, std::string_view>>& parts) {
  std::string out;
  for (const auto& [name, part] : parts) {
    const size_t at = text.find("{{" + name + "}}");
    MMFREE_CHECK(Error, at != text.npos, "the report's page has no place for ", name);
    out.append(text.substr(0, at)).append(part);
    text.remove_prefix(at + name.size() + 4);
  }
  return out.append(text);
}

}  // namespace

std::string report_page(const std::vector<RunData>& runs, const ReportOptions& options) {
  size_t series = 1;
  for (const RunData& run : runs) series += run.metrics->series().size();
  const size_t most_series = kMostSeries / std::max<size_t>(1, runs.size());
  const size_t buckets = std::clamp(kMostPoints / std::min(series, kMostSeries), kFewestBuckets, kMostBuckets);
  JsonText json;
  json.raw("{").key("made").text(now_utc()).key("version").text(MMFREE_VERSION);
  json.key("price").number(options.price).key("title").text(options.title).key("runs").raw("[");
  const std::vector<int> vocabulary = vocabularies(runs);
  for (size_t i = 0; i < runs.size(); ++i) write_run(json, runs[i], vocabulary[i], most_series, buckets);
  json.raw("]");
  write_differences(json, runs);
  const std::string data = json.raw("}").take();
  std::string title = options.title;
  for (size_t i = 0; options.title.empty() && i < runs.size() && i < 4; ++i) title += (i ? ", " : "") + runs[i].name;
  title = html_text(title);
  return std::string(kBeginning) +
         filled(page::html, {{"title", title}, {"style", page::style}, {"data", data}, {"script", page::script}});
}

void verify_report(const std::string& path) {
  const Fd file = open_input(path);
  std::string start(std::min<size_t>(kBeginning.size(), size_t(size_of_file(file, path))), '\0');
  read_exactly(file, path, 0, start.data(), int64_t(start.size()));
  MMFREE_CHECK(DataError, start == kBeginning, path, ": is no report of mmfree");
}

}  // namespace mmfree
