#include <CLI/CLI.hpp>
#include <cstdlib>
#include <ctime>
#include <memory>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "train/commands/commands.h"
#include "train/watch/screen.h"
#include "train/watch/top_lines.h"

namespace mmfree {
namespace {

struct Options {
  std::vector<std::string> runs;
  double interval = 2;
  bool once = false;
};

bool set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value;
}

/// Whether the user's terminal reads UTF-8, as the environment says.
bool speaks_utf8() {
  for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!set(variable)) continue;
    const std::string value = std::getenv(variable);
    return value.find("UTF-8") != value.npos || value.find("utf8") != value.npos;
  }
  return false;
}

TopStyle style_of(const TerminalSize& size) {
  const char* term = std::getenv("TERM");
  const bool dumb = term && std::string_view(term) == "dumb";
  return {size.columns, size.rows, !set("NO_COLOR") && !dumb && console::out.is_terminal(), speaks_utf8()};
}

void run(const Options& o) {
  std::vector<RunData> runs;
  for (const std::string& path : o.runs) runs.push_back(read_run(path));
  name_apart(runs);
  const auto now = [] { return double(std::time(nullptr)); };
  const char* term = std::getenv("TERM");
  const bool dumb = term && std::string_view(term) == "dumb";
  if (o.once || dumb || !console::out.is_terminal()) {
    TopStyle style = style_of(terminal_size());
    style.rows = 16 * runs.size();
    for (const std::string& line : top_lines(runs, style, now())) console::out.control(line + "\n");
    return;
  }
  const StopSignals signals;
  Screen screen;
  for (Screen::Event event = Screen::Event::time; event != Screen::Event::quit; event = screen.wait(o.interval)) {
    if (event == Screen::Event::time)
      for (RunData& r : runs) r.metrics->read();
    screen.show(top_lines(runs, style_of(terminal_size()), now()));
  }
}

}  // namespace

void add_top_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("top", "Watch runs in the terminal: how far they are, curves, last values");
  c->add_option("runs", o->runs, "run folders")->required();
  c->add_option("--interval", o->interval, "seconds between looks, 2 if not given")->check(CLI::Range(0.1, 3600.0));
  c->add_flag("--once", o->once, "show them once, as is done where the output is no terminal");
  c->footer(
      "q or Ctrl-C ends it. NO_COLOR turns colours off.\n"
      "Examples:\n"
      "  mmfree top runs/8m\n"
      "  mmfree top runs/*");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
