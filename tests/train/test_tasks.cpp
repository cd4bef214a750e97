// Zero-shot tasks: what is asked for each form of item, how it is scored and counted, and the stored answers of
// lm-evaluation-harness (tests/golden/zeroshot).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"
#include "train/formats/tokenizer_json.h"
#include "train/inference/recall.h"

namespace mmfree {
namespace {
using nlohmann::json;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// "context|continuation" of each choice.
std::vector<std::string> asked(const std::string& row, const std::string& task = "mine") {
  std::vector<std::string> all;
  for (const Question::Pair& p : parse_question(row, task, "here").choices)
    all.push_back(p.context + "|" + p.continuation);
  return all;
}

using Texts = std::vector<std::string>;

TEST(Question, ChoicesFollowTheQueryAndASpace) {
  const std::string row = R"({"query": "Question: Why?\nAnswer:", "choices": ["so", "naïve 水"], "gold": 1, "id": 7})";
  EXPECT_EQ(asked(row, "arc_easy"), (Texts{"Question: Why?\nAnswer:| so", "Question: Why?\nAnswer:| naïve 水"}));
  const Question q = parse_question(row, "mine", "here");
  EXPECT_EQ(q.gold, 1);
  EXPECT_EQ(q.characters, (std::vector<int64_t>{2, 7}));
}

TEST(Question, IsTheHarnessesWhereTheFileHasAnother) {
  const std::string arc = R"({"query": "Question: Fog is\nAnswer:", "choices": ["a", "b"], "gold": 0})";
  EXPECT_EQ(asked(arc, "openbookqa"), (Texts{"Fog is| a", "Fog is| b"}));
  EXPECT_EQ(asked(arc, "openbookqa_test"), (Texts{"Fog is| a", "Fog is| b"}));
  const std::string piqa =
      R"({"goal": "Sit", "sol1": "a ", "sol2": "b", "label": 0, "query": "Goal: Sit\nAnswer:", "choices": ["a ", "b"], "gold": 0})";
  EXPECT_EQ(asked(piqa, "piqa"), (Texts{"Question: Sit\nAnswer:| a ", "Question: Sit\nAnswer:| b"}));
  EXPECT_EQ(asked(piqa, "mine"), (Texts{"Goal: Sit\nAnswer:| a ", "Goal: Sit\nAnswer:| b"}));
  const std::string hellaswag =
      R"({"query": "Roof: A man sits. he", "choices": ["a", "b"], "gold": 0, "query_lmeval": "Roof: A man sits. He"})";
  EXPECT_EQ(asked(hellaswag, "hellaswag"), (Texts{"Roof: A man sits. He| a", "Roof: A man sits. He| b"}));
}

TEST(Question, AnOptionStandsInTheContextAndTheRestIsScored) {
  const std::string row =
      R"({"sentence": "Ann met Eve, so _  had tea_. ", "option1": "Ann", "option2": "Eve", "answer": "2"})";
  EXPECT_EQ(asked(row), (Texts{"Ann met Eve, so Ann| had tea_.", "Ann met Eve, so Eve| had tea_."}));
  const Question q = parse_question(row, "winogrande", "here");
  EXPECT_EQ(q.gold, 1);
  EXPECT_TRUE(q.characters.empty());
}

TEST(Question, ALastWordFollowsItsContext) {
  EXPECT_EQ(asked(R"({"context": "It is a", "continuation": "dog"})"), (Texts{"It is a| dog"}));
}

TEST(Question, AMalformedRowIsNamedWithItsKey) {
  const std::pair<const char*, const char*> rows[] = {
      {"[1]", "expected a JSON object"},
      {"{", "here: "},
      {R"({"text": "a"})", "expected the keys query, choices and gold"},
      {R"({"choices": ["a", "b"], "gold": 0})", "key 'query' is missing"},
      {R"({"query": 3, "choices": ["a", "b"], "gold": 0})", "key 'query' must be a text, got '3'"},
      {R"({"query": "q", "choices": ["a"], "gold": 0})", "key 'choices' must be a list of two or more"},
      {R"({"query": "q", "choices": ["a", ""], "gold": 0})", "key 'choices' must be a list of two or more"},
      {R"({"query": "q", "choices": "ab", "gold": 0})", "key 'choices' must be a list of two or more"},
      {R"({"query": "q", "choices": ["a", "b"]})", "key 'gold' is missing"},
      {R"({"query": "q", "choices": ["a", "b"], "gold": 2})", "key 'gold' must be an integer in 0..1, got '2'"},
      {R"({"query": "q", "choices": ["a", "b"], "gold": -1})", "key 'gold' must be an integer in 0..1, got '-1'"},
      {R"({"query": "q", "choices": ["a", "b"], "gold": "0"})", "key 'gold' must be an integer in 0..1"},
      {R"({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"})", "must hold a '_'"},
      {R"({"sentence": "a _", "option1": "a", "option2": "b", "answer": "3"})", "'answer' must be \"1\" or \"2\""},
      {R"({"sentence": "a _", "option1": "a", "answer": "1"})", "key 'option2' is missing"},
      {R"({"context": "a"})", "key 'continuation' is missing"}};
  for (const auto& [row, part] : rows) {
    try {
      parse_question(row, "mine", "here");
      ADD_FAILURE() << row;
    } catch (const DataError& e) {
      EXPECT_TRUE(contains(e.what(), part)) << e.what();
      EXPECT_TRUE(std::string(e.what()).starts_with("here: ")) << e.what();
    }
  }
}

TEST(MakeRequest, SplitsTokensWhereTheContextEnds) {
  const Tokenizer& t = TinyCorpus::get().tokenizer();
  const auto made = [&](const std::string& context, const std::string& continuation, int64_t window = 1000) {
    return make_request(t, {t.bos_id()}, {context, continuation}, window, "here");
  };
  const std::vector<int32_t> all = t.encode("kalo mitre su"), head = t.encode("kalo mitre");
  std::vector<int32_t> with_bos = all;
  with_bos.insert(with_bos.begin(), t.bos_id());
  // A space at the end of the context belongs to the continuation.
  for (const auto& [context, continuation] : {std::pair{"kalo mitre", " su"}, {"kalo mitre ", "su"}}) {
    const Request r = made(context, continuation);
    EXPECT_EQ(r.tokens, with_bos);
    EXPECT_EQ(r.scored, int64_t(all.size() - head.size()));
  }
  // Too long a context loses its first tokens, bos among them; a forward pass has at most `window` inputs.
  const Request cut = made("kalo mitre", " su", 3);
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(all.end() - 4, all.end()));
  EXPECT_EQ(cut.scored, int64_t(all.size() - head.size()));
  const Request whole = made("", "kalo");
  EXPECT_EQ(whole.scored, int64_t(t.encode("kalo").size()));
  EXPECT_EQ(int64_t(whole.tokens.size()), whole.scored + 1);
  EXPECT_THROW(make_request(t, {}, {"", "kalo"}, 100, "here"), DataError);
  EXPECT_THROW(made("kalo", ""), DataError);
  EXPECT_THROW(made("kalo", " mitre su von el da qui", 2), DataError);
}

