// The program as a user meets it: what each subcommand prints, and how each mistake ends.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <thread>

#include "core/gpu.h"
#include "tests/support/model_variants.h"
#include "tests/support/program.h"
#include "tests/support/shard_damage.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"
#include "train/formats/safetensors.h"
#include "train/inference/generate.h"
#include "train/inference/score.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Runs the program, which must succeed, and returns its standard output.
std::string output(const std::vector<std::string>& arguments, const std::string& input = "") {
  Program p(arguments, input);
  EXPECT_EQ(p.wait(), 0) << p.err();
  return p.out();
}

/// A folder with one checkpoint, and copies of it in every form, made once.
struct Files {
  TempDir dir;
  std::string checkpoint = dir / "m.h5", bare = dir / "bare.h5", damaged = dir / "damaged.h5", text = dir / "text.txt",
              config = dir / "run.yaml";
  Files() {
    const auto save = [](const std::string& path, const Model& m) {
      RunConfig c;
      c.model = m.config;
      c.data.seq_len = m.seq_len;
      save_checkpoint(path, c, *m.params, {m.params->values(), {}}, {}, m.tokenizer ? m.tokenizer->serialized() : "");
    };
    ModelConfig model = tiny_model_config();
    mix_precisions(model);
    save(checkpoint, tiny_model(model));
    model.vocab_size = 320;
    save(bare, tiny_model(model, false));
    std::string bytes = slurp(checkpoint);
    bytes[bytes.size() / 2] ^= 1;
    spit(damaged, bytes);
    spit(text, tiny_text(200, 5) + " é水🦉");
    spit(config, to_yaml(tiny_run(dir / "run")));
  }
  static const Files& get() {
    static const Files files;
    return files;
  }
};

const std::vector<std::vector<std::string>> kCommands = {{"prepare"},
                                                         {"tokenizer", "train"},
                                                         {"tokenizer", "info"},
                                                         {"train"},
                                                         {"eval"},
                                                         {"score"},
                                                         {"generate"},
                                                         {"export"},
                                                         {"import"},
                                                         {"info"}};

TEST(Commands, EachExplainsItselfWithAnExample) {
  for (std::vector<std::string> command : kCommands) {
    const std::string name = command.back();
    command.push_back("--help");
    const std::string help = output(command);
    EXPECT_TRUE(contains(help, "Example")) << name;
    EXPECT_TRUE(contains(help, "mmfree " + command[0])) << name;
    EXPECT_TRUE(contains(output({"--help"}), command[0])) << name;
  }
  EXPECT_TRUE(contains(output({"--version"}), "mmfree "));
  Program alone({});
  EXPECT_EQ(alone.wait(), 2);
  EXPECT_EQ(alone.err(), output({"--help"}));
  EXPECT_TRUE(contains(output({"train", "--help-config"}), "weight_decay_until"));
}

