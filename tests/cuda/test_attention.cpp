#include "core/ops/attention.h"
#include "tests/cuda/twins.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

struct Case {
  int64_t b, t, heads, kv_heads, width;
  int64_t window = 0, earlier = 0, spare = 0;  ///< keys of earlier tokens, rows behind the last key
  bool documents = false;
  double scale = 1;  ///< of q, and with it of the scores
  std::string text() const {
    return concat("B ", b, " T ", t, " H ", heads, " G ", kv_heads, " W ", width, " window ", window, " earlier ",
                  earlier, " spare ", spare, " documents ", documents, " scale ", scale);
  }
  int64_t keys() const { return t + earlier; }
  /// An exponential is as wrong as its exponent, which is rounded in proportion to its size.
  double bound(DType type) const { return gpu_bound(type) + (scale > 1 ? gpu_bound(DType::f32) * scale / 4 : 0); }
};

/// Of plain kernels: around their tiles of 64, 32 and 16 queries or keys, each width class, each feature, few queries.
const Case kCases[] = {
    {2, 130, 2, 2, 64},
    {1, 64, 4, 2, 8},
    {2, 65, 3, 1, 40},
    {1, 33, 2, 2, 96},
    {1, 97, 4, 1, 128},
    {1, 50, 2, 1, 200},
    {1, 35, 2, 2, 256},
    {1, 19, 2, 1, 512},
    {1, 200, 2, 1, 64, 70},
    {2, 150, 4, 2, 32, 1},
    {2, 190, 2, 2, 64, 0, 0, 0, true},
    {2, 131, 4, 2, 128, 40, 0, 0, true},
    {2, 70, 2, 1, 64, 0, 90, 25},
    {2, 40, 4, 2, 64, 30, 100, 3, true},
    {1, 2, 2, 1, 64},
    {3, 1, 4, 2, 64, 0, 300, 20},
    {3, 1, 4, 2, 64, 0, 300, 20, true},
    {2, 1, 4, 4, 8, 0, 40, 0},
    {2, 5, 2, 1, 40, 17, 200, 1, true},
    {1, 8, 2, 2, 128, 0, 500},
    {1, 1, 2, 1, 512, 0, 70, 9},
    {1, 3, 2, 1, 264},
    {1, 1, 1, 1, 16},
    {1, 90, 2, 2, 64, 0, 20, 0, false, 30},
    {2, 1, 2, 1, 64, 0, 300, 0, false, 200},
};

/// On the CPU in f64, in numbers that `type` holds.
struct Problem {
  Case c;
  DType type;
  Positions positions;
  Tensor q, k, v, dout, o, lse;
};

Problem make_problem(const Case& c, DType type) {
  const Shape own{c.b, c.t, c.heads, c.width}, keys{c.b, c.keys() + c.spare, c.kv_heads, c.width};
  Problem p{c,
            type,
            {c.earlier + 3, {}},
            random_of(own, type, 1, c.scale),
            random_of(keys, type, 2),
            random_of(keys, type, 3),
            random_of(own, type, 4),
            Tensor(own, DType::f64),
            Tensor({c.b, c.heads, c.t}, DType::f64)};
  if (c.documents) {
    p.positions.begins = Tensor({c.b, c.t}, DType::i32);
    Tensor before({c.b}, DType::i32);
    for (int64_t i = 0; i < c.b; ++i) before.mut<int32_t>()[i] = int32_t(i % 2 ? p.positions.first / 2 : 0);
    Tensor starts = Tensor::zeros({c.b, c.t}, DType::u8);
    for (int64_t i = 20; i < c.b * c.t; i += 37) starts.mut<uint8_t>()[i] = 1;
    document_begins(starts, before, p.positions.first, p.positions.begins, before);
  }
  attention(p.q, p.k, p.v, c.keys(), p.positions, c.window, p.o, p.lse);
  return p;
}

Positions on_gpu(const Positions& p) { return {p.first, p.begins.defined() ? p.begins.to(Device::cuda) : p.begins}; }

struct Forward {
  Tensor o, lse;
};