/// Requests of many lengths; some share their inputs, some are equal.
std::vector<Request> some_requests(int64_t vocab) {
  std::vector<Request> all;
  for (uint64_t i = 0; i < 40; ++i) {
    const int64_t n = 2 + int64_t(i * 7 % 33);
    const Tensor ids = random_ids(n, vocab, i / 2);
    all.push_back({{ids.data<int32_t>(), ids.data<int32_t>() + n}, 1 + int64_t(i) % (n - 1)});
  }
  for (int32_t last = 0; last < 3; ++last) all.push_back({{5, 6, 7, last}, 1});
  all.push_back({{5, 6, 7, 2}, 2});
  all.push_back({{5, 6, 7, 2}, 2});
  return all;
}

TEST(Likelihoods, AreThoseOfEachSequenceAloneToTheBit) {
  ModelConfig config = tiny_model_config();
  mix_precisions(config);
  const Model m = tiny_model(config, false);
  const std::vector<Request> requests = some_requests(61);
  for (const int threads : {1, 3})
    for (const int64_t batch_tokens : {1, 50, 333, 0}) {
      SCOPED_TRACE(concat(threads, " threads, batches of ", batch_tokens));
      const Threads scope(threads);
      double share = 0;
      const std::vector<Likelihood> found =
          likelihoods(*m.lm, requests, {batch_tokens, [&](double s) { EXPECT_GT(s, std::exchange(share, s)); }});
      EXPECT_EQ(share, 1);
      ASSERT_EQ(found.size(), requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        const TokenScores alone = score(*m.lm, requests[i].tokens);
        Likelihood expected;
        for (size_t k = alone.logprobs.size() - size_t(requests[i].scored); k < alone.logprobs.size(); ++k) {
          expected.logprob += alone.logprobs[k];
          expected.greedy = expected.greedy && alone.greedy[k];
        }
        EXPECT_EQ(found[i].logprob, expected.logprob) << i;
        EXPECT_EQ(found[i].greedy, expected.greedy) << i;
      }
    }
}

