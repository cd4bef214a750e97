#include "core/cuda/fused_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>

#include "core/cuda/attention_graph.h"
#include "core/cuda/context.h"
#include "core/gpu.h"
#include "core/tensor.h"

namespace mmfree::cuda {
namespace {

/// Versions of cuDNN: older ones are not tried, and two have known errors in the backward pass.
constexpr size_t kOldest = 90500, kWrong[] = {91000, 91001};
/// From this version on the mask is −infinity; before, the lowest number.
constexpr size_t kInfiniteMask = 91000;
/// Up to this version the backward pass wants whole tiles of this many queries.
constexpr size_t kLastOfWholeTiles = 91500;
constexpr int64_t kTile = 128;
/// The forward pass stores no scores: what it may want is small.
constexpr int64_t kForwardWorkspace = int64_t(64) << 20;

/// Guards what follows.
std::mutex mutex;
std::string problem;

/// Why cuDNN cannot be used at all; empty if it can.
const std::string& library_problem() {
  static const std::string text = []() -> std::string {
    const Cudnn& library = cudnn_library();
    if (!library.problem.empty()) return library.problem;
    const size_t version = library.version();
    if (version < kOldest || std::ranges::count(kWrong, version))
      return concat("cuDNN ", version / 10000, '.', version / 100 % 100, '.', version % 100,
                    " is too old or has known errors; install 9.11 or newer");
    return "";
  }();
  return text;
}

/// Made with the first plan, never destroyed.
cudnnHandle_t handle() {
  static const cudnnHandle_t made = [] {
    cudnnHandle_t h = nullptr;
    check_cudnn(cudnn_library().create(&h), "cudnnCreate");
    check_cudnn(cudnn_library().set_stream(h, stream()), "cudnnSetStream");
    return h;
  }();
  return made;
}

/// A plan, and the graph that it is for.
struct Plan {
  OperationGraph operations;
  Descriptor graph;
  Descriptor plan;
  int64_t workspace;
};

bool is_deterministic(const Descriptor& config) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR, "an engine");
  cudnnBackendDescriptor_t raw = engine.raw();
  config.get(CUDNN_ATTR_ENGINECFG_ENGINE, &raw, 1);
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {};
  const int64_t count = engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, notes, CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  return std::count(notes, notes + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == 0;
}

/// The first choice of cuDNN's heuristic that becomes a plan. Plans are not timed: a choice by time would change the
/// bits from run to run. @throws DeviceError with the reason of the last that did not
std::unique_ptr<Plan> make_plan(OperationGraph operations) {
  Descriptor graph = operations.finish(handle());
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "a heuristic");
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.raw());
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A).finalize();
  int64_t count = heuristic.get<cudnnBackendDescriptor_t>(CUDNN_ATTR_ENGINEHEUR_RESULTS, nullptr, 0);
  std::deque<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i)
    raw.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "a configuration").raw());
  count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, raw.data(), count);
  std::string reason = "cuDNN: no engine does this case";
  for (int64_t i = 0; i < count; ++i) {
    if (!is_deterministic(configs[size_t(i)])) continue;
    try {
      Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "a plan");
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle());
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, raw[size_t(i)]).finalize();
      int64_t workspace = 0;
      plan.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, &workspace, 1);
      return std::make_unique<Plan>(Plan{std::move(operations), std::move(graph), std::move(plan), workspace});
    } catch (const DeviceError& e) {
      reason = e.what();
    }
  }
  throw DeviceError(reason);
}

/// The plan of a case, kept; nullptr if cuDNN has none. `most`: bytes of workspace that it may want.
const Plan* plan_of(const AttentionShape& s, bool back, int64_t most) {
  static std::map<std::pair<AttentionShape, bool>, std::unique_ptr<Plan>> plans;
  std::lock_guard lock(mutex);
  if (const auto it = plans.find({s, back}); it != plans.end()) return it->second.get();
  std::unique_ptr<Plan>& plan = plans[{s, back}];
  try {
    plan = make_plan(back ? attention_backward_graph(s) : attention_graph(s));
    MMFREE_CHECK(DeviceError, plan->workspace <= most, "cuDNN wants ", plan->workspace,
                 " bytes of workspace, more than ", most);
  } catch (const DeviceError& e) {
    plan.reset();
    problem = concat("attention", back ? " backward" : "", " of [", s.b, ", ", s.t, ", ", s.heads, " over ", s.kv_heads,
                     ", ", s.width, "], window ", s.window, ": ", e.what());
  }
  return plan.get();
}

