#if !MMFREE_CUDA
#include "core/gpu.h"

namespace mmfree::gpu {
namespace {

constexpr const char* kProblem = "this build has no GPU backend (install the CUDA toolkit and configure again)";

[[noreturn]] void absent() { throw DeviceError(concat("gpu: ", kProblem)); }

}  // namespace

struct CopyStream::Handles {};
struct Readback::Handles {};
struct SideStream::Handles {};
struct Timeline::Handles {};
struct Graph::Handles {};

int count() { return 0; }
std::string problem(int) { return kProblem; }
void use(int) { absent(); }
Info info() { absent(); }
std::string identity() { absent(); }
size_t workspace_bytes() { absent(); }
std::string attention_problem() { return kProblem; }
void profile(bool) { absent(); }
void begin_range(const char*) { absent(); }
void end_range() { absent(); }
void synchronize() { absent(); }
Arena::Source memory() { absent(); }
void copy(void*, Device, const void*, Device, size_t) { absent(); }
void zero(void*, size_t) { absent(); }
PinnedBuffer::PinnedBuffer(size_t) { absent(); }
PinnedBuffer::~PinnedBuffer() = default;
CopyStream::CopyStream() { absent(); }
CopyStream::~CopyStream() = default;
void CopyStream::start(void*, const PinnedBuffer&, size_t) { absent(); }
void CopyStream::join() { absent(); }
void CopyStream::wait() { absent(); }
Readback::Readback(size_t) : buffer_(0) {}
Readback::~Readback() = default;
void Readback::start(const void*, size_t) { absent(); }
const void* Readback::wait(const std::function<void()>&) { absent(); }
OwnStream::OwnStream() { absent(); }
OwnStream::~OwnStream() = default;
SideStream::SideStream() { absent(); }
SideStream::~SideStream() = default;
void SideStream::run(const std::function<void()>&) { absent(); }
void SideStream::join() { absent(); }
void SideStream::join_all() { absent(); }
void SideStream::follow(const SideStream&) { absent(); }
void SideStream::wait_for(size_t) { absent(); }
Timeline::Timeline() { absent(); }
Timeline::~Timeline() = default;
void Timeline::mark() { absent(); }
std::vector<double> Timeline::take() { absent(); }
Graph::Graph(const std::function<void()>&) { absent(); }
Graph::~Graph() = default;
void Graph::launch() { absent(); }

}  // namespace mmfree::gpu
#endif
