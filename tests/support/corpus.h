#pragma once
#include <zlib.h>
#include <zstd.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"
#include "tests/support/temp_dir.h"

namespace mmfree::testing_data {

/// Deterministic text of made-up words: enough to train a small tokenizer on.
inline std::string babble(int words, unsigned seed) {
  static const char* syllables[] = {"ka", "lo", "mi", "tre", "su", "von", "el", "da", "qui", "é", "ß", "12"};
  std::mt19937 random(seed);
  std::string text;
  for (int i = 0; i < words; ++i) {
    for (unsigned k = random() % 3 + 1; k > 0; --k) text += syllables[random() % std::size(syllables)];
    text += random() % 9 == 0 ? ".\n" : " ";
  }
  return text;
}

/// `bytes` as a zstd file.
inline std::string compress(const std::string& bytes) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), 3));
  return out;
}

/// `bytes` as a gzip file.
inline std::string gzip(const std::string& bytes) {
  z_stream stream{};
  ::deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(::deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = uInt(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = uInt(out.size());
  ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

/// A line for each text, beside other keys.
inline std::string jsonl(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& t : texts)
    out += nlohmann::json{{"meta", {{"a", {1, 2}}, {"text", "inner"}}}, {"text", t}, {"z", nullptr}}.dump() + "\n";
  return out;
}

/// A byte-fallback tokenizer of 400 pieces trained on babble.
inline Tokenizer small_tokenizer(const TempDir& dir, const std::string& type = "bpe") {
  TokenizerTraining training;
  training.inputs = {spit(dir / "babble.txt", babble(20000, 7))};
  training.output = dir / (type + ".model");
  training.vocab_size = 400;
  training.type = type;
  return Tokenizer::train(training);
}

}  // namespace mmfree::testing_data
