// From text to the stream of tokens: what stands before and after a document, and what of it is scored.
#include <gtest/gtest.h>

#include "data/text/framing.h"
#include "tests/support/corpus.h"
#include "tests/support/tiny_run.h"

namespace mmfree {
namespace {

using Ids = std::vector<int32_t>;

TEST(Framing, EachFormHasItsMarks) {
  const Tokenizer t = TinyCorpus::get().tokenizer();
  const Ids text = t.encode("Some text");
  for (const Framing f : kAllFramings) {
    const DocumentEncoder encoder(t, f);
    Ids expected = text;
    if (has_bos(f)) expected.insert(expected.begin(), t.bos_id());
    EXPECT_EQ(encoder.prompt("Some text"), has_bos(f) || !has_eos(f) ? expected : [&] {
      Ids after_eos = expected;
      after_eos.insert(after_eos.begin(), t.eos_id());
      return after_eos;
    }()) << name_of(f);
    if (has_eos(f)) expected.push_back(t.eos_id());
    EXPECT_EQ(encoder.document({"Some text", ""}).tokens, expected) << name_of(f);
    EXPECT_EQ(framing_of(has_bos(f), has_eos(f)), f);
  }
  EXPECT_EQ(DocumentEncoder(t, Framing::none).opening(), Ids());
  EXPECT_EQ(DocumentEncoder(t, Framing::eos).opening(), Ids{t.eos_id()});
  EXPECT_EQ(DocumentEncoder(t, Framing::both).opening(), Ids{t.bos_id()});
}

TEST(Framing, OfAPromptOnlyTheCompletionIsScored) {
  const Tokenizer t = TinyCorpus::get().tokenizer();
  for (const Framing f : kAllFramings)
    for (const auto& [prompt, completion] : std::vector<std::pair<std::string, std::string>>{
             {"What is it?", " A word."}, {"two wor", "ds that touch"}, {"", "no prompt"}, {"no completion", ""}}) {
      const DocumentEncoder encoder(t, f);
      const FramedDocument d = encoder.document({PromptedText{prompt, completion}, ""});
      EXPECT_EQ(d.tokens, encoder.document({prompt + completion, ""}).tokens);
      ASSERT_EQ(d.mask.size(), d.tokens.size());
      // The unscored tokens are a beginning, and stand for nothing but the prompt.
      const auto scored = std::find(d.mask.begin(), d.mask.end(), 1) - d.mask.begin();
      for (size_t i = 0; i < d.mask.size(); ++i) EXPECT_EQ(d.mask[i], int64_t(i) >= scored);
      EXPECT_GE(scored, int64_t(has_bos(f)));
      const std::string unscored = t.decode(Ids(d.tokens.begin(), d.tokens.begin() + scored));
      EXPECT_TRUE(prompt.starts_with(unscored)) << prompt << " / " << unscored;
      if (prompt == "What is it?") {
        EXPECT_EQ(unscored, prompt);
      }
    }
}

TEST(Framing, IdsStayAsTheyAreAndMustBeOfTheVocabulary) {
  const Tokenizer t = TinyCorpus::get().tokenizer();
  const DocumentEncoder encoder(t, Framing::both);
  const FramedDocument d = encoder.document({TokenIds{{5, 7, 9}, {0, 1, 1}}, ""});
  EXPECT_EQ(d.tokens, (Ids{5, 7, 9}));
  EXPECT_EQ(d.mask, (std::vector<uint8_t>{0, 1, 1}));
  EXPECT_THROW(encoder.document({TokenIds{{5, t.vocab_size()}, {}}, ""}), DataError);
  EXPECT_TRUE(encoder.document({std::string(), "a set"}).tokens.empty()) << "no content, no document";
}

}  // namespace
}  // namespace mmfree