TEST(Commands, EveryMistakeHasItsStatusAndOneLine) {
  const Files& f = Files::get();
  const std::string folder = f.dir.path(), none = f.dir / "none", ok = f.checkpoint,
                    unwritable = f.dir / "text.txt/folder/out", tok = TinyCorpus::get().tokenizer_path(),
                    loop = f.dir / "loop", pipe = f.dir / "pipe", long_name = std::string(300, 'n');
  fs::create_symlink("loop", loop);
  ASSERT_EQ(0, ::mkfifo(pipe.c_str(), 0600));
  spit(f.dir / "bad.yaml", "model: {hidden: 3}\n");
  spit(f.dir / "bad.jsonl", "{\"text\": 3}\n");
  spit(f.dir / "bad.h5", "MMFREEH5");
  spit(f.dir / "latin1.txt", "caf\xE9");
  struct Case {
    int status;
    std::vector<std::string> arguments;
    std::string part;
  };
  const std::vector<Case> cases = {
      {2, {"frobnicate"}, ""},
      {2, {"eval"}, "model"},
      {2, {"trian", f.config}, "no command 'trian'"},
      {2, {"eval", ok, f.text, "--nonsense"}, "nonsense"},
      {2, {"eval", ok, f.text, "--limit", "-1"}, "limit"},
      {2, {"prepare", f.text, "-t", tok, "-o", f.dir / "x", "--limit-mb", "nan"}, "limit-mb"},
      {2, {"tokenizer", "train", f.text, "-o", f.dir / "x", "--limit-mb", "1e300"}, "limit-mb"},
      {2, {"eval", ok, f.text, "--seq-len", "0"}, "seq-len"},
      {2, {"generate", ok, "--temperature", "-1"}, "temperature"},
      {2, {"generate", ok, "--top-p", "1.5"}, "top-p"},
      {2, {"generate", ok, "--temperature", "nan"}, "temperature"},
      {2, {"export", ok, f.dir / "x", "--format", "onnx"}, "format"},
      {2, {"export", ok, f.dir / "x", "--format", "gguf", "--gguf-type", "Q4_K"}, "gguf-type"},
      {2, {"train"}, "no configuration"},
      {2, {"eval", ok, f.text, "--compute", "f64"}, "compute"},
      {2, {"score", ok}, "--text"},
      {2, {"info", "--verify"}, "needs a file"},
      {2, {"import", ok, f.dir / "x"}, "not a folder"},
      {2, {"export", ok, ok, "--overwrite"}, "is the model"},
      {66, {"train", none}, none},
      {66, {"train", f.config, "data.train=" + none}, none},
      {66, {"train", f.config, "train.resume=" + none}, none},
      {66, {"train", f.config, "train.resume=true"}, "no intact checkpoint"},
      {66, {"eval", none, f.text}, none},
      {66, {"eval", ok, none}, none},
      {66, {"eval", f.bare, f.text}, "--tokenizer"},
      {66, {"score", none, "--text", "a"}, none},
      {66, {"score", ok, "--input", none}, none},
      {66, {"generate", none}, none},
      {66, {"generate", ok, "--tokenizer", none}, none},
      {66, {"generate", f.bare}, "--tokenizer"},
      {66, {"export", none, f.dir / "x"}, none},
      {66, {"import", none, f.dir / "x"}, none},
      {66, {"info", none}, none},
      {66, {"tokenizer", "info", none}, none},
      {66, {"tokenizer", "train", none, "-o", f.dir / "x"}, none},
      {66, {"prepare", none, "-t", tok, "-o", f.dir / "x"}, none},
      {66, {"prepare", f.text, "-t", none, "-o", f.dir / "x"}, none},
      {65, {"eval", f.damaged, f.text}, f.damaged},
      {65, {"eval", ok, f.damaged}, f.damaged},
      {65, {"eval", ok, f.dir / "latin1.txt"}, "latin1.txt"},
      {65, {"score", f.damaged, "--text", "a"}, f.damaged},
      {65, {"score", ok, "--input", f.text}, "text.txt:1"},
      {65, {"score", ok, "--input", f.dir / "bad.jsonl"}, "bad.jsonl:1"},
      {74, {"score", ok, "--input", folder}, folder + ": read failed: Is a directory"},
      {66, {"info", loop}, loop},
      {66, {"eval", loop, f.text}, loop},
      {66, {"export", loop, f.dir / "x"}, loop},
      {66, {"train", loop}, loop},
      {66, {"train", long_name}, "File name too long"},
      {65, {"info", pipe}, pipe},
      {65, {"generate", pipe}, pipe},
      {65, {"generate", f.damaged}, f.damaged},
      {65, {"export", f.damaged, f.dir / "x"}, f.damaged},
      {65, {"info", f.damaged}, f.damaged},
      {65, {"info", f.dir / "bad.h5"}, "bad.h5"},
      {65, {"info", f.text}, "text.txt"},
      {65, {"tokenizer", "info", f.text}, "text.txt"},
      {65, {"prepare", f.dir / "bad.jsonl", "-t", tok, "-o", f.dir / "x"}, "bad.jsonl"},
      {65, {"prepare", f.text, "-t", f.text, "-o", f.dir / "x"}, "text.txt"},
      {65, {"train", f.config, "data.train=" + ok}, ok},
      {65, {"train", f.config, "data.tokenizer=" + f.text}, "text.txt"},
      {65, {"train", f.config, "train.resume=" + f.damaged}, f.damaged},
      {65, {"train", f.config, "train.resume=" + ok}, "without optimizer state"},
      {73, {"export", ok, unwritable}, unwritable},
      {73, {"export", ok, f.text}, "--overwrite"},
      {73, {"export", ok, folder, "--format", "hf"}, folder},
      {73, {"export", ok, f.dir / "text.txt/hf", "--format", "hf"}, "text.txt"},
      {73, {"tokenizer", "train", f.text, "-o", unwritable, "--vocab-size", "300"}, "text.txt/folder: cannot create"},
      {73, {"prepare", f.text, "-t", tok, "-o", f.dir / "text.txt/x"}, "text.txt"},
      {73, {"train", f.config, "train.run_dir=" + (f.dir / "text.txt/x")}, "text.txt"},
      {78, {"train", f.dir / "bad.yaml"}, "hidden"},
      {78, {"train", f.config, "optim.lr=fast"}, "optim.lr"},
      {78, {"train", f.config, "train.micro_batch_size=3"}, "micro_batch_size"},
      {78, {"train", f.config, "data.train=[]"}, "data.train"},
      {78, {"train", f.config, "train.device=gpu"}, "train.device: expected auto|cpu|cuda|cuda:N, found 'gpu'"},
      {78, {"eval", ok, f.text, "--device", "gpu"}, "--device: expected auto, cpu, cuda or cuda:N"},
      {78, {"eval", ok, f.text, "--device", "cpu", "--compute", "bf16"}, "bf16 activations need a GPU"},
      {78, {"score", ok, "--text", "a", "--device", "cuda:x"}, "'cuda:x'"},
      {78, {"generate", ok, "--device", "CPU"}, "'CPU'"},
  };
  for (const Case& c : cases) {
    std::string line;
    for (const std::string& a : c.arguments) line += a + " ";
    SCOPED_TRACE(line);
    Program p(c.arguments);
    EXPECT_EQ(p.wait(), c.status) << p.err();
    EXPECT_EQ(p.out(), "");
    EXPECT_TRUE(contains(p.err(), c.part)) << p.err();
    const std::string err = p.err();
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    EXPECT_EQ(err.rfind("mmfree: ", 0), 0u) << err;
  }
  EXPECT_TRUE(!fs::exists(f.dir / "x") || fs::is_empty(f.dir / "x"));
  EXPECT_FALSE(fs::exists(f.dir / "run"));
}

