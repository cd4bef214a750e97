#include "core/ops/decode.h"

#include <algorithm>

#include "core/cpu/dots.h"
#include "core/cpu/parts.h"
#include "core/cpu/table_row.h"
#include "core/cpu/ternary_kernel.h"
#include "core/ops/ternary.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kRowGrain = 16;

/// Steps of less work are done by one thread, in a few µs: bytes of weights, each counted once per row. Another thread
/// would come too late, if it is asleep, or keep this one waiting, if the system takes its core away.
constexpr int64_t kAlone = 64 << 10;
/// What an element of a step without weights counts: its time is that of so many bytes of codes.
constexpr int64_t kElementBytes = 16;

int32_t sum_of_codes(const int8_t* codes, int64_t n) {
  int32_t sum = 0;
  int64_t k = 0;
  for (; k + 256 <= n; k += 256) {  // 256 codes of at least -128 fit in 16 bits
    int16_t part = 0;
    for (int64_t i = 0; i < 256; ++i) part = int16_t(part + codes[k + i]);
    sum += part;
  }
  for (; k < n; ++k) sum += codes[k];
  return sum;
}

/// Runs the steps of a program, each shared among the program's threads.
class Runner {
 public:
  Runner(const DecodeProgram& program, const DecodeCall& call)
      : program_(program),
        call_(call),
        most_(std::min(call.threads, program.most_threads)),
        kernel_(fastest_ternary_kernels().kernel) {}

  void operator()(const DecodeEmbed& e) {
    const int64_t d = e.table.d;
    share((call_.rows + kRowGrain - 1) / kRowGrain, call_.rows * d * kElementBytes, [&](int64_t task) {
      for (int64_t n = task * kRowGrain; n < std::min(call_.rows, (task + 1) * kRowGrain); ++n)
        table_row(e.table, call_.ids[n], e.y + n * d);
    });
  }

  void operator()(const DecodeNorm& norm) {
    const int64_t rows = rows_of(norm);
    const int64_t grain = rows <= 4 * kRowGrain ? 1 : kRowGrain;
    share((rows + grain - 1) / grain, rows * norm.args.d * kElementBytes, [&](int64_t task) {
      for (int64_t n = task * grain; n < std::min(rows, (task + 1) * grain); ++n) norm_row(norm, n);
    });
  }

  void operator()(const DecodeProducts& products) {
    const int64_t rows = rows_of(products), first = products.at_wanted ? call_.wanted_first : 0;
    int64_t tasks = 0, work = 0;
    for (const DecodeMatrix& m : products.matrices)
      work += rows * m.o * (m.q ? ternary_row_bytes(m.k) : m.k * int64_t(sizeof(float)));
    const int threads = threads_for(work);
    for (const DecodeMatrix& m : products.matrices) tasks += Tile(m, rows, threads).count();
    share_tasks(tasks, threads, [&](int64_t task) {
      for (const DecodeMatrix& m : products.matrices) {
        const Tile tile(m, rows, threads);
        float* y = m.y + first * m.o;
        if (task < tile.count()) return m.q ? ternary_tile(m, tile, task, rows, y) : plain_tile(m, tile, task, rows, y);
        task -= tile.count();
      }
    });
  }

  void operator()(const DecodeScan& s) {
    const auto args = [&](const DecodeSpan& span) {
      const int64_t at = span.row * s.d;
      float* state = s.state + span.slot * s.d;
      return MlgruScanArgs{s.z + at, s.a + at, s.gamma,    state, nullptr,   s.h + at,
                           state,    1,        span.count, s.d,   DType::f32};
    };
    for_spans(
        call_.rows * s.d * kElementBytes, [&](const DecodeSpan& span) { return mlgru_scan_stripes(args(span)); },
        [&](const DecodeSpan& span, int64_t task) { mlgru_scan_part(args(span), task, task + 1); });
  }

  void operator()(const DecodeAttend& a) {
    const int64_t group = a.kv_heads * a.width;
    for_spans(
        call_.rows * (a.heads + a.kv_heads) * a.width * kElementBytes,
        [](const DecodeSpan& span) { return (span.count + kRowGrain - 1) / kRowGrain; },
        [&](const DecodeSpan& span, int64_t task) {
          const int64_t begin = task * kRowGrain, end = std::min(span.count, begin + kRowGrain);
          const int64_t at = (span.slot * a.capacity + a.held[span.slot]) * group;
          float* q = a.q + span.row * a.heads * a.width;
          const auto rope = [&](const float* x, float* y, int64_t heads) {
            rope_part({x, y, nullptr, span.position, 1, span.count, heads, a.width, 0, false, DType::f32},
                      a.turns.data(), begin, end);
          };
          rope(q, q, a.heads);
          rope(a.k + span.row * group, a.keys + at, a.kv_heads);
          std::copy(a.v + (span.row + begin) * group, a.v + (span.row + end) * group, a.values + at + begin * group);
        });
    const auto args = [&](const DecodeSpan& span) {
      const int64_t at = span.slot * a.capacity * group, rows = span.row * a.heads * a.width;
      AttentionArgs g{a.q + rows, a.keys + at,   a.values + at, nullptr,    a.o + rows, nullptr,
                      1,          span.count,    a.heads,       a.kv_heads, a.width,    a.held[span.slot] + span.count,
                      a.capacity, span.position, a.window,      DType::f32};
      return g;
    };
    int64_t seen = 0;
    for (int64_t s = 0; s < call_.span_count; ++s)
      seen += call_.spans[s].count * (a.held[call_.spans[s].slot] + call_.spans[s].count);
    for_spans(
        seen * a.heads * a.width * int64_t(sizeof(float)),
        [&](const DecodeSpan& span) { return attention_tasks(args(span)); },
        [&](const DecodeSpan& span, int64_t task) { attention_part(args(span), task, task + 1); });
  }

