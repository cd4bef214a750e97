// What a profiler sees of traced steps, told by one that is linked into this program in place of a real one.
#if defined(MMFREE_CUDA) && MMFREE_CUDA && __has_include(<nvtx3/nvToolsExt.h>)
#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExt.h>

#include <string>
#include <vector>

#include "tests/cuda/small_run.h"
#include "train/run/step_trace.h"

namespace {

bool found = false;               ///< NVTX has asked for the functions below
std::vector<std::string>* calls;  ///< "+NAME" and "-"; null: nobody listens

int NVTX_API push(const char* name) {
  if (calls) calls->push_back(std::string("+") + name);
  return 0;
}

int NVTX_API pop() {
  if (calls) calls->push_back("-");
  return 0;
}

int NVTX_API initialise(NvtxGetExportTableFunc_t get_export_table) {
  const auto* table = static_cast<const NvtxExportTableCallbacks*>(get_export_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable functions = nullptr;
  unsigned size = 0;
  if (!table || !table->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &functions, &size)) return 0;
  if (size <= unsigned(NVTX_CBID_CORE_RangePop)) return 0;
  *functions[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *functions[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  found = true;
  return 1;
}

}  // namespace

/// Where NVTX looks for a profiler that is part of the program; those of the first CUDA 12 do not.
extern "C" NvtxInitializeInjectionNvtxFunc_t InitializeInjectionNvtx2_fnptr = initialise;

namespace mmfree {
namespace {

using Calls = std::vector<std::string>;

/// The calls that `work` makes. Nothing if NVTX does not know this profiler.
Calls calls_of(const std::function<void()>& work) {
  Calls made;
  calls = &made;
  work();
  calls = nullptr;
  return made;
}

TEST(Nvtx, RangesReachAProfilerInTheirOrder) {
  const Calls made = calls_of([] {
    gpu::begin_range("outer");
    gpu::begin_range("inner");
    gpu::end_range();
    gpu::end_range();
  });
  if (!found) GTEST_SKIP() << "this NVTX knows no profiler that is linked in, or there is another one";
  EXPECT_EQ(made, (Calls{"+outer", "+inner", "-", "-"}));
}

TEST(Nvtx, SeesPartsAndOpsOfTracedStepsAlone) {
  MMFREE_NEEDS_GPU();
  SmallRun run(true, DType::bf16, Recompute::selective, 2);
  StepTrace trace(Device::cuda, "a GPU");
  const Calls made = calls_of([&] {
    for (int64_t s = 0; s < 4; ++s) s == 2 ? void(trace.of(s + 1, [&] { return run.step(s); })) : void(run.step(s));
  });
  if (!found) GTEST_SKIP() << "this NVTX knows no profiler that is linked in, or there is another one";
  // Whole ranges of the outermost level, which is the step.
  int depth = 0, deepest = 0, outer = 0;
  Calls parts;
  for (const std::string& call : made) {
    if (call == "-") {
      ASSERT_GT(depth--, 0);
      continue;
    }
    outer += ++depth == 1;
    if (depth == 2 && call.find("micro-batch") != call.npos) parts.push_back(call);
    deepest = std::max(deepest, depth);
  }
  EXPECT_EQ(0, depth);
  EXPECT_EQ(1, outer) << made.front();
  EXPECT_EQ(parts, (Calls{"+first micro-batch", "+later micro-batch"}));
  EXPECT_GE(deepest, 4) << "step, part, forward or backward, op";
  EXPECT_EQ(trace.size(), made.size() / 2);
}

}  // namespace
}  // namespace mmfree
#endif
