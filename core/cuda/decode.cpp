#include "core/cuda/decode.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "core/cuda/context.h"
#include "core/cuda/decode_chain.h"
#include "core/device.h"
#include "core/gpu.h"
#include "core/ops/sample.h"

namespace mmfree::cuda {
namespace {

using decode::Finish;
using decode::Group;
using decode::Norm;
using decode::Rows;

/// A program on a GPU: its ops, and the memory that tells kernels which rows a call has.
class Runner {
 public:
  Runner(const DecodeProgram& program, int64_t most_rows, int64_t most_spans)
      : ops_(decode::plan(program.steps)),
        chains_(decode::chains(ops_)),
        most_rows_(most_rows),
        most_spans_(most_spans),
        host_(size_t(3 * most_rows + 3 * most_spans)),
        device_({int64_t(host_.size())}, DType::i32, Device::cuda) {}

  void run(const DecodeCall& call) {
    int32_t *ids = host_.data(), *slots = ids + most_rows_, *positions = slots + most_rows_,
            *wanted = positions + most_rows_, *spans = wanted + most_spans_;
    MMFREE_CHECK(Error, call.rows <= most_rows_ && call.span_count <= most_spans_ && call.wanted_count <= most_spans_,
                 "decode: a call of ", call.rows, " rows in ", call.span_count, " spans, prepared for ", most_rows_,
                 " and ", most_spans_);
    std::copy_n(call.ids, call.rows, ids);
    bool single = true;
    for (int64_t s = 0; s < call.span_count; ++s) {
      const DecodeSpan& span = call.spans[s];
      spans[2 * s] = int32_t(span.row), spans[2 * s + 1] = int32_t(span.count);
      single &= span.count == 1;
      for (int64_t i = 0; i < span.count; ++i) {
        slots[span.row + i] = int32_t(span.slot);
        positions[span.row + i] = int32_t(span.position + i);
      }
    }
    for (int64_t i = 0; i < call.wanted_count; ++i) wanted[i] = int32_t(call.wanted[i]);
    upload();
    Rows rows = this->rows();
    rows.rows = int(call.rows), rows.span_count = int(call.span_count), rows.wanted_count = int(call.wanted_count);
    launch(rows, single, call.wanted_first);
  }

  /// See core/ops/decode.h. The first tokens come from the logits that are there; then each launch is a step.
  int64_t loop(const DecodeLoop& l) {
    const auto count = int64_t(l.slots.size());
    MMFREE_CHECK(Error, count <= most_spans_, "decode: a loop of ", count, " sequences, prepared for ", most_spans_);
    begin_loop(l);
    const SampleArgs args = sample_args(l);
    Rows rows = this->rows();
    rows.rows = rows.span_count = rows.wanted_count = int(count);
    const auto step = [this, rows, args] {
      launch(rows, true, 0);
      sample(args);
    };
    std::unique_ptr<gpu::Graph>& graph = graphs_[{count, args.seen != nullptr}];
    int64_t launched = 0, read = 0;
    for (bool more = true; more && read < l.steps; ++read) {
      for (; launched < std::min(l.steps, read + kAhead); ++launched) {
        // The first step of its kind is not recorded: kernels are loaded when they are launched first.
        if (launched == 0) {
          sample(args);
        } else if (!l.captured || (launched == 1 && !graph)) {
          step();
        } else {
          if (!graph) graph = std::make_unique<gpu::Graph>(step);
          graph->launch();
        }
      }
      more = l.on_tokens(tokens_of(read, count));
    }
    check(cudaStreamSynchronize(stream()), "decode");
    return launched - 1;
  }

  void launch(const Rows& rows, bool single, int64_t wanted_first) {
    auto chain = chains_.begin();
    for (size_t i = 0; i < ops_.size(); ++i) {
      while (chain != chains_.end() && chain->first < i) ++chain;
      const bool few = single && rows.rows <= decode::kFewRows;
      if (few && chain != chains_.end() && chain->first == i && chain->shape(rows.rows)) {
        decode::run(*chain, rows, wanted_first);
        i += chain->count - 1;
      } else {
        launch(ops_[i], rows, single, wanted_first);
      }
    }
  }

  void launch(const decode::Op& op, const Rows& rows, bool single, int64_t wanted_first) {
    std::visit(
        [&](const auto& o) {
          using Kind = std::decay_t<decltype(o)>;
          if constexpr (std::is_same_v<Kind, DecodeEmbed>)
            decode::embed(o, rows.ids, rows.rows);
          else if constexpr (std::is_same_v<Kind, DecodeScan>)
            decode::scan(o, rows);
          else if constexpr (std::is_same_v<Kind, decode::Attend>)
            decode::attend(o.step, o.turns.template data<double>(), rows);
          else
            linear(o, rows, single, wanted_first);
        },
        op);
  }

  Rows rows() const {
    const int32_t* ids = device_.data<int32_t>();
    return {ids, ids + most_rows_, ids + 2 * most_rows_, ids + 3 * most_rows_, ids + 3 * most_rows_ + most_spans_, 0, 0,
            0};
  }

 private:
  void linear(const decode::Linear& op, const Rows& rows, bool single, int64_t wanted_first) {
    const int count = op.at_wanted ? rows.wanted_count : rows.rows;
    const int64_t first = op.at_wanted ? wanted_first : 0;
    if (count == 0) return;
    Norm norm = op.norm.value_or(Norm{});
    norm.wanted = op.at_wanted ? rows.wanted : nullptr;
    Group group = op.group;
    group.slots = rows.slots, group.first_row = first;
    const bool dense = decode::fits_dense(group, count), scans = op.scan && single && !dense;
    if (scans) group.finish = Finish::scan;
    if (op.norm) decode::norm(norm, count);
    if (group.count) dense ? decode::dense(group, count) : decode::tiles(group, count);
    for (const DecodeMatrix& m : op.plain) decode::plain(m, count, first);
    if (op.scan && !scans) decode::scan(*op.scan, rows);
  }

