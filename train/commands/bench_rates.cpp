#include "train/commands/bench_rates.h"

#include "core/system/console.h"

namespace mmfree {

void bench_rates(const std::string& device, const std::string& file) {
  MMFREE_CHECK(UsageError, !file.empty(),
               "bench: neither XDG_CACHE_HOME nor HOME is set; say where the rates go with --rates-file");
  const ComputeTarget target = choose_target(device, "auto", "--device");
  const OpRates rates = measure_rates(target, studies_of(target.device),
                                      [](const std::string& line) { console::err.print("measuring " + line + "\n"); });
  write_rates(file, rates);
  console::out.format("%s\n", rates.device.c_str());
  for (const auto& [name, samples] : rates.ops) {
    const OpSample& s = samples.back();  // the largest
    if (!(s.size.amount > 0)) continue;
    const bool pass = s.size.kind == OpWork::passes;
    console::out.format("  %-40s %10.1f %s\n", name.c_str(), s.size.amount / s.seconds / 1e9, pass ? "GB/s" : "Gop/s");
  }
  console::out.format("a step takes %.2f times its ops' seconds\n", rates.beside);
  console::out.format("wrote %s\n", file.c_str());
}

}  // namespace mmfree