/// Runs the program by a shell, which sees to its standard files. Returns its status.
int by_shell(const std::string& arguments) {
  const int status = std::system(concat('\'', program_path(), "' ", arguments).c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(Commands, OutputThatDoesNotArriveIsAnError) {
  const Files& f = Files::get();
  const std::string err = f.dir / "full.err";
  for (const std::string& command : std::vector<std::string>{
           "--help", "info " + f.checkpoint, "score " + f.checkpoint + " --text a", "generate " + f.checkpoint,
           "eval " + f.checkpoint + " " + f.text, "tokenizer info " + TinyCorpus::get().tokenizer_path()}) {
    SCOPED_TRACE(command);
    EXPECT_EQ(by_shell(command + " >/dev/full 2>" + err), 74);
    EXPECT_TRUE(contains(slurp(err), "mmfree: standard output: cannot be written: ")) << slurp(err);
    EXPECT_EQ(by_shell(command + " >&- 2>" + err), 74);
    EXPECT_TRUE(contains(slurp(err), "mmfree: standard output: cannot be written: ")) << slurp(err);
  }
}

TEST(Commands, NamesInMessagesKeepToTheirLine) {
  Program p({"info", "no\nsuch\x1b[31m\tfile"});
  EXPECT_EQ(p.wait(), 66);
  EXPECT_EQ(p.err(), "mmfree: no\\x0asuch\\x1b[31m\\x09file: does not exist\n");
}

TEST(Commands, ATokenizerReplacesNoInputAndNoOtherFileUnasked) {
  const TempDir dir;
  spit(dir / "text.txt", tiny_text(3000, 1));
  const std::string text = slurp(dir / "text.txt");
  const auto train = [&](const std::string& out, bool overwrite) {
    std::vector<std::string> words = {"tokenizer", "train", dir / "text.txt", "-o", out, "--vocab-size", "300"};
    if (overwrite) words.push_back("--overwrite");
    Program p(words);
    return std::pair{p.wait(), p.err()};
  };
  fs::create_symlink("text.txt", dir / "link.txt");
  for (const char* name : {"text.txt", "link.txt"}) {
    const auto [status, said] = train(dir / name, true);
    EXPECT_EQ(status, 2);
    EXPECT_TRUE(contains(said, "is one of the inputs")) << said;
    EXPECT_EQ(slurp(dir / "text.txt"), text);
  }
  spit(dir / "other", "mine");
  for (const bool overwrite : {false, true}) {
    EXPECT_EQ(train(dir / "other", overwrite).first, 73);
    EXPECT_EQ(slurp(dir / "other"), "mine");
  }
  EXPECT_EQ(train(dir / "tok.model", false).first, 0);
  EXPECT_EQ(train(dir / "tok.model", false).first, 73);
  EXPECT_EQ(train(dir / "tok.model", true).first, 0);
  EXPECT_EQ(Tokenizer::load(dir / "tok.model").vocab_size(), 300);
  EXPECT_EQ(train("/dev/null", true).first, 73);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(Commands, AnImportMustBeReadable) {
  const Files& f = Files::get();
  const TempDir dir;
  output({"export", f.checkpoint, dir / "hf", "--format", "hf"});
  const std::string path = dir / "hf/config.json", good = slurp(path);
  const auto with = [&](const char* key, const json& value) {
    json config = json::parse(good);
    config[key] = value;
    spit(path, config.dump());
  };
  for (const auto& [key, value] : std::vector<std::pair<const char*, json>>{
           {"max_position_embeddings", 0}, {"max_position_embeddings", -5}, {"initializer_range", 5000.0}}) {
    with(key, value);
    for (const std::vector<std::string>& command :
         {std::vector<std::string>{"import", dir / "hf", dir / "x.h5"}, {"eval", dir / "hf", f.text}}) {
      Program p(command);
      EXPECT_EQ(p.wait(), 65) << p.err();
      EXPECT_TRUE(contains(p.err(), key)) << p.err();
      EXPECT_FALSE(fs::exists(dir / "x.h5"));
    }
  }
  with("max_position_embeddings", 1 << 30);
  output({"import", dir / "hf", dir / "x.h5"});
  EXPECT_TRUE(contains(output({"info", dir / "x.h5"}), "checkpoint"));
  Program over({"import", dir / "hf", dir / "hf/model.safetensors", "--overwrite"});
  EXPECT_EQ(over.wait(), 2);
  const std::string weights = slurp(dir / "hf/model.safetensors");
  Program replaced({"export", dir / "hf", dir / "hf/model.safetensors", "--overwrite"});
  EXPECT_EQ(replaced.wait(), 2);
  EXPECT_EQ(slurp(dir / "hf/model.safetensors"), weights);
  EXPECT_TRUE(contains(over.err(), "the model to be")) << over.err();
}

TEST(Commands, ResumeBeginsWhereTheRunBeganUntilItHasACheckpoint) {
  const Files& f = Files::get();
  const TempDir dir;
  output({"train", f.config, "-q", "train.run_dir=" + (dir / "first"), "train.save_every=4", "train.keep_last=9"});
  const std::vector<std::string> fork = {"train",
                                         f.config,
                                         "-q",
                                         "train.run_dir=" + (dir / "fork"),
                                         "train.resume=" + checkpoint_path(dir / "first", 8),
                                         "train.save_every=1",
                                         "--resume"};
  output(fork);
  EXPECT_EQ(timeless_metrics(dir / "fork").front()["step"], 9);
  fs::remove(checkpoint_path(dir / "fork", 12));
  Program again(fork);
  EXPECT_EQ(again.wait(), 0);
  EXPECT_TRUE(contains(again.err(), "resuming from " + checkpoint_path(dir / "fork", 11))) << again.err();
}

TEST(Commands, ClosedStandardFilesPutNoMessageIntoOtherFiles) {
  const Files& f = Files::get();
  const TempDir dir;
  output({"train", f.config, "train.run_dir=" + (dir / "open"), "-q"});
  EXPECT_EQ(by_shell("train " + f.config + " train.run_dir=" + (dir / "closed") + " <&- >&- 2>&-"), 0);
  EXPECT_EQ(timeless_metrics(dir / "open"), timeless_metrics(dir / "closed"));
  EXPECT_EQ(learned(checkpoint_path(dir / "open", 12)), learned(checkpoint_path(dir / "closed", 12)));
  EXPECT_EQ(by_shell("score " + f.checkpoint + " --input - <&- 2>" + (dir / "err")), 74);
  EXPECT_EQ(slurp(dir / "err"), "mmfree: standard input: read failed: Bad file descriptor\n");
}

TEST(Commands, ScoreAnswersLineByLineAndRefusesALineWithoutEnd) {
  const Files& f = Files::get();
  const TempDir dir;
  ASSERT_EQ(0, ::mkfifo((dir / "ask").c_str(), 0600));
  Program scoring({"score", f.checkpoint, "--input", dir / "ask"});
  const auto answers = [&] {
    const std::string out = scoring.out();
    return std::count(out.begin(), out.end(), '\n');
  };
  {
    std::ofstream ask(dir / "ask");
    for (int asked : {1, 2}) {
      ask << "[1, 2, 3]" << std::endl;
      for (int waits = 0; waits < 6000 && scoring.running() && answers() < asked; ++waits)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ASSERT_EQ(answers(), asked);
    }
  }
  EXPECT_EQ(scoring.wait(), 0) << scoring.err();
  EXPECT_EQ(answers(), 2);
  Program endless({"score", f.checkpoint, "--input", "/dev/zero"});
  EXPECT_EQ(endless.wait(), 65);
  EXPECT_EQ(endless.err(), "mmfree: /dev/zero: a line is longer than 134217728 bytes; split it\n");
}

/// The line of `text` that begins at the first `word`.
std::string line_of(const std::string& text, const std::string& word) {
  const size_t at = text.find(word);
  return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
}

TEST(Commands, ADryRunSaysHowMuchMemoryTrainingTakesWithoutAnyOfIt) {
  const Files& f = Files::get();
  // A model of 2.7 billion parameters, on any machine.
  const std::vector<std::string> big = {"train", source_dir() + "/configs/2.7b.yaml", "--dry-run", "train.device=cuda",
                                        "train.micro_batch_size=1"};
  const std::string said = output(big);
  EXPECT_TRUE(contains(said, "\n2.70G parameters, 1 x ")) << said;
  EXPECT_TRUE(contains(said, "  device: \"cuda\"                              # command line\n")) << said;
  EXPECT_TRUE(contains(said, "  micro_batch_size: 1                         # command line\n")) << said;
  EXPECT_TRUE(contains(said, "# " + source_dir() + "/configs/2.7b.yaml:")) << said;
  EXPECT_TRUE(contains(said, "# default\n")) << said;
  EXPECT_TRUE(contains(said, "\nparameters  2.70G: 2.54G matrix, ")) << said;
  EXPECT_TRUE(contains(said, "activations in bf16 on a GPU")) << said;
  EXPECT_TRUE(contains(said, "0.6 GB more")) << said;
  double state = 0, before = 1e9;
  for (const char* recompute : {"none", "rounded", "selective", "full"}) {
    const size_t line = said.find(concat("train.recompute=", recompute));
    ASSERT_NE(line, std::string::npos) << said;
    double peak = 0;
    ASSERT_EQ(2, std::sscanf(said.c_str() + line, "train.recompute=%*s state %lf GB, peak %lf GB", &state, &peak));
    EXPECT_NEAR(2.7024 * 16 + 2.6195 * 1.25, state, 0.1)
        << "four numbers per parameter, and for those in matrices a byte, and two bits for telemetry";
    EXPECT_GT(peak, state);
    EXPECT_LT(peak, before);
    before = peak;
    const std::string whole = line_of(said, concat("train.recompute=", recompute));
    EXPECT_EQ(contains(whole, "<- this configuration"), recompute == std::string("selective")) << whole;
  }
  const std::string here = output({"train", f.config, "--dry-run", "train.device=cpu"});
  EXPECT_TRUE(contains(here, "activations in f32 on the CPU")) << here;
  EXPECT_FALSE(contains(here, "0.6 GB more")) << here;
  EXPECT_TRUE(contains(here, "=auto is selective on the CPU where that saves more than 0.20 GB, here 0.00 GB")) << here;
  EXPECT_TRUE(contains(line_of(here, "train.recompute=none"), "<- this configuration")) << here;
  EXPECT_FALSE(fs::exists(f.dir / "run"));
}

TEST(Commands, ADeviceThatIsNotThereIsRefusedInOneLine) {
  if (gpu::problem().empty()) GTEST_SKIP() << "there is a GPU";
  const Files& f = Files::get();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"eval", f.checkpoint, f.text, "--device", "cuda"},
        {"eval", f.checkpoint, f.text, "--device", "cuda:1", "--compute", "f32"},
        {"score", f.checkpoint, "--text", "a", "--device", "cuda"},
        {"generate", f.checkpoint, "--device", "cuda"},
        {"train", f.config, "train.device=cuda"}}) {
    SCOPED_TRACE(command[0]);
    Program p(command);
    EXPECT_EQ(p.wait(), 78) << p.err();
    EXPECT_EQ(p.out(), "");
    const std::string where = command[0] == "train" ? f.config + ": train.device" : "--device", err = p.err();
    EXPECT_EQ(err, "mmfree: " + where + ": " + gpu::problem(command.back() == "f32") + "; or choose device cpu\n");
  }
  EXPECT_FALSE(fs::exists(f.dir / "run"));
  // On the CPU by name, by default and in its own dtype: one and the same.
  const std::string expected = output({"eval", f.checkpoint, f.text, "--json", "--device", "cpu"});
  EXPECT_TRUE(contains(expected, "loss")) << expected;
}

