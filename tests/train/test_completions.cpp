// `mmfree completions`: what bash makes of a line that is not finished.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/support/program.h"
#include "train/config/config.h"

namespace mmfree {
namespace {

/// What bash offers for the last of `words`, in its order, each with a newline.
std::string offered(const TempDir& dir, const std::string& words, int cword) {
  const std::string script =
      "source " + (dir / "script") + "\nCOMP_WORDS=(" + words + ")\nCOMP_LINE='" + words +
      "'\nCOMP_LINE=${COMP_LINE// = /=}\nCOMP_POINT=${#COMP_LINE}\nCOMP_CWORD=" + std::to_string(cword) +
      "\n_mmfree\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n";
  spit(dir / "ask", script);
  FILE* shell = ::popen(("bash --norc " + (dir / "ask")).c_str(), "r");
  std::string text;
  for (int c; shell && (c = std::fgetc(shell)) != EOF;) text += char(c);
  EXPECT_EQ(::pclose(shell), 0);
  return text;
}

TEST(Completions, BashCompletesCommandsFlagsKeysAndValues) {
  const TempDir dir;
  Program made({"completions", "bash"});
  ASSERT_EQ(made.wait(), 0) << made.err();
  spit(dir / "script", made.out());
  EXPECT_EQ(offered(dir, "mmfree tr", 1), "train\n");
  EXPECT_EQ(offered(dir, "mmfree train --re", 2), "--resume\n");
  EXPECT_EQ(offered(dir, "mmfree report --o", 2), "--output\n");
  EXPECT_EQ(offered(dir, "mmfree train x.yaml optim.w", 3),
            "optim.weight_decay=\noptim.weight_decay_until=\noptim.warmup_steps=\noptim.warmup_tokens=\n");
  EXPECT_EQ(offered(dir, "mmfree train x.yaml optim.schedule = co", 5), "constant\ncosine\n");
  EXPECT_EQ(offered(dir, "mmfree train x.yaml train.capture = ", 5), "true\nfalse\n");
  EXPECT_EQ(offered(dir, "mmfree eval optim.w", 2), "\n") << "files";
}

TEST(Completions, EachShellKnowsEveryKey) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    Program made({"completions", shell});
    ASSERT_EQ(made.wait(), 0) << made.err();
    for (const ConfigKey& key : config_keys())
      EXPECT_NE(made.out().find(key.key + "="), std::string::npos) << shell << " " << key.key;
  }
  Program other({"completions", "csh"});
  EXPECT_EQ(other.wait(), 2);
}

}  // namespace
}  // namespace mmfree
