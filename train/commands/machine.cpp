#include "train/commands/machine.h"

#include <string>

#include "core/device.h"
#include "core/gpu.h"
#include "core/ops/ternary.h"
#include "core/system/console.h"
#include "core/system/machine.h"
#include "core/thread_pool.h"
#include "train/run/compute_target.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

void print_gpu() {
  const std::string problem = gpu::problem();
  if (!problem.empty()) return console::out.format("GPU         none to use: %s\n", problem.c_str());
  gpu::use();
  const gpu::Info g = gpu::info();
  console::out.format("GPU         %s, compute capability %d.%d, %s, of these %s free\n", g.name.c_str(), g.major,
                      g.minor, format_bytes(g.memory).c_str(), format_bytes(g.free).c_str());
  const std::string attention = gpu::attention_problem();
  if (!attention.empty()) console::out.format("attention   runs on slower kernels: %s\n", attention.c_str());
}

}  // namespace

void print_machine() {
  std::string sets;
  for (const std::string& name : cpu::ternary_instruction_sets()) sets += (sets.empty() ? "" : ", ") + name;
  const std::string huge = huge_pages();
  console::out.format("processor   %s\n", processor_name().c_str());
  console::out.format("threads     %d (train.threads, OMP_NUM_THREADS); idle ones sleep after %d us\n",
                      threads::limit(), threads::kSpinMicroseconds);
  console::out.format("ternary     products in 8 bits by %s, the first of: %s\n",
                      cpu::ternary_instruction_sets().front().c_str(), sets.c_str());
  console::out.format("compute     auto on the CPU is %s for backward products, f32 for all else\n",
                      fast_bf16_products() ? "bf16" : "f32");
  console::out.format("memory      %s available, huge pages: %s%s\n", format_bytes(available_host_memory()).c_str(),
                      huge.c_str(), huge == "never" ? ", so memory is asked for in vain in huge pages" : "");
  print_gpu();
  console::out.format("device      auto is %s\n", name_of(DeviceChoice{}.wants_gpu() ? Device::cuda : Device::cpu));
}

}  // namespace mmfree