TEST(Commands, ExportsAndImportsKeepTheModelAndItsFile) {
  const Files& f = Files::get();
  const std::string before = slurp(f.checkpoint);
  const TempDir dir;
  EXPECT_TRUE(contains(output({"export", f.checkpoint, dir / "m.mmfree"}), "equal the checkpoint's to the bit"));
  output({"export", f.checkpoint, dir / "hf", "--format", "hf"});
  output({"import", dir / "hf", dir / "back.h5"});
  output({"export", dir / "back.h5", dir / "hf2", "--format", "hf", "--max-shard-mb", "1"});
  output({"export", dir / "hf", dir / "from_hf.mmfree"});
  EXPECT_EQ(slurp(dir / "hf/model.safetensors"), slurp(dir / "hf2/model.safetensors"));
  EXPECT_EQ(slurp(dir / "hf/tokenizer.model"), slurp(dir / "hf2/tokenizer.model"));
  for (const auto& [name, bytes] : learned(f.checkpoint)) EXPECT_EQ(learned(dir / "back.h5").at(name), bytes) << name;
  const SafetensorsReader a(dir / "m.mmfree"), b(dir / "from_hf.mmfree");
  ASSERT_EQ(a.names(), b.names());
  for (const std::string& name : a.names()) EXPECT_EQ(a.bytes(name), b.bytes(name)) << name;

  // All forms score the same, exactly.
  std::vector<json> results;
  for (const std::string& model :
       {f.checkpoint, dir / "m.mmfree", dir / "hf", dir / "back.h5", dir / "from_hf.mmfree"}) {
    json j = json::parse(output({"eval", model, f.text, "--json", "--seq-len", "33"}));
    EXPECT_EQ(j["model"], model);
    j.erase("model");
    results.push_back(j);
    EXPECT_EQ(j, results.front());
    EXPECT_EQ(output({"generate", model, "-p", "ka", "-n", "30", "--seed", "5"}),
              output({"generate", f.checkpoint, "-p", "ka", "-n", "30", "--seed", "5"}));
  }
  EXPECT_EQ(results[0]["seq_len"], 33);
  EXPECT_DOUBLE_EQ(results[0]["ppl"], std::exp(results[0]["loss"].get<double>()));
  EXPECT_EQ(slurp(f.checkpoint), before);

  // A folder that holds the model to be exported is not replaced, by whatever name.
  fs::rename(dir / "back.h5", dir / "hf2/back.h5");
  fs::create_symlink(dir / "hf2/back.h5", dir / "link.h5");
  for (const std::string& model : {dir / "hf2/back.h5", dir / "link.h5"}) {
    Program holds({"export", model, dir / "hf2", "--format", "hf", "--overwrite"});
    EXPECT_EQ(holds.wait(), 2);
    EXPECT_TRUE(contains(holds.err(), "holds the model")) << holds.err();
  }
  EXPECT_TRUE(fs::exists(dir / "hf2/back.h5"));
  const std::string newest = checkpoint_path(dir / "run", 3);
  fs::create_directories(dir / "run/checkpoints");
  fs::copy_file(f.checkpoint, newest);
  Program is({"export", dir / "run", newest, "--overwrite"});
  EXPECT_EQ(is.wait(), 2);
  EXPECT_EQ(slurp(newest), before);

  Program refused({"export", dir / "m.mmfree", dir / "hf3", "--format", "hf"});
  EXPECT_EQ(refused.wait(), 2);
  EXPECT_TRUE(contains(refused.err(), "holds no latent weights"));
  output({"export", f.checkpoint, dir / "m.mmfree", "--embedding", "int8", "--overwrite"});
  output({"generate", dir / "m.mmfree", "-n", "3"});
}

