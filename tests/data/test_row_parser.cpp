#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/system/utf8.h"
#include "data/text/row_parser.h"
#include "tests/support/mutation.h"

namespace mmfree {
namespace {

Document parsed(const std::string& row, const TextOptions& options = {}) { return RowParser(options).parse(row); }

TextOptions with_text_field(const std::string& field) {
  TextOptions options;
  options.text_field = field;
  return options;
}

/// "12: cause detail" of a malformed row, with the offset of its byte; "" of a good one.
std::string fault(const std::string& row, const TextOptions& options = {}) {
  try {
    parsed(row, options);
    return "";
  } catch (const Malformed& m) {
    return concat(m.byte, ": ", m.cause, m.detail);
  }
}

bool is_json(const std::string& text) {
  try {
    JsonScanner scanner(text);
    scanner.skip();
    scanner.end();
    return true;
  } catch (const Malformed&) {
    return false;
  }
}

TEST(RowParser, Forms) {
  EXPECT_EQ(std::get<std::string>(parsed(R"({"text":"a","ids":[1],"prompt":3})").content), "a");
  const Document pair = parsed(R"({"completion":"b","prompt":"a"})");
  EXPECT_EQ(std::get<PromptedText>(pair.content).prompt, "a");
  EXPECT_EQ(std::get<PromptedText>(pair.content).completion, "b");
  EXPECT_EQ(pair.bytes(), 2);
  const Document tokens = parsed(R"({"ids": [ 3 ,0, 2147483647],"prompt":"a"})");
  EXPECT_EQ(std::get<TokenIds>(tokens.content).ids, (std::vector<int32_t>{3, 0, 2147483647}));
  EXPECT_TRUE(std::get<TokenIds>(tokens.content).mask.empty());
  EXPECT_EQ(tokens.bytes(), 12);
  const Document masked = parsed(R"({"mask":[0,1],"ids":[3,4]})");
  EXPECT_EQ(std::get<TokenIds>(masked.content).mask, (std::vector<uint8_t>{0, 1}));
}

TEST(RowParser, TheSourceSetOfSlimPajama) {
  const char* row = R"({"text":"a","meta":{"url":"x","redpajama_set_name":"RedPajamaC4"},"redpajama_set_name":"no"})";
  EXPECT_EQ(parsed(row).set, "RedPajamaC4");
  EXPECT_EQ(parsed(R"({"text":"a","meta":{"redpajama_set_name":3}})").set, "");
  EXPECT_EQ(parsed(R"({"text":"a","meta":"x","b":{"meta":{"redpajama_set_name":"x"}}})").set, "");
  TextOptions options;
  options.set_field = "source";
  EXPECT_EQ(parsed(R"({"text":"a","source":"wiki"})", options).set, "wiki");
}

TEST(RowParser, TextField) {
  EXPECT_EQ(std::get<std::string>(parsed(R"({"text":3,"content":"a"})", with_text_field("content")).content), "a");
  const TextOptions nested = with_text_field("a.b");
  EXPECT_EQ(std::get<std::string>(parsed(R"({"b":"no","a":{"a":{"b":"no"},"b":"yes"}})", nested).content), "yes");
  EXPECT_EQ(std::get<std::string>(parsed(R"({"a.b":"yes"})", nested).content), "yes");
  EXPECT_EQ(fault(R"({"a":[{"b":"x"}]})", nested),
            "0: no \"a.b\" (it has 'a'; --text-field names the key of the text)");
  EXPECT_EQ(fault(R"({"a":{"b":"x"},"a.b":"y"})", nested), "21: \"a.b\" is given twice");
}

TEST(RowParser, ARowKeepsNothingOfTheOneBefore) {
  RowParser parser({});
  parser.parse(R"({"text":"a","meta":{"redpajama_set_name":"x"}})");
  const Document tokens = parser.parse(R"({"ids":[1,2],"mask":[1,1]})");
  EXPECT_EQ(tokens.set, "");
  EXPECT_THROW(parser.parse("{}"), Malformed);
  EXPECT_THROW(parser.parse(R"({"text":null})"), Malformed);
  EXPECT_TRUE(std::get<TokenIds>(parser.parse(R"({"ids":[7]})").content).mask.empty());
  EXPECT_EQ(std::get<std::string>(parser.parse(R"({"text":"b"})").content), "b");
}

TEST(RowParser, EveryFaultHasItsCauseAndByte) {
  const std::string deep = std::string(JsonScanner::kMaxDepth, '[') + std::string(JsonScanner::kMaxDepth, ']');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"text\":\"caf\xE9\"}", "12: not valid UTF-8 (E9)"},
      {R"({"text":"a \ud800 b"})", R"(11: an escaped surrogate without its other half (\ud800))"},
      {R"({"text":"\uDC00"})", R"(9: an escaped surrogate without its other half (\uDC00))"},
      {R"({"text":"\ud800\u0041"})", R"(9: an escaped surrogate without its other half (\ud800))"},
      {R"({"score": NaN, "text": "ok"})", "10: NaN and Infinity are not JSON"},
      {R"({"a":-Infinity})", "5: NaN and Infinity are not JSON"},
      {R"({"a":[Infinity]})", "6: NaN and Infinity are not JSON"},
      {R"({"text":"a","text":"b"})", "19: \"text\" is given twice"},
      {R"({"text": null})", "9: \"text\" is null"},
      {R"({"text":-1})", "8: \"text\" is a number"},
      {R"({"text":{}})", "8: \"text\" is an object"},
      {R"({"text":[]})", "8: \"text\" is a list"},
      {R"({"text":true})", "8: \"text\" is true or false"},
      {R"({"content":"a","b\n":{}})",
       "0: no \"text\" (it has 'content', 'b\\x0a'; --text-field names the key of the text)"},
      {"{}", "0: no \"text\""},
      {R"({"1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1})",
       "0: no \"text\" (it has '1', '2', '3', '4', '5', '6', '7', '8'; --text-field names the key of the text)"},
      {" [1]", "1: not an object"},
      {"\"text\"", "0: not an object"},
      {R"({"a":)" + deep + "}", "36: nested more than 32 deep"},
      {R"({"text":"a"} x)", "13: not JSON: expected nothing more, found 'x'"},
      {std::string("{\"text\":\"a\"}\0", 13), "12: not JSON: expected nothing more, found '\\x00'"},
      {R"({"text":"a)", "8: not JSON: a string without its closing '\"'"},
      {R"({"text":"a")", "11: not JSON: expected ',' or '}', found the end"},
      {R"({"text" "a"})", "8: not JSON: expected ':', found '\"'"},
      {R"({text:"a"})", "1: not JSON: expected '\"', found 't'"},
      {R"({"text":"a",})", "12: not JSON: expected '\"', found '}'"},
      {"{\"text\":\"a\tb\"}", "10: not JSON: a control character inside a string must be escaped"},
      {R"({"text":"\q"})", "10: not JSON: expected one of \"\\/bfnrtu after a backslash, found 'q'"},
      {R"({"text":"\u00g0"})", "13: not JSON: expected 4 hexadecimal digits after '\\u', found 'g'"},
      {R"({"a":01})", "6: not JSON: expected ',' or '}', found '1'"},
      {R"({"a":1.})", "7: not JSON: expected a digit, found '}'"},
      {R"({"a":é})", "5: not JSON: expected a value, found 'é'"},
      {R"({"ids":[]})", "0: \"ids\" is empty"},
      {R"({"ids":3})", "7: \"ids\" is a number"},
      {R"({"ids":[1,"2"]})", "10: \"ids\" holds something else than integers"},
      {R"({"ids":[1,[2]]})", "10: \"ids\" holds something else than integers"},
      {R"({"ids":[1.0]})", "8: \"ids\" holds a number that is not an integer"},
      {R"({"ids":[1e3]})", "8: \"ids\" holds a number that is not an integer"},
      {R"({"ids":[1,-2]})", "10: \"ids\" holds a negative number"},
      {R"({"ids":[2147483648]})", "8: \"ids\" holds a number above 2147483647"},
      {R"({"ids":[1],"ids":[1]})", "17: \"ids\" is given twice"},
      {R"({"ids":[1,2],"mask":[1]})", "0: \"mask\" has another length than \"ids\": 1, 2"},
      {R"({"ids":[1],"mask":[2]})", "0: \"mask\" holds a number that is neither 0 nor 1"},
      {R"({"ids":[1],"mask":[true]})", "19: \"mask\" holds something else than integers"},
      {R"({"mask":[1]})", "0: no \"ids\" (it has 'mask')"},
      {R"({"prompt":"a"})", "0: no \"completion\" (it has 'prompt')"},
      {R"({"completion":"a"})", "0: no \"prompt\" (it has 'completion')"},
      {R"({"prompt":"a","completion":null})", "27: \"completion\" is null"},
  };
  for (const auto& [row, expected] : cases) EXPECT_EQ(fault(row), expected) << row;
  EXPECT_EQ(fault(R"({"text":"a","meta":{"redpajama_set_name":"a\nb"}})"),
            "0: \"meta.redpajama_set_name\" has a line break");
}

