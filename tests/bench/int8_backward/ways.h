#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

/// Ways to compute both products of the backward pass, put together from the times of kernels.
namespace mmfree::int8_backward {

/// Microseconds of each kernel of a projection.
struct Times {
  double bf16_dx, bf16_dw;  // cuBLASLt
  double dx;                // int8 rows by wᵀ
  // int8 dw
  double as_stored, turned_rows, turned_columns, no_turns, turned_tile, other_side;
  // dy from bf16 to rows, to rows and blocks, to blocks, to tiles in two layouts
  double rows, both, blocks, tile;
  // int8 to blocks: rows of dy, codes of x; codes of x transposed
  double again_dy, again_x, copy_x;
};

/// What a way takes: both products; all that quantises and transposes for them; and less what the writer of dy spares.
struct Cost {
  double products = 0, quantisers = 0, spared = 0;
  double total() const { return products + quantisers - spared; }
  void add(double count, const Cost& c) {
    products += count * c.products, quantisers += count * c.quantisers, spared += count * c.spared;
  }
};

/// Who writes dy.
enum class Writer {
  scan,    ///< along time: no row is at hand
  stream,  ///< row by row, and others read it in bf16: the gradient of the residual stream
  alone,   ///< row by row, and nobody else reads it
};

/// A way to compute both products.
struct Method {
  const char* name;
  Cost cost;
  Writer writer;       ///< the first that can do it; those below it can too
  bool choice = true;  ///< whether the best of all may take it
};

constexpr double kWriterBytes = 2.8e6;  // a microsecond: assumed of the kernels that write dy

inline Cost bf16_cost(const Times& t) { return {t.bf16_dx + t.bf16_dw}; }

/// All ways at dy [n, o]. A writer of dy that writes int8 rows beside bf16 writes one byte an element more; one that
/// writes rows alone, one less. (a), (b) and (c) need the absmax of each row, which costs nothing here. (b) counts
/// the dx of row scales; that of tile scales was not built. (e) rounds dy twice.
inline std::vector<Method> methods(const Times& t, int64_t n, int64_t o) {
  const double byte = double(n) * double(o) / kWriterBytes, rows_dw = std::min(t.turned_columns, t.no_turns);
  return {
      {"dx alone, rows of dy in a pass", {t.dx + t.bf16_dw, t.rows}, Writer::scan},
      {"dx alone, rows of dy from its writer", {t.dx + t.bf16_dw, byte}, Writer::stream},
      {"(a) dy to rows and blocks, x transposed", {t.dx + t.as_stored, t.both + t.copy_x}, Writer::scan, false},
      {"(b) dy to tiles in two layouts, x transposed", {t.dx + t.turned_tile, t.tile + t.copy_x}, Writer::scan, false},
      {"(c) dy to rows and blocks, x turned inside", {t.dx + t.other_side, t.both}, Writer::scan},
      {"(d) writer has rows alone, x to blocks, dy turned", {t.dx + rows_dw, t.again_x, byte}, Writer::alone},
      {"(d) with a scale per tile", {t.dx + t.turned_tile, t.again_x, byte}, Writer::alone, false},
      {"(e) rows from its writer, then to blocks", {t.dx + t.other_side, t.again_dy + byte}, Writer::stream, false},
  };
}

/// The cheapest way that `writer` allows; bf16 if none is cheaper.
inline Cost best_cost(const Times& t, const std::vector<Method>& all, Writer writer) {
  Cost best = bf16_cost(t);
  for (const Method& m : all)
    if (m.choice && m.writer <= writer && m.cost.total() < best.total()) best = m.cost;
  return best;
}

}  // namespace mmfree::int8_backward