TEST(Commands, ALimitOfFileSizeEndsInOneLineAndLeavesWhatWasThere) {
  const Files& f = Files::get();
  const TempDir dir;
  output({"export", f.checkpoint, dir / "m.mmfree"});
  const std::string older = slurp(dir / "m.mmfree");
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{5000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  Program p({"export", f.checkpoint, dir / "m.mmfree", "--overwrite"});
  const int status = p.wait();
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(status, 74);
  EXPECT_EQ(p.err(), "mmfree: " + (dir / "m.mmfree") + ": write failed: File too large\n");
  EXPECT_EQ(slurp(dir / "m.mmfree"), older);
  EXPECT_EQ(dir.files(), 1u);
}

TEST(Commands, EvalCountsTheTextsBytes) {
  const Files& f = Files::get();
  const std::string text = output({"eval", f.checkpoint, f.text});
  EXPECT_TRUE(contains(text, concat("over ", slurp(f.text).size(), " bytes of text"))) << text;
  EXPECT_TRUE(contains(text, "windows of 17")) << text;
  EXPECT_GT(json::parse(output({"eval", f.checkpoint, TinyCorpus::get().valid(), "--json"}))["tokens"], 100);
  EXPECT_EQ(json::parse(output({"eval", f.checkpoint, TinyCorpus::get().valid(), "--json", "--limit", "40"}))["tokens"],
            40);
}

TEST(Commands, ScorePrintsOneJsonObjectPerText) {
  const Files& f = Files::get();
  const Model m = load_model(f.checkpoint);
  const std::string lines =
      "\"ka lo é\"\n\n{\"text\": \"ka lo é\"}\n[1, 17, 4]\n{\"tokens\": [1, 17, 4]}\n{\"text\": \"\"}\n";
  std::istringstream out(output({"score", f.checkpoint, "--text", "ka lo é", "--input", "-"}, lines));
  std::vector<json> rows;
  for (std::string line; std::getline(out, line);) rows.push_back(json::parse(line));
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[0], rows[1]);
  EXPECT_EQ(rows[0], rows[2]);
  EXPECT_EQ(rows[3], rows[4]);
  EXPECT_EQ(rows[5]["scored"], 0);
  std::vector<int32_t> ids = m.tokenizer->encode("ka lo é");
  ids.insert(ids.begin(), m.tokenizer->bos_id());
  for (const auto& [row, tokens] : {std::pair{rows[0], ids}, {rows[3], {1, 17, 4}}}) {
    EXPECT_EQ(row["tokens"], tokens);
    const TokenScores s = score(*m.lm, tokens);
    ASSERT_EQ(row["logprobs"].size(), tokens.size());
    EXPECT_TRUE(row["logprobs"][0].is_null());
    EXPECT_TRUE(row["greedy"][0].is_null());
    double sum = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      EXPECT_EQ(row["logprobs"][i + 1], s.logprobs[i]);
      EXPECT_EQ(row["greedy"][i + 1], bool(s.greedy[i]));
      EXPECT_EQ(row["pieces"][i + 1], m.tokenizer->piece(tokens[i + 1]));
      sum += s.logprobs[i];
    }
    EXPECT_EQ(row["sum_logprob"], sum);
    EXPECT_EQ(row["scored"], tokens.size() - 1);
  }
  EXPECT_EQ(json::parse(output({"score", f.checkpoint, "--no-bos", "--text", "ka lo é"}))["tokens"].size(),
            ids.size() - 1);
  for (const std::string bad : {"[]", "[1, 2.5]", "[-1]", "[1, 323]", "[99999999999999999999]", "null", "7",
                                "{\"other\": 1}", "[1, \"a\"]", "{", "\"\xff\""}) {
    Program p({"score", f.checkpoint, "--input", "-"}, bad + "\n");
    EXPECT_EQ(p.wait(), 65) << bad << p.err();
    EXPECT_TRUE(contains(p.err(), "-:1")) << p.err();
  }
}

