#include "train/formats/gguf_keys.h"

#include <algorithm>

#include "data/text/tokenizer_model.h"
#include "train/config/config.h"
#include "train/formats/gguf_model.h"

namespace mmfree {
namespace {

/// The commit of llama.cpp whose graphs the refusals follow.
constexpr const char* kCommit = "0c1e57098";

/// Refuses a model because of a key.
struct Refusal {
  const std::string& where;

  template <class... Why>
  void unless(bool ok, const char* key, const Why&... why) const {
    MMFREE_CHECK(UsageError, ok, where, ": ", key, ": ", why..., "; llama.cpp's graph (", kCommit,
                 ") cannot express that; export with --format ternary or hf");
  }
};

/// What the graphs of "llama" and "bitnet" want of each layer.
void check_layers(const ModelConfig& c, const Refusal& refuse) {
  const LayerConfig first = c.layer(0);
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    const LayerConfig layer = c.layer(l);
    const auto same = [&](const char* key, const auto& a, const auto& b) {
      refuse.unless(a == b, key, "layer ", l, " has another value than layer 0");
    };
    refuse.unless(layer.token == TokenKind::attention, "model.token", "layer ", l, " is ", name_of(layer.token),
                  ", others are attention");
    refuse.unless(layer.channel == ChannelKind::glu, "model.channel", "is ", name_of(layer.channel), ", expected glu");
    refuse.unless(layer.activation == Activation::silu, "model.activation", "is ", name_of(layer.activation),
                  ", expected silu, which the graph computes whatever a file says");
    refuse.unless(layer.sliding_window == 0, "model.sliding_window", "is ", layer.sliding_window, ", expected 0");
    same("model.heads", layer.heads, first.heads);
    same("model.kv_heads", layer.groups, first.groups);
    same("model.head_dim", layer.head_dim, first.head_dim);
    same("model.rope_theta", layer.rope_theta, first.rope_theta);
    same("model.intermediate_size", layer.inner, first.inner);
    same("model.fused_gate", layer.fused_gate, first.fused_gate);
    same("model.sub_norm", layer.sub_norm, first.sub_norm);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}) {
      const bool exists = !layer.fused_gate || std::string_view(name) != "up_proj";
      refuse.unless(!exists || !layer.inner_norm_of(name), "model.inner_norm", name, " of layer ", l,
                    " normalises its input");
    }
  }
  refuse.unless(!c.layer(-1).inner_norm_of("lm_head"), "model.inner_norm", "lm_head normalises its input");
}

void check_bitnet(const ModelConfig& c, const Refusal& refuse) {
  const LayerConfig first = c.layer(0);
  refuse.unless(c.tie_word_embeddings, "model.tie_word_embeddings",
                "is false, and with model.sub_norm the head is tied");
  refuse.unless(c.layer(-1).precision_of("lm_head") != Precision::ternary, "model.precision",
                "a tied head is ternary, and with model.sub_norm it is the embedding table itself");
  refuse.unless(first.heads * first.head_dim == c.hidden_size, "model.head_dim", first.heads, " heads of ",
                first.head_dim, " are not as wide as the model, ", c.hidden_size);
}

/// llama.cpp's number for a file whose matrices mostly have this type.
uint32_t file_type(GgmlType t) {
  switch (t) {
    case GgmlType::f32:
      return 0;
    case GgmlType::f16:
      return 1;
    case GgmlType::q8_0:
      return 7;
    case GgmlType::bf16:
      return 32;
    case GgmlType::tq1_0:
      return 36;
    case GgmlType::tq2_0:
      return 37;
    case GgmlType::q2_0:
      return 41;
  }
  return 0;
}

bool has_ternary(const Model& model) {
  bool found = false;
  model.lm->for_each_projection([&](const BitLinear& p) { found |= p.precision == Precision::ternary; });
  return found;
}

