#if !MMFREE_CUDA
#include "core/error.h"
#include "core/gpu.h"
#include "core/ranks/gpu_links.h"
#include "core/ranks/gpu_peers.h"

namespace mmfree::gpu {
namespace {

[[noreturn]] void absent() { throw DeviceError(problem()); }

}  // namespace

struct Links::Handles {};

std::string Links::problem() { return gpu::problem(); }
std::string Links::new_id() { absent(); }
Links::Links(const std::string&, int, int, int) { absent(); }
Links::~Links() = default;
void Links::exchange(const std::vector<Outgoing>&, const std::vector<Incoming>&) { absent(); }
void Links::all_gather(const std::vector<std::vector<Span>>&) { absent(); }
std::string Links::failure() const { absent(); }
void Links::cancel() { absent(); }

struct Peers::Handles {};

Arena::Source Peers::memory() { absent(); }
std::string Peers::addresses(const std::vector<Arena::Slab>&) { absent(); }
size_t Peers::bytes_of_marks(int, int) { absent(); }
Peers::Peers(std::vector<Arena::Slab>, const std::vector<std::string>&, int, int, const std::string&) { absent(); }
Peers::~Peers() = default;
void Peers::tell(int) { absent(); }
void Peers::await(int) { absent(); }
void Peers::read(int, const void*, void*, size_t) { absent(); }
void Peers::take_back() { absent(); }
bool Peers::reach(const Span&) const { absent(); }
void Peers::all_gather(const std::vector<std::vector<Span>>&) { absent(); }
void Peers::cancel() { absent(); }

}  // namespace mmfree::gpu
#endif
