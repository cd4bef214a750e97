#if !MMFREE_CUDA
#include "core/error.h"
#include "core/gpu.h"
#include "core/ranks/gpu_links.h"

namespace mmfree::gpu {
namespace {

[[noreturn]] void absent() { throw DeviceError(problem()); }

}  // namespace

struct Links::Handles {};

std::string Links::problem() { return gpu::problem(); }
std::string Links::new_id() { absent(); }
std::optional<Arena::Source> Links::memory() { absent(); }
Links::Links(const std::string&, int, int, int) { absent(); }
Links::~Links() = default;
void Links::exchange(const std::vector<Outgoing>&, const std::vector<Incoming>&) { absent(); }
void Links::all_gather(void*, size_t) { absent(); }
void Links::all_gather(const std::vector<Span>&) { absent(); }
std::string Links::failure() const { absent(); }
void Links::cancel() { absent(); }

}  // namespace mmfree::gpu
#endif