/// The keys of a SentencePiece model of merges, `vocab` tokens long: ids beyond the pieces are marked unused.
void add_tokenizer(GgufKeys& keys, const Tokenizer& tokenizer, const TokenizerModel& pieces, Framing framing,
                   int64_t vocab) {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const Piece& piece : pieces.pieces) {
    tokens.push_back(piece.text);
    scores.push_back(piece.score);
    types.push_back(int32_t(piece.type));
  }
  for (int64_t id = int64_t(tokens.size()); id < vocab; ++id) {
    tokens.push_back(concat("[PAD", id, ']'));
    scores.push_back(-1000);
    types.push_back(int32_t(PieceType::unused));
  }
  const auto add = [&](const char* key, GgufValue value) {
    keys.emplace_back(concat("tokenizer.ggml.", key), std::move(value));
  };
  add("model", GgufValue::text("llama"));
  add("pre", GgufValue::text("default"));
  add("tokens", GgufValue::array(std::move(tokens)));
  add("scores", GgufValue::array(scores));
  add("token_type", GgufValue::array(types));
  const auto add_id = [&](const char* key, int id) {
    if (id >= 0) add(key, GgufValue::u32(uint32_t(id)));
  };
  add_id("bos_token_id", tokenizer.bos_id());
  add_id("eos_token_id", tokenizer.eos_id());
  add_id("unknown_token_id", tokenizer.unk_id());
  add_id("padding_token_id", tokenizer.pad_id());
  const std::vector<int32_t> opening = DocumentEncoder(tokenizer, framing).opening();
  add("add_bos_token", GgufValue::boolean(!opening.empty() && opening[0] == tokenizer.bos_id()));
  add("add_eos_token", GgufValue::boolean(false));
  add("add_space_prefix", GgufValue::boolean(pieces.adds_dummy_prefix));
}

std::string stored_config(const Model& model) {
  RunConfig config;
  config.model = model.config;
  config.data.seq_len = model.seq_len;
  config.data.framing = model.framing;
  config.data.reset_state = model.reset_state;
  return to_yaml(config);
}

}  // namespace

std::string gguf_architecture(const ModelConfig& c, const std::string& where) {
  const Refusal refuse{where};
  if (!c.uses(TokenKind::attention)) return "hgrn_bit";
  check_layers(c, refuse);
  if (!c.layer(0).sub_norm) return "llama";
  check_bitnet(c, refuse);
  return "bitnet";
}

GgufKeys gguf_keys(const Model& model, const std::string& architecture, GgmlType type, std::string& no_tokenizer) {
  const ModelConfig& c = model.config;
  const LayerConfig layer = c.layer(0);
  GgufKeys keys;
  keys.emplace_back("general.architecture", GgufValue::text(architecture));
  keys.emplace_back("general.type", GgufValue::text("model"));
  if (has_ternary(model)) keys.emplace_back("general.file_type", GgufValue::u32(file_type(type)));
  keys.emplace_back("general.quantization_version", GgufValue::u32(2));
  const auto number = [&](const char* key, int64_t value) {
    keys.emplace_back(concat(architecture, '.', key), GgufValue::u32(uint32_t(value)));
  };
  const auto real = [&](const char* key, double value) {
    keys.emplace_back(concat(architecture, '.', key), GgufValue::f32(float(value)));
  };
  number("vocab_size", c.vocab_size);
  number("context_length", model.seq_len);
  number("embedding_length", c.hidden_size);
  number("block_count", c.num_hidden_layers);
  number("feed_forward_length", layer.inner);
  real("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  if (architecture != "hgrn_bit") {
    number("attention.head_count", layer.heads);
    number("attention.head_count_kv", layer.groups);
    number("attention.key_length", layer.head_dim);
    number("attention.value_length", layer.head_dim);
    number("rope.dimension_count", layer.head_dim);
    real("rope.freq_base", layer.rope_theta);
  }
  if (!model.tokenizer) {
    no_tokenizer = "the model has none; give one with --tokenizer";
  } else {
    const TokenizerModel pieces = parse_tokenizer_model(model.tokenizer->serialized(), "tokenizer");
    if (pieces.type == TokenizerType::bpe)
      add_tokenizer(keys, *model.tokenizer, pieces, model.framing, c.vocab_size);
    else
      no_tokenizer = "it is no bpe model, and llama.cpp's reader of SentencePiece models merges as bpe does";
  }
  if (!no_tokenizer.empty()) keys.emplace_back("tokenizer.ggml.model", GgufValue::text("no_vocab"));
  keys.emplace_back("mmfree.config", GgufValue::text(stored_config(model)));
  return keys;
}

}  // namespace mmfree