TEST(Commands, GenerateContinuesThePrompt) {
  const Files& f = Files::get();
  const Model m = load_model(f.checkpoint);
  GenerateOptions o;
  o.max_tokens = 20, o.sampling = {.temperature = 1.1, .top_k = 50, .top_p = 0.9, .seed = 3};
  std::vector<int32_t> prompt = m.tokenizer->encode("ka é"), all = prompt;
  prompt.insert(prompt.begin(), m.tokenizer->bos_id());
  for (int32_t id : generate(*m.lm, prompt, o))
    if (id < m.tokenizer->vocab_size()) all.push_back(id);
  const std::vector<std::string> arguments = {"generate", f.checkpoint, "-p",           "ka é",    "-n",
                                              "20",       "--temp",     "1.1",          "--top-k", "50",
                                              "--top-p",  "0.9",        "--ignore-eos", "--seed"};
  const auto with_seed = [&](const std::string& seed) {
    std::vector<std::string> a = arguments;
    a.push_back(seed);
    return output(a);
  };
  EXPECT_EQ(with_seed("3"), m.tokenizer->decode(all) + "\n");
  EXPECT_EQ(with_seed("3"), with_seed("3"));
  EXPECT_NE(with_seed("3"), with_seed("4"));
  Program stats({"generate", f.checkpoint, "-n", "2", "--stats"});
  EXPECT_EQ(stats.wait(), 0);
  EXPECT_TRUE(contains(stats.err(), "tokens/s"));
}