TEST(Likelihoods, BadTokensAndLogitsAreRefused) {
  Model m = tiny_model(tiny_model_config(), false);
  EXPECT_THROW(likelihoods(*m.lm, {{{1, 61}, 1}}), DataError);
  EXPECT_TRUE(likelihoods(*m.lm, {}).empty());
  Tensor norm = (*m.params)["lm_head.norm.weight"].value();
  norm.mut<float>()[0] = NAN;
  EXPECT_THROW(likelihoods(*m.lm, {{{1, 2}, 1}}), DivergedError);
}

TEST(Estimate, IsTheMeanWithItsStandardError) {
  Task task{"t", {}, {}};
  task.items.resize(4);
  const std::vector<int64_t> gold = {0, 1, 1, 0};
  for (size_t i = 0; i < 4; ++i) task.items[i] = {{{}, {}}, {2, 8}, gold[i]};
  // Right without lengths: items 0 and 2. Right per character (of 2 and 8): items 1 and 2.
  const Answers answers = {
      {{-1, false}, {-2, true}}, {{-1, false}, {-2, true}}, {{-3, true}, {-2, true}}, {{-4, true}, {-2, false}}};
  EXPECT_EQ(estimate(Metric::acc, task, answers).value, 0.5);
  EXPECT_NEAR(estimate(Metric::acc, task, answers).error, std::sqrt(0.25 * 4 / 3 / 4), 1e-15);
  EXPECT_EQ(estimate(Metric::acc_norm, task, answers).value, 0.5);
  // Of the right choices: greedy no, yes, yes, yes; ln p −1, −2, −2, −4.
  EXPECT_EQ(estimate(Metric::exact_match, task, answers).value, 0.75);
  const double mean = -2.25, deviation = std::sqrt((1.5625 + 0.0625 + 0.0625 + 3.0625) / 3);
  EXPECT_EQ(estimate(Metric::logprob, task, answers).value, mean);
  EXPECT_NEAR(estimate(Metric::logprob, task, answers).error, deviation / 2, 1e-15);
  EXPECT_NEAR(estimate(Metric::perplexity, task, answers).value, std::exp(2.25), 1e-12);
  EXPECT_NEAR(estimate(Metric::perplexity, task, answers).error, std::exp(2.25) * deviation / 2, 1e-12);
  task.items.resize(1);
  EXPECT_TRUE(std::isnan(estimate(Metric::acc, task, answers).error));
}

TEST(Estimate, OfASingleChoiceAsksWhetherTheModelWouldSayIt) {
  const Task task{"t", {}, {{{{}}, {}, 0}, {{{}}, {}, 0}}};
  EXPECT_EQ(estimate(Metric::acc, task, {{{-1, true}}, {{-9, false}}}).value, 0.5);
}

TEST(Taken, IsTheFirstOfTheBest) {
  EXPECT_EQ(taken({{-2, false}, {-1, false}, {-1, false}}), 1);
  EXPECT_EQ(taken({{-2, false}, {-1, false}}, {4, 1}), 0);
}

