#include "core/ops/rope.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "core/cpu/parts.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// Tokens per task.
constexpr int64_t kGrain = 16;

/// cos and sin of an angle given as a number of turns. The f32 form has no branches, so that loops over it are
/// vectorised: the nearest quarter turn is split off, and Taylor polynomials are exact to 3e-8 on the rest.
void cos_sin(double turns, double& c, double& s) {
  const double angle = 2 * std::numbers::pi * (turns - std::rint(turns));
  c = std::cos(angle), s = std::sin(angle);
}
void cos_sin(double turns, float& c, float& s) {
  const double quarters = 4 * (turns - std::rint(turns)), nearest = std::rint(quarters);
  const double y = (quarters - nearest) * (std::numbers::pi / 2), z = y * y;
  const double sine = y * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
  const double cosine = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320))));
  const double odd = std::abs(nearest) == 1 ? 1 : 0, a = odd != 0 ? sine : cosine, b = odd != 0 ? cosine : sine;
  const double side = nearest < 0 ? -1 : 1, opposite = std::abs(nearest) == 2 ? -1 : 1;
  c = float(odd != 0 ? -side * a : opposite * a);
  s = float(odd != 0 ? side * b : opposite * b);
}

/// Tokens [begin, end) of B · T.
template <class T>
void rotate(const RopeArgs& g, const double* turns, int64_t begin, int64_t end) {
  const int64_t half = g.width / 2;
  T angles[2][kMostRopePairs];
  for (int64_t n = begin; n < end; ++n) {
    const double position = double(g.first + n % g.t - (g.begins ? g.begins[n] : 0));
    for (int64_t i = 0; i < half; ++i) cos_sin(position * turns[i], angles[0][i], angles[1][i]);
    for (int64_t h = 0; h < g.heads; ++h) {
      const int64_t at = (n * g.heads + h) * g.width;
      const T* x = static_cast<const T*>(g.x) + at;
      T* y = static_cast<T*>(g.y) + at;
      for (int64_t i = 0; i < half; ++i) {
        const T c = angles[0][i], s = g.back ? -angles[1][i] : angles[1][i], a = x[i], b = x[i + half];
        y[i] = a * c - b * s;
        y[i + half] = b * c + a * s;
      }
    }
  }
}

}  // namespace

void document_begins(const DocumentBeginsArgs& g) {
  for (int64_t b = 0; b < g.b; ++b) {
    int32_t begin = g.before ? g.before[b] : 0;
    for (int64_t t = 0; t < g.t; ++t) {
      if (g.starts && g.starts[b * g.t + t]) begin = int32_t(g.first + t);
      g.begins[b * g.t + t] = begin;
    }
    g.after[b] = begin;
  }
}

void rope(const RopeArgs& g) {
  const std::vector<double> turns = rotary_turns(g.theta, g.width);
  dispatch_float(g.dtype, "rope", [&]<class T>() {
    parallel_for(g.b * g.t, kGrain, [&](int64_t begin, int64_t end) { rotate<T>(g, turns.data(), begin, end); });
  });
}

void rope_part(const RopeArgs& g, const double* turns, int64_t begin, int64_t end) {
  rotate<float>(g, turns, begin, end);
}

}  // namespace mmfree::cpu