  void upload() {
    check(cudaMemcpyAsync(device_.raw_mut(), host_.data(), host_.size() * sizeof(int32_t), cudaMemcpyHostToDevice,
                          stream()),
          "decode: a copy");
  }

  /// Sequence i of a loop is row i of each step.
  void begin_loop(const DecodeLoop& l) {
    const auto count = int64_t(l.slots.size());
    check(cudaStreamSynchronize(stream()), "decode");  // a loop that ended by an exception may still run
    for (int64_t i = 0; i < count; ++i) {
      int32_t* at = host_.data() + i;
      at[0] = 0, at += most_rows_;
      at[0] = int32_t(l.slots[size_t(i)]), at += most_rows_;
      at[0] = int32_t(l.positions[size_t(i)]) - 1, at += most_rows_;  // counted up with the token
      at[0] = int32_t(i), at += most_spans_;
      at[i] = int32_t(i), at[i + 1] = 1;
    }
    upload();
    if (!history_) {
      history_ = std::make_unique<gpu::PinnedBuffer>(size_t(kAhead * most_spans_) * sizeof(int32_t));
      settings_ = Tensor({most_spans_ * int64_t(sizeof(SampleRow))}, DType::u8, Device::cuda);
      taken_ = Tensor({most_spans_}, DType::i32, Device::cuda);
      seen_ = Tensor({most_spans_, (l.vocab + 31) / 32}, DType::i32, Device::cuda);
    }
    std::fill_n(static_cast<int32_t*>(history_->data()), kAhead * most_spans_, kNone);
    taken_.fill_zero();
    copy_bytes(settings_.raw_mut(), Device::cuda, l.rows.data(), Device::cpu, l.rows.size() * sizeof(SampleRow));
    if (!l.seen.empty())
      copy_bytes(seen_.raw_mut(), Device::cuda, l.seen.data(), Device::cpu, l.seen.size() * sizeof(int32_t));
  }

  SampleArgs sample_args(const DecodeLoop& l) {
    auto* ids = device_.mut<int32_t>();
    return {l.logits,
            reinterpret_cast<SampleRow*>(settings_.raw_mut()),
            l.seen.empty() ? nullptr : reinterpret_cast<uint32_t*>(seen_.raw_mut()),
            ids,
            int64_t(l.slots.size()),
            l.vocab,
            ids + 2 * most_rows_,
            static_cast<int32_t*>(history_->data()),
            taken_.mut<int32_t>(),
            kAhead};
  }

  /// Waits for the tokens of a step, which the GPU writes to memory of the host.
  std::span<const int32_t> tokens_of(int64_t step, int64_t count) {
    volatile int32_t* from = static_cast<int32_t*>(history_->data()) + step % kAhead * count;
    tokens_.resize(size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t tries = 0; from[i] == kNone; ++tries) {
        if (tries < kSpins) continue;
        const cudaError_t status = cudaStreamQuery(stream());
        if (status != cudaErrorNotReady) check(status, "decode");
        MMFREE_CHECK(DeviceError, status == cudaErrorNotReady || from[i] != kNone, "decode: a step gave no token");
        std::this_thread::sleep_for(std::chrono::microseconds(10));
      }
      tokens_[size_t(i)] = from[i];
      from[i] = kNone;
    }
    for (int32_t token : tokens_)
      if (token < 0) {
        cudaStreamSynchronize(stream());
        throw DivergedError(
            "the model's logits hold a NaN or an infinity: its weights are too large; use an older checkpoint");
      }
    return tokens_;
  }

  static constexpr int64_t kAhead = 8;  ///< steps that are launched before the first one's tokens are read
  static constexpr int64_t kSpins = 20000;
  static constexpr int32_t kNone = -2;

  std::vector<decode::Op> ops_;
  std::vector<decode::Chain> chains_;  ///< of them
  int64_t most_rows_, most_spans_;
  std::vector<int32_t> host_;  ///< ids, slots, positions, wanted rows, spans
  Tensor device_;
  // Of loops.
  std::map<std::pair<int64_t, bool>, std::unique_ptr<gpu::Graph>> graphs_;  ///< by sequences and penalty
  std::unique_ptr<gpu::PinnedBuffer> history_;                              ///< [kAhead, R]
  Tensor settings_, taken_, seen_;
  std::vector<int32_t> tokens_;
};

}  // namespace

void prepare_decode(DecodeProgram& program, int64_t most_rows, int64_t most_spans) {
  program.runner = std::make_shared<Runner>(program, most_rows, most_spans);
  check(cudaStreamSynchronize(stream()), "decode");  // products read packed weights before they wait for a kernel
}

void pack_decode(const int8_t* codes, int64_t rows, int64_t cols, uint8_t* packed) {
  decode::pack(codes, rows, cols, reinterpret_cast<uint32_t*>(packed));
}

/// What prepare_decode made. @throws DeviceError
static Runner& runner_of(const DecodeProgram& program) {
  MMFREE_CHECK(DeviceError, program.runner, "decode: a program for a GPU must be prepared before it runs");
  return *static_cast<Runner*>(program.runner.get());
}

void run_decode(const DecodeProgram& program, const DecodeCall& call) { runner_of(program).run(call); }

void decode_loop(const DecodeProgram& program, const DecodeLoop& loop, int64_t& consumed) {
  consumed = runner_of(program).loop(loop);
}

}  // namespace mmfree::cuda