/// Tensors and scalars by number.
struct Operands {
  std::vector<int64_t> uids;
  std::vector<void*> addresses;
  float scale, minus_infinity, window, one = 1;

  explicit Operands(const AttentionShape& s)
      : scale(1 / std::sqrt(float(s.width))),
        minus_infinity(cudnn_library().version() >= kInfiniteMask ? -std::numeric_limits<float>::infinity()
                                                                  : std::numeric_limits<float>::lowest()),
        window(float(s.window)) {
    add(kScale, &scale);
    add(kMinusInfinity, &minus_infinity);
    if (s.window) add(kWindow, &window);
  }
  Operands(const Operands&) = delete;
  void add(AttentionTensor uid, const void* address) {
    uids.push_back(uid);
    addresses.push_back(const_cast<void*>(address));
  }
};

void execute(const Plan& plan, const Operands& operands, void* workspace, const char* op) {
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "the addresses");
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, operands.uids.data(), operands.uids.size());
  pack.set_addresses(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, operands.addresses.data(), operands.addresses.size());
  pack.set_addresses(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &workspace, 1).finalize();
  check_cudnn(cudnn_library().execute(handle(), plan.plan.raw(), pack.raw()), op);
  check_launch(op);
}

/// True if cuDNN should do the case; then it is worth a message that it does not.
bool wanted(const AttentionArgs& p) {
  return p.dtype == DType::bf16 && !p.begins && p.t > 1 && p.t == p.keys && p.t == p.capacity &&
         p.width <= (is_hopper() ? 256 : 128) && library_problem().empty();
}

AttentionShape shape_of(const AttentionArgs& p, int64_t sequences) {
  return {sequences, p.t, p.heads, p.kv_heads, p.width, p.window < p.t ? p.window : 0};
}

const char* at(const void* base, int64_t bytes) { return static_cast<const char*>(base) + bytes; }

}  // namespace

bool fused_attention(const AttentionArgs& p) {
  if (!wanted(p)) return false;
  const AttentionShape shape = shape_of(p, p.b);
  const Plan* plan = plan_of(shape, false, kForwardWorkspace);
  if (!plan) return false;
  Tensor unwanted, workspace({plan->workspace}, DType::u8, Device::cuda);
  if (!p.lse) unwanted = Tensor({p.b, p.heads, p.t}, DType::f32, Device::cuda);
  Operands operands(shape);
  operands.add(kQ, p.q);
  operands.add(kK, p.k);
  operands.add(kV, p.v);
  operands.add(kO, p.o);
  operands.add(kLse, p.lse ? p.lse : unwanted.raw_mut());
  execute(*plan, operands, workspace.raw_mut(), "attention");
  return true;
}

bool fused_attention_backward(const AttentionBackwardArgs& p) {
  const AttentionScratch scratch = attention_scratch(p);
  if (!wanted(p) || !scratch.per_sequence) return false;
  if (p.t % kTile && cudnn_library().version() <= kLastOfWholeTiles) return false;
  const int64_t most = scratch.at_once * scratch.per_sequence;
  for (const int64_t sequences : {scratch.at_once, p.b % scratch.at_once})
    if (sequences && !plan_of(shape_of(p, sequences), true, most)) return false;
  for (int64_t begin = 0; begin < p.b; begin += scratch.at_once) {
    const AttentionShape shape = shape_of(p, std::min(scratch.at_once, p.b - begin));
    const int64_t own = begin * p.t * p.heads * p.width * 2, keys = begin * p.t * p.kv_heads * p.width * 2;
    const int64_t rows = begin * p.heads * p.t * 4;
    Operands operands(shape);
    operands.add(kOne, &operands.one);
    for (const auto& [uid, address] : {std::pair{kQ, p.q}, {kO, p.o}, {kDout, p.dout}, {kDq, p.dq}})
      operands.add(uid, at(address, own));
    for (const auto& [uid, address] : {std::pair{kK, p.k}, {kV, p.v}, {kDk, p.dk}, {kDv, p.dv}})
      operands.add(uid, at(address, keys));
    operands.add(kLse, at(p.lse, rows));
    operands.add(kDelta, at(p.scratch, rows));
    execute(*plan_of(shape, true, most), operands, static_cast<char*>(p.scratch) + scratch.sums, "attention_backward");
  }
  return true;
}

}  // namespace mmfree::cuda

namespace mmfree {

std::string gpu::attention_problem() {
  if (const std::string& text = cuda::library_problem(); !text.empty()) return concat("attention: ", text);
  std::lock_guard lock(cuda::mutex);
  return cuda::problem;
}

}  // namespace mmfree