TEST(Recall, AsksForTheFirstValueWhenItsKeyReturns) {
  const Model m = tiny_model(tiny_model_config());
  const std::vector<Task> tasks = recall_tasks(m, {.seed = 3, .items = 20, .longest = 100});
  ASSERT_EQ(tasks.size(), 3U);
  std::set<int64_t> golds;
  int64_t distance = 16;
  for (const Task& task : tasks) {
    EXPECT_EQ(task.name, concat("recall_", distance));
    ASSERT_EQ(task.items.size(), 20U);
    for (const TaskItem& item : task.items) {
      golds.insert(item.gold);
      ASSERT_EQ(item.choices.size(), 4U);
      std::set<int32_t> answers;
      for (const Request& r : item.choices) {
        EXPECT_EQ(r.scored, 1);
        ASSERT_EQ(int64_t(r.tokens.size()), distance + 3);
        EXPECT_EQ(r.tokens[0], m.tokenizer->bos_id());
        EXPECT_EQ(r.tokens[1], r.tokens[size_t(distance) + 1]);
        const std::set<int32_t> different(r.tokens.begin() + 1, r.tokens.begin() + distance + 1);
        EXPECT_EQ(int64_t(different.size()), distance);
        answers.insert(r.tokens.back());
        bool is_value = false;
        for (size_t i = 2; i < size_t(distance) + 1; i += 2) is_value |= r.tokens[i] == r.tokens.back();
        EXPECT_TRUE(is_value);
      }
      EXPECT_EQ(answers.size(), 4U);
      const Request& right = item.choices[size_t(item.gold)];
      EXPECT_EQ(right.tokens.back(), right.tokens[2]);
    }
    distance *= 2;
  }
  EXPECT_EQ(golds.size(), 4U) << "the right choice stands at any place";
}

TEST(Recall, DependsOnTheSeedAndFitsAnyVocabulary) {
  const auto tokens = [](const std::vector<Task>& tasks) {
    std::vector<std::vector<int32_t>> all;
    for (const Task& t : tasks)
      for (const TaskItem& item : t.items) all.push_back(item.choices[0].tokens);
    return all;
  };
  const Model m = tiny_model(tiny_model_config(), false);  // 61 tokens, no tokenizer
  const auto first = tokens(recall_tasks(m, {.seed = 1, .items = 5}));
  EXPECT_EQ(first.size(), 2U * 5) << "distances 16 and 32";
  EXPECT_EQ(first, tokens(recall_tasks(m, {.seed = 1, .items = 5})));
  EXPECT_NE(first, tokens(recall_tasks(m, {.seed = 2, .items = 5})));
  EXPECT_NE(first[0], first[1]);
  const auto more = tokens(recall_tasks(m, {.seed = 1, .items = 6}));
  EXPECT_EQ(std::vector(more.begin(), more.begin() + 5), std::vector(first.begin(), first.begin() + 5));
  ModelConfig small = tiny_model_config();
  small.vocab_size = 15;
  EXPECT_THROW(recall_tasks(tiny_model(small, false), {}), DataError);
}

TEST(Recall, OfAnUntrainedModelIsChance) {
  const Model m = tiny_model(tiny_model_config());
  const std::vector<Task> tasks = recall_tasks(m, {.seed = 1, .items = 400, .longest = 32});
  const std::vector<Answers> answers = answer(*m.lm, tasks);
  for (size_t t = 0; t < tasks.size(); ++t) {
    const Estimate acc = estimate(Metric::acc, tasks[t], answers[t]);
    EXPECT_NEAR(acc.value, 0.25, 4 * acc.error) << tasks[t].name;
  }
}