TEST(Commands, InfoNamesEveryKindOfFile) {
  const Files& f = Files::get();
  const TempDir dir;
  output({"export", f.checkpoint, dir / "m.mmfree"});
  output({"export", f.checkpoint, dir / "hf", "--format", "hf"});
  const std::string parameters = concat("parameters  ", load_model(f.checkpoint).config.parameter_count());
  for (const auto& [path, kind] :
       std::vector<std::pair<std::string, std::string>>{{f.checkpoint, "checkpoint, hash verified"},
                                                        {dir / "m.mmfree", "ternary export"},
                                                        {dir / "hf", "Hugging Face folder"}}) {
    const std::string text = output({"info", path});
    EXPECT_TRUE(contains(text, kind)) << text;
    EXPECT_TRUE(contains(text, parameters)) << text;
    EXPECT_TRUE(contains(text, "mixers      mlgru, glu (silu), inner norms on, head of its own\n")) << text;
    EXPECT_TRUE(contains(text, "exceptions  0 in layers, 4 precision rules\n")) << text;
    EXPECT_TRUE(contains(text, "tokenizer   320 pieces")) << text;
  }
  ModelConfig differing = tiny_model_config();
  list_layers(differing);
  differing.tie_word_embeddings = true;
  const Model m = tiny_model(differing, false);
  NamedShapes tensors;
  for (const ParamSpec& spec : m.params->specs()) tensors.emplace_back(spec.name, spec.shape);
  write_hf_folder(dir / "layers", differing, tensors, [&](const std::string& n) { return (*m.params)[n].value(); });
  const std::string text = output({"info", dir / "layers"});
  EXPECT_TRUE(contains(text, "inner norms on, head tied\nexceptions  3 in layers, 0 precision rules\n")) << text;
  const std::string shard = fs::path(TinyCorpus::get().train()).parent_path() / "train-00000.h5";
  EXPECT_TRUE(contains(output({"info", shard}), "token shard (train)"));
  EXPECT_TRUE(contains(output({"info", TinyCorpus::get().tokenizer_path()}), "320 pieces"));
}

TEST(Commands, InfoTellsTheKindsOfAttention) {
  const TempDir dir;
  ModelConfig model = tiny_model_config();
  attend(model);
  model.num_hidden_layers = 4, model.sub_norm = true;
  model.layers = {layer_entry(3, [](LayerEntry&) {}), layer_entry(1, [](LayerEntry& e) { e.sliding_window = 7; })};
  const Model m = tiny_model(model, false);
  NamedShapes tensors;
  for (const ParamSpec& spec : m.params->specs()) tensors.emplace_back(spec.name, spec.shape);
  write_hf_folder(dir / "m", model, tensors, [&](const std::string& n) { return (*m.params)[n].value(); });
  const std::string text = output({"info", dir / "m"}), kind = "attention   4 heads of 8, 2 of keys and values, over ";
  EXPECT_TRUE(contains(text, "numerics    ternary\n")) << text;
  EXPECT_TRUE(contains(text, "inner norms on, sub-norms on, head of its own\n" + kind +
                                 "all tokens, rotary base 10000, in 3 of 4 layers\n" + kind +
                                 "the last 7 tokens, rotary base 10000, in 1 of 4 layers\n"))
      << text;
}