/// Rows of keys behind the last are NaN: nobody may read them.
Tensor keys_on_gpu(const Problem& p, const Tensor& keys) {
  Tensor t = keys.clone();
  const int64_t row = p.c.kv_heads * p.c.width, capacity = t.dim(1);
  for (int64_t i = 0; i < t.size(); ++i)
    if (i / row % capacity >= p.c.keys()) set(t, i, kNaN);
  return to_gpu(t, p.type);
}

Forward forward_on_gpu(const Problem& p) {
  Forward f{gpu_tensor(p.q.shape(), p.type), gpu_tensor(p.lse.shape(), DType::f32)};
  attention(to_gpu(p.q, p.type), keys_on_gpu(p, p.k), keys_on_gpu(p, p.v), p.c.keys(), on_gpu(p.positions), p.c.window,
            f.o, f.lse);
  return f;
}

/// dq, dk, dv on the side of `device`, from the same o and lse.
std::vector<Tensor> backward(const Problem& p, Device device) {
  const bool gpu = device == Device::cuda;
  const DType type = gpu ? p.type : DType::f64, stat = gpu ? DType::f32 : DType::f64;
  const auto own = [&](const Tensor& t) { return gpu ? to_gpu(t, type) : as_f64(as_type(t, p.type)); };
  const auto keys = [&](const Tensor& t) { return gpu ? keys_on_gpu(p, t) : t; };
  Tensor dq(p.q.shape(), type, device), dk({p.c.b, p.c.t, p.c.kv_heads, p.c.width}, type, device);
  Tensor dv(dk.shape(), type, device);
  const Tensor lse = as_type(as_type(p.lse, DType::f32), stat).to(device);
  attention_backward(own(p.q), keys(p.k), keys(p.v), p.c.keys(), gpu ? on_gpu(p.positions) : p.positions, p.c.window,
                     own(p.o), lse, own(p.dout), dq, dk, dv);
  return {dq, dk, dv};
}

/// The same case for the plain kernels: cuDNN is not asked where documents are given.
Problem plainly(const Problem& p) {
  Problem plain = p;
  if (p.c.documents) return plain;
  plain.positions.begins = Tensor({p.c.b, p.c.t}, DType::i32);
  plain.positions.begins.fill_zero();
  return plain;
}

const char* const kGradients[] = {"dq", "dk", "dv"};

/// max |a − b| relative to the largest expected value, or to 1, the size of what is multiplied: gradients of a query
/// that sees one key are 0.
double gradient_error(const Tensor& got, const Tensor& expected) {
  const Tensor a = from_gpu(got);
  double error = 0, size = 1;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(at(a, i) - at(expected, i));
    if (std::isnan(e)) return e;
    error = std::max(error, e);
    size = std::max(size, std::abs(at(expected, i)));
  }
  return error / size;
}

}  // namespace

TEST(CudaAttention, MatchesTheCpuInDouble) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      SCOPED_TRACE(concat(name_of(type), ' ', c.text()));
      Problem p = make_problem(c, type);
      if (type == DType::bf16) p = plainly(p);
      const Forward got = forward_on_gpu(p);
      EXPECT_LE(relative_error(from_gpu(got.o), p.o), c.bound(type));
      EXPECT_LE(relative_error(from_gpu(got.lse), p.lse), gpu_bound(DType::f32));
    }
}

TEST(CudaAttention, GradientsFollowThoseInDouble) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      SCOPED_TRACE(concat(name_of(type), ' ', c.text()));
      Problem p = make_problem(c, type);
      if (type == DType::bf16) p = plainly(p);
      const std::vector<Tensor> got = backward(p, Device::cuda), expected = backward(p, Device::cpu);
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(gradient_error(got[i], expected[i]), c.bound(type)) << kGradients[i];
    }
}

TEST(CudaAttention, TheStatisticsMayBeUnwanted) {
  MMFREE_NEEDS_GPU();
  for (const Case& c : {kCases[0], kCases[15]}) {
    const Problem p = plainly(make_problem(c, DType::bf16));
    const Forward with = forward_on_gpu(p);
    Tensor o = gpu_tensor(p.q.shape(), p.type), none;
    attention(to_gpu(p.q, p.type), keys_on_gpu(p, p.k), keys_on_gpu(p, p.v), c.keys(), on_gpu(p.positions), c.window, o,
              none);
    EXPECT_TRUE(same_bits(o.to(Device::cpu), with.o.to(Device::cpu)));
  }
}