/// The stored answers of lm-eval to `tasks` tasks of a folder by one model; bounds of tests/golden/zeroshot/README.md.
void expect_as_stored(const std::string& name, double most_apart, double margin, const std::string& items = "items",
                      size_t tasks = 6) {
  const std::string folder = source_dir() + "/tests/golden/zeroshot/";
  const Model model = load_model(folder + name);
  std::map<std::string, std::vector<json>> stored;
  std::map<std::string, json> metrics;
  std::ifstream in(folder + name + (items == "items" ? "" : "-" + items) + ".jsonl");
  for (std::string line; std::getline(in, line);) {
    const json row = json::parse(line);
    if (row.contains("metrics"))
      metrics[row["task"]] = row["metrics"];
    else
      stored[row["task"]].push_back(row);
  }
  ASSERT_EQ(stored.size(), tasks);
  for (const auto& [task_name, rows] : stored) {
    SCOPED_TRACE(task_name);
    const Task task = read_task(find_task(task_name, folder + items), model, model.config.max_position_embeddings, 0);
    const Answers answers = answer(*model.lm, {task})[0];
    ASSERT_EQ(answers.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto logprobs = rows[i]["logprobs"].get<std::vector<double>>();
      const auto greedy = rows[i]["greedy"].get<std::vector<bool>>();
      ASSERT_EQ(answers[i].size(), logprobs.size());
      std::vector<Likelihood> theirs;
      for (size_t c = 0; c < logprobs.size(); ++c) {
        EXPECT_NEAR(answers[i][c].logprob, logprobs[c], most_apart) << "item " << i;
        EXPECT_EQ(answers[i][c].greedy, greedy[c]) << "item " << i;
        theirs.push_back({logprobs[c], false});
      }
      std::vector<double> sorted = logprobs;
      std::sort(sorted.rbegin(), sorted.rend());
      if (sorted.size() > 1 && sorted[0] - sorted[1] > margin) {
        EXPECT_EQ(taken(answers[i]), taken(theirs)) << "item " << i;
      }
    }
    for (const Metric metric : task.metrics) {
      const std::string key = name_of(metric);
      const Estimate e = estimate(metric, task, answers);
      EXPECT_NEAR(e.value, metrics[task_name][key].get<double>(), metric == Metric::perplexity ? 1e-3 * e.value : 1e-9);
      if (metric != Metric::perplexity) {
        EXPECT_NEAR(e.error, metrics[task_name][key + "_stderr"].get<double>(), 1e-9) << key;
      }
    }
  }
}

TEST(StoredResults, OfTheHarnessAreFoundInF32) { expect_as_stored("f32", 1e-3, 2e-3); }
TEST(StoredResults, OfTheHarnessAreFoundWithTernaryWeights) { expect_as_stored("ternary", 0.05, 0.05); }
TEST(StoredResults, OfTheHarnessesHfModelAreFound) { expect_as_stored("transformer", 1e-3, 2e-3); }
TEST(StoredResults, OfTheHarnessesHfModelAreFoundForUnusualTexts) {
  expect_as_stored("transformer", 1e-3, 2e-3, "edges", 4);
}

TEST(StoredResults, WereMadeFromAFolderAsItIsExportedNow) {
  const std::string stored = source_dir() + "/tests/golden/zeroshot/transformer";
  const Model model = load_model(stored);
  const int64_t length = model.config.max_position_embeddings;
  const HfTokenizer now = hf_tokenizer(model.need_tokenizer(), model.framing, length);
  EXPECT_EQ(now.refusal, "");
  for (const auto& [name, bytes] : now.files) EXPECT_EQ(slurp(stored + "/" + name), bytes) << name;
}

class EvalTasks : public testing::Test {
 protected:
  TempDir dir_;
  const std::string zeroshot_ = source_dir() + "/tests/golden/zeroshot/", model_ = zeroshot_ + "f32";

  /// What `mmfree eval MODEL --device cpu …` says on stderr; it must end with `status`.
  std::string refused(std::vector<std::string> arguments, int status) {
    arguments.insert(arguments.begin(), {"eval", model_, "--device", "cpu"});
    Program p(arguments);
    EXPECT_EQ(p.wait(), status);
    EXPECT_EQ(p.out(), "");
    const std::string err = p.err();
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    return err;
  }
};

TEST_F(EvalTasks, FindsTheFileOfATask) {
  const auto found = [&](const std::string& task) {
    const TaskFile file = find_task(task, dir_.path());
    return file.name + " in " + file.path;
  };
  spit(dir_ / "a_validation.jsonl.zst", "");
  EXPECT_EQ(found("a"), "a in " + (dir_ / "a_validation.jsonl.zst"));
  spit(dir_ / "a_test.jsonl", "");
  EXPECT_EQ(found("a"), "a in " + (dir_ / "a_test.jsonl"));
  EXPECT_EQ(found("a_validation"), "a_validation in " + (dir_ / "a_validation.jsonl.zst"));
  EXPECT_EQ(found("./b.jsonl.zst"), "b in ./b.jsonl.zst");
  EXPECT_EQ(found("b.jsonl"), "b in b.jsonl");
  EXPECT_THROW(found("b"), MissingError);
}