TEST(Commands, InfoVerifiesEveryByteIfAsked) {
  const Files& f = Files::get();
  const TempDir dir;
  const std::string shard = fs::path(TinyCorpus::get().train()).parent_path() / "train-00000.h5";
  fs::create_directories(dir / "run/checkpoints");
  fs::create_directory(dir / "data");
  for (const char* name : {"run/checkpoints/step-00000001.h5", "run/checkpoints/step-00000002.h5"})
    fs::copy(f.checkpoint, dir / name);
  fs::copy(shard, dir / "data/train-00000.h5");
  for (const std::string& one : {f.checkpoint, shard, dir / "data"})
    EXPECT_TRUE(contains(output({"info", one, "--verify"}), one + ": verified, 1 file matches its hash")) << one;
  fs::create_directory(dir / "old");
  fs::copy(shard, dir / "old/train-00000.h5");
  take_sums_away(dir / "old/train-00000.h5");
  EXPECT_TRUE(contains(output({"info", dir / "old", "--verify"}), "compares as it reads, added for 1 of them\n"));
  EXPECT_TRUE(fs::exists(dir / "old/train-00000.h5.sums"));
  EXPECT_FALSE(contains(output({"info", dir / "old", "--verify"}), "added")) << "they are there";
  EXPECT_TRUE(contains(output({"info", dir / "run", "--verify"}), "verified, 2 files match their hashes"));
  output({"export", f.checkpoint, dir / "m.mmfree"});
  EXPECT_TRUE(contains(output({"info", dir / "m.mmfree", "--verify"}), "verified, the export matches its hash"));
  output({"export", f.checkpoint, dir / "hf", "--format", "hf"});
  EXPECT_TRUE(contains(output({"info", dir / "hf", "--verify"}), "files match their hashes"));
  spit(dir / "hf/README.md", slurp(dir / "hf/README.md") + " ");
  for (const std::string& path : {dir / "data/train-00000.h5", dir / "run/checkpoints/step-00000001.h5"}) {
    std::string bytes = slurp(path);
    bytes[bytes.size() - 1] ^= 1;
    spit(path, bytes);
  }
  spit(dir / "bad.h5", "no HDF5");
  for (const std::string& damaged : {f.damaged, dir / "data", dir / "run", f.text, dir / "bad.h5", dir / "hf"}) {
    Program p({"info", damaged, "--verify"});
    EXPECT_EQ(p.wait(), 65) << damaged;
    EXPECT_TRUE(contains(p.err(), ": ")) << p.err();
  }
}

TEST(Commands, ExportNamesTheSettingThatOtherProgramsDoNotCompute) {
  const TempDir dir;
  RunConfig run;
  run.model = tiny_model_config();
  attend(run.model);
  for (const bool fused : {true, false}) {
    run.model.fused_gate = fused;
    const Model m = tiny_model(run.model, false);
    save_checkpoint(dir / "m.h5", run, *m.params, {m.params->values(), {}}, {}, "");
    Program p({"export", dir / "m.h5", concat(dir / "hf", fused), "--format", "hf"});
    EXPECT_EQ(p.wait(), 0);
    const bool told = contains(p.err(), "only mmfree loads; with model.fused_gate=false it would be a 'mistral'");
    EXPECT_EQ(told, fused) << p.err();
  }
}

TEST(Commands, FromTextToAModelThatGenerates) {
  const TempDir dir;
  spit(dir / "book.txt", tiny_text(3000, 1));
  output({"tokenizer", "train", dir / "book.txt", "-o", dir / "tok.model", "--vocab-size", "300"});
  EXPECT_TRUE(contains(output({"tokenizer", "info", dir / "tok.model", "--text", "ka é"}), "the same text"));
  output({"prepare", dir / "book.txt", "-t", dir / "tok.model", "-o", dir / "shards", "--valid-fraction", "0.1"});
  spit(dir / "c.yaml",
       "model: {vocab_size: 300, hidden_size: 32, num_hidden_layers: 1, intermediate_size: 40}\n"
       "train: {steps: 30, batch_size: 4, threads: 1, run_dir: " +
           (dir / "run") +
           "}\n"
           "data: {seq_len: 32, train: " +
           (dir / "shards/train-*.h5") + ", valid: " + (dir / "shards/valid-*.h5") +
           ", tokenizer: " + (dir / "tok.model") + "}\n");
  const std::string said = output({"train", dir / "c.yaml", "--quiet", "optim.lr=0.01"});
  EXPECT_TRUE(contains(said, "finished at step 30 of 30")) << said;
  EXPECT_EQ(slurp(dir / "c.yaml"), slurp(dir / "run/config.yaml"));
  EXPECT_TRUE(contains(slurp(dir / "run/config.resolved.yaml"), "lr: 0.01"));
  const std::string eval = output({"eval", dir / "run", dir / "shards/valid-*.h5"});
  const auto last = timeless_metrics(dir / "run").back();
  char loss[40];
  std::snprintf(loss, sizeof loss, "%.6f nats", last["val/loss"].get<double>());
  EXPECT_TRUE(contains(eval, loss)) << eval << last;
  output({"export", dir / "run", dir / "m.mmfree"});
  EXPECT_EQ(output({"generate", dir / "m.mmfree", "--prompt", "ka"}),
            output({"generate", dir / "run", "--prompt", "ka"}));
  EXPECT_TRUE(contains(output({"info", dir / "run"}), "step 30 of 30"));
  Program again({"train", dir / "c.yaml"});
  EXPECT_EQ(again.wait(), 78);
  EXPECT_TRUE(contains(again.err(), "already holds checkpoints")) << again.err();
}

}  // namespace
}  // namespace mmfree