 private:
  /// How a product is divided: into tasks of `rows` by `outputs` results.
  struct Tile {
    static constexpr int64_t kElements = 16384;
    int64_t rows, outputs, down, across;
    Tile(const DecodeMatrix& m, int64_t n, int threads) {
      rows = n < 64 ? 64 : 256, outputs = kElements / rows;
      // Few rows read codes as fast as memory gives them. Long pieces waste little of what is fetched ahead.
      const int64_t share = (m.o / (2 * threads) + 63) / 64 * 64;
      if (n < 64) outputs = std::clamp<int64_t>(share, 64, outputs);
      down = (n + rows - 1) / rows, across = (m.o + outputs - 1) / outputs;
    }
    int64_t count() const { return down * across; }
  };

  template <class Step>
  int64_t rows_of(const Step& step) const {
    return step.at_wanted ? call_.wanted_count : call_.rows;
  }

  /// How many threads a step is worth: one if its work, in bytes as kAlone, is small.
  int threads_for(int64_t work) const { return work < kAlone ? 1 : most_; }

  template <class Body>
  void share(int64_t tasks, int64_t work, Body&& body) const {
    share_tasks(tasks, threads_for(work), body);
  }

  /// Shares the tasks of all spans: tasks(span) of each, for which body(span, task) is called.
  template <class Tasks, class Body>
  void for_spans(int64_t work, Tasks&& tasks, Body&& body) const {
    int64_t most = 0;
    for (int64_t s = 0; s < call_.span_count; ++s) most = std::max(most, tasks(call_.spans[s]));
    share(call_.span_count * most, work, [&](int64_t task) {
      const DecodeSpan& span = call_.spans[task / most];
      if (task % most < tasks(span)) body(span, task % most);
    });
  }

  /// Scratch of the thread that calls this, which runs tasks of this program alone if it has none of its own.
  float* scratch() const {
    const int index = threads::index();
    return program_.scratch + (index < most_ ? index : 0) * program_.scratch_floats;
  }

  void norm_row(const DecodeNorm& norm, int64_t n) {
    NormQuantArgs a = norm.args;
    const int64_t from = norm.at_wanted ? call_.wanted[n] : n;
    const auto rows = [](const void* p, int64_t elements) {
      return p ? static_cast<const void*>(static_cast<const float*>(p) + elements) : nullptr;
    };
    a.source.a = rows(a.source.a, from * a.source.stride);
    a.source.b = rows(a.source.b, from * a.source.stride);
    float r[3];
    if (a.r0) a.r0 = r;
    if (a.r1) a.r1 = r + 1;
    if (a.r2) a.r2 = r + 2;
    if (a.x) a.x = static_cast<float*>(a.x) + n * a.d;
    for (int b = 0; b < a.count; ++b) {
      a.branches[b].out = static_cast<char*>(a.branches[b].out) + n * norm.outputs[b].stride;
      if (a.branches[b].step) a.branches[b].step = static_cast<float*>(a.branches[b].step) + n;
    }
    norm_quant_row(a, scratch());
    for (int b = 0; b < a.count; ++b) {
      if (!norm.outputs[b].sums) continue;
      norm.outputs[b].sums[n] = sum_of_codes(static_cast<int8_t*>(a.branches[b].out), a.d);
    }
  }

  void ternary_tile(const DecodeMatrix& m, const Tile& tile, int64_t task, int64_t n, float* y) {
    const int64_t r0 = task % tile.down * tile.rows, o0 = task / tile.down * tile.outputs;
    const int64_t rows = std::min(tile.rows, n - r0), outputs = std::min(tile.outputs, m.o - o0);
    const int64_t row_bytes = ternary_row_bytes(m.k);
    alignas(64) int32_t sums[Tile::kElements];
    kernel_({m.q + r0 * m.q_stride, m.codes + o0 * row_bytes, sums, rows, outputs, row_bytes / kTernaryBlockBytes,
             tile.outputs});
    for (int64_t r = 0; r < rows; ++r) {
      const float factor = m.step[r0 + r] * *m.scale;
      const int32_t offset = m.sums[r0 + r];
      const int32_t* from = sums + r * tile.outputs;
      float* to = y + (r0 + r) * m.o + o0;
      for (int64_t o = 0; o < outputs; ++o) to[o] = float(from[o] - offset) * factor;
    }
  }

  static void plain_tile(const DecodeMatrix& m, const Tile& tile, int64_t task, int64_t n, float* y) {
    const int64_t r0 = task % tile.down * tile.rows, o0 = task / tile.down * tile.outputs;
    const int64_t rows = std::min(tile.rows, n - r0), outputs = std::min(tile.outputs, m.o - o0);
    dot_products(RowsOf<float>{m.x + r0 * m.k, m.k}, rows, RowsOf<float>{m.w + o0 * m.k, m.k}, outputs, m.k,
                 y + r0 * m.o + o0, m.o);
  }

  const DecodeProgram& program_;
  const DecodeCall& call_;
  const int most_;
  const TernaryKernel kernel_;
};

}  // namespace

void run_decode(const DecodeProgram& program, const DecodeCall& call) {
  Runner runner(program, call);
  for (const DecodeStep& step : program.steps) std::visit(runner, step);
}

}  // namespace mmfree::cpu
