#include "train/watch/report.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "core/system/console.h"
#include "core/system/files.h"
#include "core/system/folder_mark.h"
#include "train/commands/commands.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string out = "report.html";
  ReportOptions report;
};

void run(const Options& o) {
  constexpr size_t kMostRuns = 64;
  MMFREE_CHECK(UsageError, o.runs.size() <= kMostRuns, "report: ", o.runs.size(), " runs; at most ", kMostRuns,
               " fit into one page");
  require_replaceable(o.out, true, [&] { verify_report(o.out); });
  std::vector<RunData> runs;
  for (const std::string& path : o.runs) runs.push_back(read_run(path));
  name_apart(runs);
  const std::string page = report_page(runs, o.report);
  write_file(o.out, page);
  size_t points = 0;
  for (const RunData& r : runs) {
    for (const RunMetrics::Series& series : r.metrics->series()) points += series.values.size();
    for (const std::string& note : r.notes) console::err.format("warning: %s\n", note.c_str());
  }
  console::out.format("wrote %s: %zu run%s, %s points, %s\n", o.out.c_str(), runs.size(), runs.size() == 1 ? "" : "s",
                      format_count(double(points)).c_str(), format_bytes(page.size()).c_str());
}

}  // namespace

void add_report_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("report", "Show runs in one HTML page: curves, configurations, evaluations");
  c->add_option("runs", o->runs, "run folders")->required();
  c->add_option("-o,--output", o->out, "the page, report.html if not given; an older report is replaced");
  c->add_option("--title", o->report.title, "title of the page");
  c->add_option("--price", o->report.price, "what a device costs for an hour: the page then tells what the runs did")
      ->check(CLI::NonNegativeNumber);
  c->footer(
      "The page needs no network and no other file. Beside metrics.jsonl, run.json and config.resolved.yaml it shows "
      "what\n"
      "`mmfree eval RUN --json > RUN/eval.json` wrote, and the texts of RUN/samples.jsonl, whose lines are\n"
      "{\"step\": 100, \"prompt\": \"...\", \"text\": \"...\"}.\n"
      "Examples:\n"
      "  mmfree report runs/8m\n"
      "  mmfree report runs/a runs/b runs/c -o compare.html --title \"Learning rates\" --price 2.5");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