TEST(CudaAttention, DecodingFollowsTheWholeText) {
  MMFREE_NEEDS_GPU();
  const int64_t t = 150, prompt = 90;
  for (DType type : {DType::f32, DType::bf16}) {
    const Problem p = make_problem({1, t, 4, 2, 64, 60}, type);
    const Tensor q = to_gpu(p.q, type), k = to_gpu(p.k, type), v = to_gpu(p.v, type);
    const auto part = [&](int64_t begin, int64_t end) {
      Tensor o = gpu_tensor({1, end - begin, 4, 64}, type), none;
      const Tensor own = q.reshape({t, 4, 64}).slice(begin, end).reshape(o.shape());
      attention(own, k, v, end, {begin, {}}, 60, o, none);
      const Tensor expected = p.o.reshape({t, 4, 64}).slice(begin, end).reshape(o.shape());
      EXPECT_LE(relative_error(from_gpu(o), expected), gpu_bound(type)) << begin;
    };
    part(0, prompt);
    for (int64_t i = prompt; i < t; ++i) part(i, i + 1);
  }
}

TEST(CudaAttention, TwoRunsGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f32, DType::bf16})
    for (const Case& c : {Case{2, 333, 8, 2, 64}, {2, 256, 4, 4, 128, 100}, {4, 1, 8, 8, 64, 0, 700}}) {
      SCOPED_TRACE(c.text());
      const Problem p = plainly(make_problem(c, type));
      expect_repeatable([&] {
        const Forward f = forward_on_gpu(p);
        return std::vector<Tensor>{f.o, f.lse};
      });
      expect_repeatable([&] { return backward(p, Device::cuda); });
    }
}

/// What cuDNN does, against the plain kernels and the CPU. It rounds p, ds and the outputs to bf16, each by 2^-9 at
/// most: three such errors as in a sum of squares, and half as much again.
class CudaFusedAttention : public testing::TestWithParam<Case> {};

constexpr double kFusedBound = 0x1p-9 * 1.75 * 1.5;

TEST_P(CudaFusedAttention, MatchesThePlainKernels) {
  MMFREE_NEEDS_GPU();
  const Case& c = GetParam();
  const Problem p = make_problem(c, DType::bf16), plain = plainly(p);
  const Forward got = forward_on_gpu(p), expected = forward_on_gpu(plain);
  if (const std::string why = gpu::attention_problem(); why.starts_with("attention: ")) GTEST_SKIP() << why;
  EXPECT_LE(norm_error(from_gpu(got.o), from_gpu(expected.o)), kFusedBound);
  EXPECT_LE(norm_error(from_gpu(got.o), p.o), kFusedBound);
  EXPECT_LE(relative_error(from_gpu(got.lse), from_gpu(expected.lse)), gpu_bound(DType::f32));
  const std::vector<Tensor> gradients = backward(p, Device::cuda), twins = backward(plain, Device::cuda);
  EXPECT_EQ(gpu::attention_problem(), "");
  bool differ = false;
  for (size_t i = 0; i < twins.size(); ++i) {
    EXPECT_LE(norm_error(from_gpu(gradients[i]), from_gpu(twins[i])), kFusedBound) << kGradients[i];
    differ |= !same_bits(gradients[i].to(Device::cpu), twins[i].to(Device::cpu));
  }
  // Older versions leave the backward pass of other lengths, and older GPUs wide heads, to the plain kernels.
  const bool hopper = gpu::info().major == 9;
  EXPECT_TRUE(differ || c.t % 128 || (c.width > 128 && !hopper)) << "the plain kernels ran on both sides";
}

TEST_P(CudaFusedAttention, TheStatisticsMayBeUnwanted) {
  MMFREE_NEEDS_GPU();
  const Problem p = make_problem(GetParam(), DType::bf16);
  Tensor o = gpu_tensor(p.q.shape(), p.type), none;
  attention(to_gpu(p.q, p.type), to_gpu(p.k, p.type), to_gpu(p.v, p.type), p.c.t, p.positions, p.c.window, o, none);
  EXPECT_TRUE(same_bits(o.to(Device::cpu), forward_on_gpu(p).o.to(Device::cpu)));
}

