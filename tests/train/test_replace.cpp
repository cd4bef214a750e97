// What the program replaces, and what it refuses to.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>
#include <map>

#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/run/checkpoint.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

/// Everything below a folder: mode and content by path.
std::map<std::string, std::string> snapshot(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const fs::directory_entry& e : fs::recursive_directory_iterator(folder)) {
    const bool link = e.is_symlink();
    all[e.path().string()] = concat(int(e.symlink_status().type()), ' ', int(e.symlink_status().permissions()), ' ',
                                    link               ? fs::read_symlink(e.path()).string()
                                    : e.is_directory() ? ""
                                                       : slurp(e.path().string()));
  }
  return all;
}

/// The inputs of all commands, made once.
struct Inputs {
  TempDir dir;
  std::string checkpoint = dir / "m.h5", text = dir / "text.txt", hf = dir / "hf", config = dir / "run.yaml",
              tokenizer = TinyCorpus::get().tokenizer_path();
  Inputs() {
    const Model m = tiny_model(tiny_model_config());
    RunConfig c;
    c.model = m.config;
    c.data.seq_len = m.seq_len;
    save_checkpoint(checkpoint, c, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
    spit(text, tiny_text(3000, 5));
    RunConfig run = tiny_run(dir / "run");
    run.train.steps = 1, run.optim.warmup_steps = 0;
    run.data.valid.clear();
    spit(config, to_yaml(run));
    Program p({"export", checkpoint, hf, "--format", "hf"});
    if (p.wait() != 0) throw std::runtime_error(p.err());
  }
  static const Inputs& get() {
    static const Inputs inputs;
    return inputs;
  }
};

/// A command that writes into a folder, and what a user may have put there.
class Replaces {
 public:
  explicit Replaces(std::vector<std::string> command) : command_(std::move(command)) {}
  TempDir dir;

