// Logits of a model for tokens:  model_logits MODEL IDS OUT
//   IDS are 32-bit integers in a file; OUT gets [tokens, vocabulary] f32 of one sequence, computed on the CPU.
#include <cstdio>
#include <cstring>

#include "core/system/files.h"
#include "train/inference/model.h"

using namespace mmfree;

namespace {

void run(const char* path, const char* ids_path, const char* out) {
  const Model model = load_model(path);
  const std::string bytes = read_file(ids_path, int64_t(1) << 24);
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(int32_t));
  for (int32_t id : ids)
    MMFREE_CHECK(DataError, id >= 0 && id < model.config.vocab_size, ids_path, ": token ", id, " is outside 0..",
                 model.config.vocab_size - 1);
  const Tensor logits = model.lm->logits(Tensor::from({int64_t(ids.size())}, ids.data()), 1);
  write_file(out, std::string(logits.raw(), size_t(logits.bytes())));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: model_logits MODEL IDS OUT\n"), 2;
  try {
    run(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "model_logits: %s\n", e.what());
    return 1;
  }
}