TEST(RowParser, StringsLoseTheirEscapes) {
  const std::string every = "\" \\ / \b \f \n \r \t \x01 \x7F é € 😀 \U0010FFFF";
  for (const bool ascii : {false, true}) {
    const std::string row = nlohmann::json{{"text", every}}.dump(-1, ' ', ascii);
    EXPECT_EQ(std::get<std::string>(parsed(row).content), every) << row;
  }
  EXPECT_EQ(std::get<std::string>(parsed(R"({"text":"\/\u0000\uABCD\ud83D\uDE00"})").content),
            std::string("/\0\xEA\xAF\x8D😀", 9));
  EXPECT_EQ(std::get<std::string>(parsed(R"({"te\u0078t":"x"})").content), "x");
}

/// nlohmann's parser is the oracle: what it takes is JSON, and strings mean what it says they mean.
TEST(JsonScanner, AgreesWithAnotherParser) {
  const std::vector<std::string> seeds = {
      R"({"text":"a\nb \u00e9\ud83d\ude00 \" \\","meta":{"n":[1,-2.5e+10,0,true,false,null,{}]},"ids":[ ]} )",
      R"([{"a":"\/\b\f\r\t"},[[],[{}]],0.125,1E2,-0,"","é€😀"])", R"( {"x" : [ 1 , 2 ] , "y" : { "z" : "w" } })"};
  Mutator mutator(11);
  int64_t good = 0, bad = 0;
  for (int i = 0; i < 100'000; ++i) {
    std::string text = seeds[size_t(i) % seeds.size()];
    for (size_t n = mutator.below(3); n > 0; --n) {
      const size_t at = mutator.below(text.size());
      const char c = R"({}[]",:\0123456789eE+-.tfnul aAbBdDxu/)"[mutator.below(38)];
      if (mutator.below(3))
        text[at] = c;
      else
        text.insert(at, 1, c);
    }
    if (find_invalid_utf8(text) != std::string::npos) continue;
    nlohmann::json oracle;
    bool is_good = true;
    try {
      oracle = nlohmann::json::parse(text);
    } catch (const nlohmann::json::parse_error&) {
      is_good = false;
    } catch (const nlohmann::json::out_of_range&) {
      continue;  // a number too large for it
    }
    ASSERT_EQ(is_json(text), is_good) << text;
    ++(is_good ? good : bad);
    if (!oracle.is_object() || !oracle.contains("text") || !oracle["text"].is_string()) continue;
    if (text.find("\"text\"") != text.rfind("\"text\"")) continue;
    ASSERT_EQ(std::get<std::string>(parsed(text).content), oracle["text"].get<std::string>()) << text;
  }
  EXPECT_GT(good, 20'000);
  EXPECT_GT(bad, 20'000);
}

TEST(JsonScanner, NumbersOfAnySizeAreJson) {
  for (const char* text : {"1e999", "-1e-999", "123456789012345678901234567890", "0.1e+1", "-0.0"})
    EXPECT_TRUE(is_json(text)) << text;
  for (const char* text : {"-", "+1", ".5", "1.", "1e", "1e+", "00", "0x1", "1_0"}) EXPECT_FALSE(is_json(text)) << text;
}

}  // namespace
}  // namespace mmfree