  void succeeds() const {
    Program p(command_);
    EXPECT_EQ(p.wait(), 0) << p.err();
  }
  /// With `spoil` it ends with status 73 and one line that says `what`, and nothing changes; without, it works again.
  void refuses(const char* what, const std::function<void()>& spoil) const {
    SCOPED_TRACE(what);
    const std::string backup = kept_ / "backup";
    fs::remove_all(backup);
    fs::copy(dir.path(), backup, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    spoil();
    const auto before = snapshot(dir.path());
    Program p(command_);
    EXPECT_EQ(p.wait(), 73);
    const std::string said = p.err(), last = said.substr(said.rfind('\n', said.size() - 2) + 1);
    EXPECT_TRUE(last.starts_with("mmfree: ")) << said;
    EXPECT_NE(last.find(what), std::string::npos) << said;
    EXPECT_EQ(snapshot(dir.path()), before);
    for (const auto& e : fs::directory_iterator(dir.path())) fs::remove_all(e.path());
    fs::copy(backup, dir.path(), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  }
  void command(std::vector<std::string> command) { command_ = std::move(command); }

 private:
  std::vector<std::string> command_;
  TempDir kept_;
};

void flip(const std::string& path) {
  std::string bytes = slurp(path);
  bytes[bytes.size() / 2] ^= 1;
  spit(path, bytes);
}

int mode_of(const std::string& path) { return int(fs::status(path).permissions()); }
void set_mode(const std::string& path, int mode) { fs::permissions(path, fs::perms(mode)); }

TEST(Replace, AnHfFolderOnlyIfAnExportWroteEveryFile) {
  Replaces r({});
  const std::string p = r.dir / "p";
  r.command({"export", Inputs::get().checkpoint, p, "--format", "hf", "--overwrite"});
  r.refuses(".git", [&] {
    fs::create_directories(p + "/.git");
    spit(p + "/config.json", "{}");
    spit(p + "/thesis.tex", "x");
  });
  r.succeeds();
  r.refuses("README.md", [&] { spit(p + "/README.md", "my own card"); });
  r.refuses("thesis.tex", [&] { spit(p + "/thesis.tex", "x"); });
  r.refuses("'.git' and 1 more", [&] { fs::create_directory(p + "/.git"), spit(p + "/z", ""); });
  r.refuses("config.json", [&] {
    fs::rename(p + "/config.json", r.dir / "mine.json");
    fs::create_symlink("../mine.json", p + "/config.json");
  });
  r.refuses("/p.old), or choose", [&] { fs::remove(p + "/.mmfree-hf"); });
  r.refuses("is not a mark", [&] { flip(p + "/.mmfree-hf"); });
  set_mode(p, 0750);
  set_mode(p + "/model.safetensors", 0600);
  set_mode(p + "/README.md", 0640);
  r.succeeds();
  EXPECT_EQ(mode_of(p), 0750);
  EXPECT_EQ(mode_of(p + "/model.safetensors"), 0600);
  EXPECT_EQ(mode_of(p + "/README.md"), 0640);
  EXPECT_EQ(r.dir.files(), 1u);
}

TEST(Replace, ATernaryExportOnlyIfItIsIntact) {
  const Inputs& in = Inputs::get();
  Replaces r({});
  const std::string m = r.dir / "m.mmfree";
  r.command({"export", in.checkpoint, m, "--overwrite"});
  r.succeeds();
  r.refuses("m.mmfree: ", [&] { spit(m, "mine"); });
  r.refuses("m.mmfree: ", [&] { spit(m, slurp(in.hf + "/model.safetensors")); });
  r.refuses("the file is damaged", [&] { flip(m); });
  r.refuses("not a regular file", [&] { fs::rename(m, r.dir / "v1"), fs::create_symlink("v1", m); });
  r.refuses("not a regular file", [&] { fs::remove(m), fs::create_symlink("nothing", m); });
  set_mode(m, 0600);
  r.succeeds();
  EXPECT_EQ(mode_of(m), 0600);
}

TEST(Replace, AnImportOnlyACheckpoint) {
  const Inputs& in = Inputs::get();
  Replaces r({});
  const std::string m = r.dir / "m.h5";
  r.command({"import", in.hf, m, "--overwrite"});
  r.succeeds();
  r.refuses("m.h5: ", [&] { spit(m, "mine"); });
  r.refuses("a 'tokens' file", [&] { h5::Writer(m + "x", "tokens").commit(), fs::rename(m + "x", m); });
  r.refuses("damaged", [&] { flip(m); });
  set_mode(m, 0640);
  r.succeeds();
  EXPECT_EQ(mode_of(m), 0640);
}

TEST(Replace, ATokenizerOnlyOneThatWasTrainedHere) {
  const Inputs& in = Inputs::get();
  Replaces r({});
  const std::string m = r.dir / "t.model";
  r.command({"tokenizer", "train", in.text, "-o", m, "--vocab-size", "300", "--overwrite"});
  r.succeeds();
  const std::string bytes = slurp(m);
  r.refuses("t.model: is not a tokenizer that", [&] { spit(m, bytes.substr(0, bytes.size() - 26)); });
  r.refuses("t.model: is not a tokenizer that", [&] { flip(m); });
  r.refuses("t.model: is not a tokenizer that", [&] { spit(m, bytes + bytes); });
  r.refuses("t.model: is not a tokenizer that", [&] { spit(m, ""); });
  set_mode(m, 0600);
  r.succeeds();
  EXPECT_EQ(mode_of(m), 0600);
  EXPECT_EQ(slurp(m), bytes);
}

TEST(Replace, ShardsOnlyThoseOfTheMark) {
  const Inputs& in = Inputs::get();
  const TempDir elsewhere;
  spit(elsewhere / "other.txt", tiny_text(500, 9));
  Program other({"prepare", elsewhere / "other.txt", "-t", in.tokenizer, "-o", elsewhere / "d"});
  ASSERT_EQ(other.wait(), 0) << other.err();
  const std::string foreign = elsewhere / "d/train-00000.h5";
  Replaces r({});
  const std::string d = r.dir / "d", first = d + "/train-00000.h5";
  r.command({"prepare", in.text, "-t", in.tokenizer, "-o", d, "--overwrite"});
  r.refuses("train-best.h5", [&] {
    fs::create_directory(d);
    fs::copy_file(in.checkpoint, d + "/train-best.h5");
  });
  r.succeeds();
  r.refuses("train-best.h5", [&] { fs::copy_file(in.checkpoint, d + "/train-best.h5"); });
  r.refuses("train-00007.h5", [&] { fs::copy_file(foreign, d + "/train-00007.h5"); });
  r.refuses("train-00000.h5", [&] { fs::remove(first), fs::copy_file(foreign, first); });
  r.refuses("train-00000.h5", [&] { fs::remove(first), fs::create_directory(first); });
  r.refuses("train-00000.h5", [&] { fs::rename(first, d + "/real"), fs::create_symlink("real", first); });
  r.refuses("mv ", [&] { fs::remove(d + "/.mmfree-shards"); });
  for (const char* hidden : {"/.preparing", "/.publishing"}) {
    r.refuses("notes.txt", [&] { fs::create_directory(d + hidden), spit(d + hidden + "/notes.txt", "x"); });
    r.refuses("train-1.h5", [&] {
      fs::create_directory(d + hidden);
      fs::copy_file(in.checkpoint, d + hidden + "/train-1.h5");
    });
    r.refuses(hidden, [&] { fs::create_directory(d + "/mine"), fs::create_symlink("mine", d + hidden); });
    r.refuses(hidden, [&] { spit(d + hidden, "x"); });
  }
  spit(d + "/train-notes.txt", "stays");
  set_mode(first, 0600);
  r.succeeds();
  EXPECT_EQ(mode_of(first), 0600);
  EXPECT_EQ(slurp(d + "/train-notes.txt"), "stays");
}

TEST(Replace, ANewRunOnlyFilesOfARun) {
  const Inputs& in = Inputs::get();
  Replaces r({});
  const std::string run = r.dir / "run";
  const std::vector<std::string> start = {"train", in.config, "-q", "train.run_dir=" + run,
                                          "data.tokenizer=" + in.tokenizer};
  r.command(start);
  const char* names[] = {"config.yaml", "config.resolved.yaml", "run.json", "tokenizer.model", "metrics.jsonl"};
  for (const char* name : names) r.refuses(name, [&] { fs::create_directory(run), spit(run + "/" + name, "mine"); });
  r.refuses("'config.yaml' and 1 more", [&] {
    fs::create_directory(run);
    for (const char* name : {"config.yaml", "tokenizer.model"}) spit(run + "/" + name, "mine");
  });
  r.refuses("metrics.jsonl", [&] {
    fs::create_directory(run);
    fs::create_symlink(spit(r.dir / "elsewhere", "mine"), run + "/metrics.jsonl");
  });
  r.refuses("is not a mark", [&] { fs::create_directory(run), spit(run + "/.mmfree-run", "mine"); });

  // Copies of what the run is started with may lie there. They stay the user's.
  fs::create_directory(run);
  fs::copy_file(in.config, run + "/config.yaml");
  fs::copy_file(in.tokenizer, run + "/tokenizer.model");
  r.succeeds();
  // As if it had been killed before its first checkpoint, at different times.
  for (const char* missing : {"", "run.json", "metrics.jsonl", "config.resolved.yaml"}) {
    fs::remove_all(run + "/checkpoints");
    if (*missing) fs::remove(run + "/" + missing);
    r.succeeds();
  }
  fs::remove_all(run + "/checkpoints");
  r.refuses("config.resolved.yaml", [&] { spit(run + "/config.resolved.yaml", "mine"); });
  r.refuses("tokenizer.model", [&] { spit(run + "/tokenizer.model", slurp(in.tokenizer) + "mine"); });
  r.refuses("no mark .mmfree-run", [&] { fs::remove(run + "/.mmfree-run"); });
  r.succeeds();

  // Its own resume needs no proof, and gives it.
  fs::remove(run + "/.mmfree-run");
  set_mode(run + "/run.json", 0600);
  std::vector<std::string> resumed = start;
  resumed.insert(resumed.end(), {"--resume", "train.steps=2"});
  r.command(resumed);
  r.succeeds();
  EXPECT_EQ(mode_of(run + "/run.json"), 0600);
  EXPECT_EQ(checkpoint_steps(run).back(), 2);
  // Another run's checkpoint begins a new run.
  const std::string fork = r.dir / "fork";
  std::vector<std::string> forked = start;
  forked[3] = "train.run_dir=" + fork;
  forked.push_back("train.resume=" + checkpoint_path(run, 2));
  forked.push_back("train.steps=3");
  r.command(forked);
  r.refuses("config.yaml", [&] { fs::create_directory(fork), spit(fork + "/config.yaml", "mine"); });
  r.succeeds();
}

}  // namespace
}  // namespace mmfree