TEST_F(EvalTasks, ReportsNamedAndOwnTasksAndLogsEachItem) {
  const std::string own = spit(dir_ / "own.jsonl",
                               "{\"query\": \"A hen lays\", \"choices\": [\"eggs\", \"stones\"], \"gold\": 0}\n\n"
                               "{\"query\": \"A cow gives\", \"choices\": [\"tea\", \"milk\"], \"gold\": 1}\n");
  const std::string log = dir_ / "samples.jsonl";
  Program p({"eval", model_, "--device", "cpu", "--json", "--tasks", "winogrande," + own + ",recall", "--task-dir",
             zeroshot_ + "items", "--task-limit", "7", "--log-samples", log});
  ASSERT_EQ(p.wait(), 0) << p.err();
  const json tasks = json::parse(p.out())["tasks"];
  EXPECT_EQ(tasks["winogrande"]["items"], 7);
  EXPECT_FALSE(tasks["winogrande"].contains("acc_norm"));
  EXPECT_EQ(tasks["own"]["items"], 2);
  EXPECT_TRUE(tasks["own"].contains("acc_norm_stderr"));
  EXPECT_EQ(tasks["recall_128"]["items"], 7);
  std::ifstream in(log);
  std::map<std::string, int> items;
  for (std::string line; std::getline(in, line);) {
    const json row = json::parse(line);
    const int item = items[row["task"]]++;
    EXPECT_EQ(row["item"], item);
    const auto logprobs = row["logprobs"].get<std::vector<double>>();
    EXPECT_EQ(row["taken"], std::max_element(logprobs.begin(), logprobs.end()) - logprobs.begin());
    EXPECT_EQ(row.contains("taken_norm"), row["task"] == "own");
    if (row["task"] == "own") {
      EXPECT_EQ(row["gold"], item);
    }
  }
  EXPECT_EQ(items["winogrande"], 7);
  EXPECT_EQ(items["own"], 2);
}

TEST_F(EvalTasks, PrintsATableBesideTheLoss) {
  const std::string text = spit(dir_ / "text.txt", "The garden was full of roses.");
  Program p({"eval", "--task-dir", zeroshot_ + "items", "--device", "cpu", "--tasks", "piqa", model_, text});
  ASSERT_EQ(p.wait(), 0) << p.err();
  EXPECT_TRUE(contains(p.out(), "perplexity  ")) << p.out();
  EXPECT_TRUE(contains(p.out(), "piqa                      20  acc_norm         0.7000  ± 0.1051\n")) << p.out();
}

TEST_F(EvalTasks, MistakesAreOneLine) {
  EXPECT_TRUE(contains(refused({}, 2), "give data, or --tasks"));
  EXPECT_TRUE(contains(refused({"--tasks", "arc_hard", "--task-dir", dir_.path()}, 66),
                       "folder '" + dir_.path() + "' holds no arc_hard[_test|_validation].jsonl[.zst]"));
  EXPECT_TRUE(contains(refused({"--tasks", dir_ / "none.jsonl"}, 66), "none.jsonl"));
  const std::string row = "{\"context\": \"a\", \"continuation\": \"b\"}\n";
  const std::string bad = spit(dir_ / "bad.jsonl", row + "\n{\"context\": \"a\"}\n");
  EXPECT_TRUE(contains(refused({"--tasks", bad}, 65), bad + ":3: key 'continuation' is missing"));
  const std::string mixed =
      spit(dir_ / "mixed.jsonl", row + "{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 0}\n");
  EXPECT_TRUE(contains(refused({"--tasks", mixed}, 65), mixed + ":2: has other keys than the first item"));
  EXPECT_TRUE(contains(refused({"--tasks", spit(dir_ / "empty.jsonl", "\n")}, 65), "holds no item"));
}

}  // namespace
}  // namespace mmfree
