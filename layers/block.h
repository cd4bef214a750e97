#pragma once
#include <optional>
#include <variant>

#include "layers/channel/glu.h"
#include "layers/channel/mlp.h"
#include "layers/token/attention.h"
#include "layers/token/mlgru.h"

namespace mmfree {

/// The mixers that a layer may have. A token mixer says whether `heads` mean anything to it and whether its forget gate
/// has a lower bound. To add one, write a struct like these, add its kind to layers/model_config.h, and add the struct
/// here.
using TokenMixer = std::variant<MlGru, Attention>;
using ChannelMixer = std::variant<Glu, Mlp>;

/// Makes the alternative of `Mixer` with this kind. @throws ConfigError if there is none
template <class Mixer, class Kind, size_t I = 0>
Mixer make_mixer(Kind kind, const LayerConfig& c) {
  if constexpr (I == std::variant_size_v<Mixer>) {
    throw ConfigError(concat("model: mixer '", name_of(kind), "' is not implemented"));
  } else {
    if (std::variant_alternative_t<I, Mixer>::kind == kind) return Mixer(std::in_place_index<I>, c);
    return make_mixer<Mixer, Kind, I + 1>(kind, c);
  }
}

/// Pre-norm residual block: h' = h + token(norm(h)), y = h' + channel(norm(h')).  h, y [B·T, D]. Norms and additions
/// are part of each mixer's first norm_linear. So the block does not make its last addition: the next block does (see
/// Residual).
struct Block {
  Var token_norm, channel_norm;  ///< [D]
  TokenMixer token;
  ChannelMixer channel;

  explicit Block(const LayerConfig& c)
      : token(make_mixer<TokenMixer>(c.token, c)), channel(make_mixer<ChannelMixer>(c.channel, c)) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    v.vector("attn_norm.weight", token_norm, {c.width}, 1);
    v.inside("attn.", [&] { std::visit([&](auto& mixer) { mixer.visit(v, c); }, token); });
    v.vector("mlp_norm.weight", channel_norm, {c.width}, 1);
    v.inside("mlp.", [&] { std::visit([&](auto& mixer) { mixer.visit(v, c); }, channel); });
  }

  Residual operator()(const Residual& in, StepContext& step) const {
    if (step.recompute == Recompute::full) return recomputed(in, step);
    const Residual mid = std::visit([&](const auto& mixer) { return mixer(in, token_norm, step); }, token);
    step.mark(channel_norm);
    const Residual out = std::visit([&](const auto& mixer) { return mixer(mid, channel_norm, step); }, channel);
    if (step.state) step.state->position += in.h.dim(0) / step.batch;
    return out;
  }

 private:
  /// The same, with train.recompute=full: only the block's input is saved for the backward pass. The decode state is an
  /// input and an output too: computing again must neither see the new one nor change it.
  Residual recomputed(const Residual& in, StepContext& step) const {
    MMFREE_CHECK(Error, !step.losses, "block: auxiliary losses do not go with train.recompute=full");
    std::vector<Var> all{in.sum(), step.bound, Var(step.starts)};
    const bool carries = step.state;
    const int64_t position = carries ? step.state->position : 0;
    if (carries)
      for (const Tensor& t : step.state->tensors) all.emplace_back(t);
    const auto out =
        recompute("block", all, [block = this, batch = step.batch, carries, position](const std::vector<Var>& inputs) {
          LayerState state{{}, position};
          for (size_t i = 3; i < inputs.size(); ++i) state.tensors.push_back(inputs[i].value());
          StepContext inner;
          inner.batch = batch;
          inner.bound = inputs[1];
          inner.starts = inputs[2].value();
          if (carries) inner.state = &state;
          const Residual y = (*block)({inputs[0], Var()}, inner);
          std::vector<Var> outputs{y.h, y.pending};
          for (const Tensor& t : state.tensors) outputs.emplace_back(t);
          return outputs;
        });
    if (carries) {
      step.state->tensors.clear();
      for (size_t i = 2; i < out.size(); ++i) step.state->tensors.push_back(out[i].value());
      step.state->position += in.h.dim(0) / step.batch;
    }
    return {out[0], out[1]};
  }
};

/// All parts of a language model with parameters. `visit` gives the order of parameters in files.
struct ModelParts {
  Var embedding;     ///< [V, D]
  Var lower_bounds;  ///< [L, D]; undefined without
  std::vector<Block> blocks;
  Var norm;  ///< [D]
  BitLinear head;

  explicit ModelParts(const ModelConfig& c) {
    for (int l = 0; l < int(c.num_hidden_layers); ++l) blocks.emplace_back(c.layer(l));
  }

  template <class Visitor>
  void visit(Visitor& v, const ModelConfig& c) {
    v.table("model.embeddings.weight", embedding, {c.vocab_size, c.hidden_size}, normal_init(c.initializer_range));
    if (c.use_lower_bound && any_bound())
      v.vector("model.lower_bounds", lower_bounds, {c.num_hidden_layers, c.hidden_size}, 0);
    for (int l = 0; l < int(blocks.size()); ++l)
      v.inside(concat("model.layers.", l, '.'), [&] { blocks[size_t(l)].visit(v, c.layer(l)); });
    v.vector("model.norm.weight", norm, {c.hidden_size}, 1);
    MatrixSpec matrix{c.vocab_size, c.hidden_size, normal_init(c.initializer_range), ParamRole::head};
    matrix.tied = c.tie_word_embeddings;
    v.projection("lm_head", head, matrix, c.layer(-1));
  }

 private:
  bool any_bound() const {
    for (const Block& block : blocks)
      if (std::visit([](const auto& mixer) { return mixer.has_bound; }, block.token)) return true;
    return false;
  }
};

}  // namespace mmfree
