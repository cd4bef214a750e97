#pragma once
namespace mmfree {
enum class Activation { silu, gelu, gelu_tanh, relu, relu2, selu, sigmoid, identity };
inline const char* name_of(Activation a) {
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "selu", "sigmoid", "identity"};
  return names[int(a)];
}
inline constexpr Activation kAllActivations[] = {Activation::silu,  Activation::gelu, Activation::gelu_tanh,
                                              Activation::relu,  Activation::relu2, Activation::selu,
                                              Activation::sigmoid, Activation::identity};
}
