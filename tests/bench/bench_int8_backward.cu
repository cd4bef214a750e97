// Ways to compute the products of the backward pass of a ternary projection in 8 bits on a Hopper GPU, and what each
// costs. Checks every kernel's bits against a plain one, then prints times and what a whole step would take.
// Needs an idle GPU; exits with 1 if any bit differs.
//
// A projection y = x wᵀ has x [n, k], w [o, k]. Its backward pass computes dx = dy w and dw = dyᵀ x.
//   dx   rows of dy in int8 with one step per row; the codes of wᵀ are exact. It is ternary_mma.
//   dw   sums over n. A step per row of n cannot leave the sum, so the rows' factors are folded into one operand, which
//        is rounded to int8 in blocks of 128 rows, with one scale per block and channel or per block and 128 channels:
//          dw[i, j] = sum over blocks b of scale[b, i or j] * float(sum over the rows of b of a[i, row] * b[j, row])
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/cuda/ternary_mma.h"
#include "tests/bench/int8_backward/checks.cuh"
#include "tests/bench/int8_backward/times.cuh"
#include "tests/bench/int8_backward/ways.h"

namespace mmfree::int8_backward {
namespace {

/// Projections of a layer with one shape, by who writes their dy.
struct Projections {
  int64_t o, k;
  int scan, stream, alone;
};
struct Model {
  const char* name;
  int64_t n;
  int layers;
  std::vector<Projections> projections;
};

void print_times(const Times& t, int64_t n, int64_t o, int64_t k) {
  const double dy = double(n) * double(o), x = double(n) * double(k), operations = 2.0 * double(k) * dy;
  const auto rate = [&](const char* name, double us) {
    std::printf("  %-44s %8.1f (%5.0f)\n", name, us, operations / us * 1e-6);
  };
  const auto moved = [&](const char* name, double us, double bytes) {
    std::printf("  %-44s %8.1f (%5.0f)\n", name, us, bytes / us * 1e-3);
  };
  rate("bf16 dx, cuBLASLt", t.bf16_dx);
  rate("bf16 dw, cuBLASLt", t.bf16_dw);
  rate("int8 dx", t.dx);
  rate("int8 dw, two transposed copies, row scales", t.as_stored);
  rate("int8 dw, dy turned inside, row scales", t.turned_rows);
  rate("int8 dw, dy turned inside, column scales", t.turned_columns);
  rate("the same, warpgroups not in turn", t.no_turns);
  rate("int8 dw, dy turned inside, tile scales", t.turned_tile);
  rate("int8 dw, x turned inside, column scales", t.other_side);
  moved("dy to rows", t.rows, 3 * dy);
  moved("dy to rows and blocks", t.both, 4 * dy);
  moved("dy to blocks", t.blocks, 3 * dy);
  moved("dy to tiles, two layouts", t.tile, 4 * dy);
  moved("rows of dy to blocks", t.again_dy, 2 * dy);
  moved("codes of x to blocks", t.again_x, 2 * x);
  moved("codes of x transposed", t.copy_x, 2 * x);
}

/// Quantisers as a share of what the products gain: a way is worth building below a quarter.
void print_total(const char* name, const Cost& c, double bf16) {
  const double gain = bf16 - c.products;
  std::printf("  %-52s %8.2f %8.2f %8.2f %6.0f %% %8.2f %8.2f\n", name, c.products, gain, c.quantisers,
              100 * c.quantisers / gain, c.spared, bf16 - c.total());
}

void time_model(const Model& model) {
  std::printf("\n%s, %lld rows. Products in us (Top/s), quantisers in us (GB/s)\n", model.name, (long long)model.n);
  Cost bf16, best;
  std::vector<Method> sums;
  for (const Projections& p : model.projections) {
    const int count = p.scan + p.stream + p.alone;
    std::printf(" o %lld, k %lld, %d of them in a layer, dw in %d parts\n", (long long)p.o, (long long)p.k, count,
                splits_of(up(p.o, 256) / 256 * (up(p.k, 256) / 256), model.n / 128));
    const Times t = ProjectionTimer(model.n, p.o, p.k)();
    print_times(t, model.n, p.o, p.k);
    const std::vector<Method> all = methods(t, model.n, p.o);
    const double ms = model.layers * 1e-3;
    bf16.add(ms * count, bf16_cost(t));
    best.add(ms * p.scan, best_cost(t, all, Writer::scan));
    best.add(ms * p.stream, best_cost(t, all, Writer::stream));
    best.add(ms * p.alone, best_cost(t, all, Writer::alone));
    if (sums.empty())
      for (Method m : all) m.cost = Cost(), sums.push_back(m);
    for (size_t i = 0; i < all.size(); ++i) sums[i].cost.add(ms * count, all[i].cost);
    std::fflush(stdout);
  }
  std::printf(" ms of a step: %s; every projection in one way, as if its writer could; then the best that it can\n",
              model.name);
  std::printf("  %-52s %8s %8s %8s %8s %8s %8s\n", "", "products", "gain", "quantise", "share", "spared", "net");
  std::printf("  %-52s %8.2f\n", "bf16", bf16.total());
  for (const Method& m : sums) print_total(m.name, m.cost, bf16.total());
  print_total("best of bf16, dx alone, (c), (d)", best, bf16.total());
  std::fflush(stdout);
}

const std::vector<Model> kModels = {
    {"370M", 32768, 24, {{1024, 1024, 2, 1, 1}, {5632, 1024, 0, 0, 1}, {1024, 2816, 0, 1, 0}}},
    {"1.3B", 16384, 24, {{2048, 2048, 2, 1, 1}, {11264, 2048, 0, 0, 1}, {2048, 5632, 0, 1, 0}}},
    {"50M", 65536, 12, {{512, 512, 2, 1, 1}, {2816, 512, 0, 0, 1}, {512, 1408, 0, 1, 0}}}};

}  // namespace
}  // namespace mmfree::int8_backward

int main(int count, char** names) {
  using namespace mmfree::int8_backward;
  if (!mmfree::cuda::ternary_mma_fits(128, 128, 128)) {
    std::printf("skipped: this GPU is no Hopper\n");
    return 0;
  }
  const bool right = check_all();
  for (const Model& model : kModels)
    if (count < 2 || std::find(names + 1, names + count, std::string(model.name)) != names + count) time_model(model);
  return right ? 0 : 1;
}
