// What reaches a terminal, and what becomes of output that nobody takes.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "core/error.h"
#include "core/system/console.h"
#include "core/system/signals.h"
#include "tests/support/readers.h"

namespace mmfree {
namespace {

using console::escaped;
using console::Stream;

TEST(Console, SpellsOutWhatSteersATerminal) {
  const std::pair<std::string, std::string> cases[] = {
      {"\x1b[2J", "\\x1b[2J"},
      {std::string("\0\a\b\v\f\r\x7f", 7), "\\x00\\x07\\x08\\x0b\\x0c\\x0d\\x7f"},
      {"\u0080\u009b\u009f", "\\u{80}\\u{9b}\\u{9f}"},
      {"a\x9b"
       "b",
       "a\\x9bb"},
      {"\u202a\u202e\u2066\u2069", "\\u{202a}\\u{202e}\\u{2066}\\u{2069}"},
      {"\u200e\u200f\u061c\u2028\u2029\ufeff", "\\u{200e}\\u{200f}\\u{61c}\\u{2028}\\u{2029}\\u{feff}"},
      {"\U000e0041", "\\u{e0041}"},
      {"\xed\xa0\x80", "\\xed\\xa0\\x80"},                      // a surrogate
      {"\xc1\xbf|\xf0\x9f\xa6", "\\xc1\\xbf|\\xf0\\x9f\\xa6"},  // an overlong form, and a character cut short
  };
  for (const auto& [text, shown] : cases) EXPECT_EQ(escaped(text), shown);
}

TEST(Console, LeavesAllOtherTextAlone) {
  for (const std::string text : {"", "line\n\tindented ~", "é ß 水 🦉 \u00a0\u2027\u202f", "👩\u200d👧 न\u200dम",
                                 "\ufffd \U0010ffff \U000dffff"})
    EXPECT_EQ(escaped(text), text);
}

TEST(Console, OnlyATerminalGetsTextEscaped) {
  const std::string text = "a\x1b[31m\x9b\u202e水\n";
  const Terminal terminal;
  const FullPipe pipe;
  pipe.read();
  for (const Reader* reader : {static_cast<const Reader*>(&terminal), static_cast<const Reader*>(&pipe)}) {
    Stream stream(reader->writing_end(), Stream::Stuck::waits);
    const bool shown = reader == &terminal;
    EXPECT_EQ(stream.is_terminal(), shown);
    stream.print(text);
    EXPECT_EQ(reader->read(), shown ? "a\\x1b[31m\\x9b\\u{202e}水\n" : text);
    stream.format("%s %d%%\n", "\x1b", 7);
    EXPECT_EQ(reader->read(), shown ? "\\x1b 7%\n" : "\x1b 7%\n");
    stream.control("\r\x1b[K");
    EXPECT_EQ(reader->read(), "\r\x1b[K");
  }
}

TEST(Console, LongTextIsEscapedCharacterByCharacter) {
  const Terminal terminal;
  std::string text, shown;
  for (int i = 0; i < 3000; ++i) text += i % 7 ? "水🦉é" : "\U000e0041";
  Stream stream(terminal.writing_end(), Stream::Stuck::waits);
  std::thread writing([&] { stream.print(text); });
  while (shown.size() < escaped(text).size()) shown += terminal.read();
  writing.join();
  EXPECT_EQ(shown, escaped(text));
}

TEST(Console, GivesUpAStuckReaderAndSaysSoWhenItReads) {
  const FullPipe pipe;
  Stream stream(pipe.writing_end(), Stream::Stuck::given_up);
  stream.print("first\n");
  for (int i = 0; i < 100; ++i) stream.print("0123456789");  // two seconds each would be too long for any test
  EXPECT_EQ(pipe.read(), std::string(FullPipe::kBytes, 'x'));
  stream.print("again\n");
  EXPECT_EQ(pipe.read(), "mmfree: 1006 bytes of output are lost here: they were not taken\nagain\n");
  stream.print("more\n");
  EXPECT_EQ(pipe.read(), "more\n");
}

TEST(Console, SaysWhereALineIsCut) {
  const FullPipe pipe;
  pipe.read();
  Stream stream(pipe.writing_end(), Stream::Stuck::given_up);
  stream.print(std::string(FullPipe::kBytes, 'a') + std::string(50, 'b'));
  EXPECT_EQ(pipe.read(), std::string(FullPipe::kBytes, 'a'));
  stream.print("again\n");
  EXPECT_EQ(pipe.read(), "\nmmfree: 50 bytes of output are lost here: they were not taken\nagain\n");
}

TEST(Console, AStoppedTerminalIsAStuckReader) {
  const Terminal terminal;
  Stream stream(terminal.writing_end(), Stream::Stuck::given_up);
  terminal.stop();
  stream.print("lost");
  EXPECT_EQ(terminal.read(), "");
  terminal.go_on();
  stream.print("there\n");
  EXPECT_EQ(terminal.read(), "mmfree: 4 bytes of output are lost here: they were not taken\nthere\n");
  // One that is full takes a part of what it is given.
  for (int i = 0; i < 100; ++i) stream.print(std::string(1000, 'y') + '\n');
  EXPECT_EQ(terminal.read().substr(0, 1000), std::string(1000, 'y'));
}

TEST(Console, AStuckSocketIsAStuckReader) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const Fd from(ends[0]), to(ends[1]);
  char some[1000] = {};
  while (::send(to.get(), some, sizeof some, MSG_DONTWAIT) > 0) continue;
  Stream stream(to.get(), Stream::Stuck::given_up);
  stream.print("lost");
  while (::recv(from.get(), some, sizeof some, MSG_DONTWAIT) > 0) continue;
  stream.print("there\n");
  const std::string expected = "mmfree: 4 bytes of output are lost here: they were not taken\nthere\n";
  const ssize_t n = ::recv(from.get(), some, sizeof some, MSG_DONTWAIT);
  EXPECT_EQ(std::string(some, size_t(std::max<ssize_t>(n, 0))), expected);
}

TEST(Console, WaitsForAReaderWhoReadsLater) {
  const FullPipe pipe;
  Stream stream(pipe.writing_end(), Stream::Stuck::waits);
  const std::string text(3 * FullPipe::kBytes, 'z');
  std::thread writing([&] { stream.print(text); });
  std::string got;
  while (got.size() < text.size() + FullPipe::kBytes) got += pipe.read();
  writing.join();
  EXPECT_EQ(got, std::string(FullPipe::kBytes, 'x') + text);
}

TEST(Console, ASignalEndsTheWait) {
  const FullPipe pipe;
  const StopSignals signals;
  raise(SIGTERM);
  Stream waits(pipe.writing_end(), Stream::Stuck::waits), gives_up(pipe.writing_end(), Stream::Stuck::given_up);
  try {
    waits.print("never");
    FAIL() << "what cannot be written was written";
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), Exit::stopped);
  }
  gives_up.print("never");
  EXPECT_EQ(pipe.read(), std::string(FullPipe::kBytes, 'x'));
  waits.print("a reader who reads is served all the same\n");
  EXPECT_EQ(pipe.read(), "a reader who reads is served all the same\n");
}

TEST(Console, OutputThatCannotBeWrittenIsAnErrorOrCounted) {
  const Fd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  Stream waits(full.get(), Stream::Stuck::waits), gives_up(full.get(), Stream::Stuck::given_up);
  EXPECT_THROW(waits.print("a"), IoError);
  EXPECT_NO_THROW(gives_up.print("a"));
}

}  // namespace
}  // namespace mmfree