TEST_P(CudaFusedAttention, TwoRunsGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  const Problem p = make_problem(GetParam(), DType::bf16);
  for (int run = 0; run < 4; ++run) expect_repeatable([&] { return backward(p, Device::cuda); });
}

TEST_P(CudaFusedAttention, CanBeRecorded) {
  MMFREE_NEEDS_GPU();
  const Case& c = GetParam();
  const Problem p = make_problem(c, DType::bf16);
  const Tensor q = to_gpu(p.q, p.type), k = to_gpu(p.k, p.type), v = to_gpu(p.v, p.type), dout = to_gpu(p.dout, p.type);
  Tensor o = gpu_tensor(q.shape(), p.type), lse = gpu_tensor(p.lse.shape(), DType::f32);
  Tensor dq = gpu_tensor(q.shape(), p.type), dk = gpu_tensor(k.shape(), p.type), dv = gpu_tensor(k.shape(), p.type);
  const auto step = [&] {
    attention(q, k, v, c.t, {}, c.window, o, lse);
    attention_backward(q, k, v, c.t, {}, c.window, o, lse, dout, dq, dk, dv);
  };
  step();  // makes the plans
  const std::vector<Tensor> expected = {from_gpu(o), from_gpu(dq), from_gpu(dk), from_gpu(dv)};
  gpu::Graph graph(step);
  for (Tensor* t : {&o, &lse, &dq, &dk, &dv}) t->fill_zero();
  graph.launch();
  const std::vector<Tensor> got = {from_gpu(o), from_gpu(dq), from_gpu(dk), from_gpu(dv)};
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], expected[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaFusedAttention,
                         testing::Values(Case{2, 256, 4, 4, 64}, Case{2, 384, 4, 2, 64}, Case{1, 256, 4, 1, 128},
                                         Case{2, 256, 2, 2, 64, 100}, Case{1, 384, 4, 2, 128, 129},
                                         Case{2, 128, 2, 2, 8}, Case{1, 256, 2, 1, 40}, Case{1, 256, 2, 2, 96},
                                         Case{1, 256, 2, 1, 256}, Case{2, 200, 4, 2, 64}, Case{1, 333, 2, 2, 128, 64},
                                         Case{3, 2, 2, 1, 64}));

/// Sequences are done in several calls where cuDNN's memory for all of them would be too much, with a shorter last one.
class CudaFusedBatch : public testing::TestWithParam<int64_t> {};

TEST_P(CudaFusedBatch, MayBeSplit) {
  MMFREE_NEEDS_GPU();
  const int64_t b = GetParam(), t = 2048, heads = 12, width = 64;  // 96 MiB of ds a sequence: two calls of 5 and 4
  const auto random = [&](uint32_t seed) {
    return to_gpu(random_tensor({b, t, heads, width}, DType::f32, seed), DType::bf16);
  };
  const Tensor q = random(1), k = random(2), v = random(3), dout = random(4);
  const auto run = [&](int64_t begin, int64_t end) {
    const Shape shape{end - begin, t, heads, width};
    Tensor o = gpu_tensor(shape, DType::bf16), lse = gpu_tensor({end - begin, heads, t}, DType::f32);
    Tensor dq = o.clone(), dk = o.clone(), dv = o.clone();
    const auto part = [&](const Tensor& x) { return x.slice(begin, end); };
    attention(part(q), part(k), part(v), t, {}, 0, o, lse);
    attention_backward(part(q), part(k), part(v), t, {}, 0, o, lse, part(dout), dq, dk, dv);
    return std::vector<Tensor>{dq.to(Device::cpu), dk.to(Device::cpu), dv.to(Device::cpu)};
  };
  const std::vector<Tensor> all = run(0, b);
  for (int64_t i : {int64_t(0), int64_t(4), int64_t(5), b - 1}) {
    const std::vector<Tensor> one = run(i, i + 1);
    for (size_t g = 0; g < all.size(); ++g)
      EXPECT_TRUE(same_bits(all[g].slice(i, i + 1).clone(), one[g])) << i << kGradients[g];
  }
}

INSTANTIATE_TEST_SUITE_P(Split, CudaFusedBatch, testing::Values(9));
