#include "core/gpu.h"

#include <cuda_profiler_api.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#endif

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "core/cuda/blas.h"
#include "core/cuda/context.h"
#include "core/cuda/driver.h"

namespace mmfree {
namespace cuda {
namespace {

/// The state of the one GPU of this process. Never destroyed: the driver may shut down before static objects are
/// destroyed.
struct Context {
  int device = 0;
  cudaDeviceProp properties{};
  cudaStream_t stream = nullptr;
  void* blas = nullptr;
  void* workspace = nullptr;
};

Context* made = nullptr;
thread_local cudaStream_t side_stream = nullptr;  ///< in place of the compute stream, see gpu::SideStream

Context& context() {
  if (!made) gpu::use(0);
  return *made;
}

const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "; reduce train.micro_batch_size, data.seq_len or the model, or set train.recompute=full";
    case cudaErrorNoKernelImageForDevice:
      return "; this build has no code for this GPU's architecture: build with -DCMAKE_CUDA_ARCHITECTURES=native";
    case cudaErrorECCUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
      return "; the GPU is lost to this process: run again with --resume, on another GPU if it happens again";
    default:
      return "";
  }
}

}  // namespace

cudaStream_t stream() { return side_stream ? side_stream : context().stream; }
void* blas() { return context().blas; }
void* workspace() { return context().workspace; }
int multiprocessors() { return context().properties.multiProcessorCount; }
size_t shared_memory() { return context().properties.sharedMemPerBlockOptin; }
bool is_hopper() { return context().properties.major == 9 && context().properties.minor == 0; }

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a refused call must not be reported again by the next check
  throw DeviceError(
      concat("gpu: ", what, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")", advice(status)));
}

void check_launch(const char* op) {
  check(cudaGetLastError(), op);
  static const bool sync = [] {
    const char* v = std::getenv("MMFREE_SYNC");
    return v && *v == '1';
  }();
  if (sync) check(cudaStreamSynchronize(stream()), op);
}

}  // namespace cuda

namespace gpu {
namespace {

using cuda::check;
using cuda::check_driver;

/// The driver's functions for mapping memory. All are looked up first, so that none is missing after the first call.
struct MemoryDriver {
  decltype(&::cuMemGetAllocationGranularity) granularity = MMFREE_DRIVER(cuMemGetAllocationGranularity);
  decltype(&::cuMemAddressReserve) reserve = MMFREE_DRIVER(cuMemAddressReserve);
  decltype(&::cuMemAddressFree) give_back = MMFREE_DRIVER(cuMemAddressFree);
  decltype(&::cuMemCreate) create = MMFREE_DRIVER(cuMemCreate);
  decltype(&::cuMemRelease) release = MMFREE_DRIVER(cuMemRelease);
  decltype(&::cuMemMap) map = MMFREE_DRIVER(cuMemMap);
  decltype(&::cuMemUnmap) unmap = MMFREE_DRIVER(cuMemUnmap);
  decltype(&::cuMemSetAccess) set_access = MMFREE_DRIVER(cuMemSetAccess);
};

/// One range of addresses, as large as the GPU's memory. Memory is mapped to it from the front, when it is needed.
class GrowingRange {
 public:
  explicit GrowingRange(int device) {
    location_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    location_.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
    size_t unit = 0, free = 0, total = 0;
    check_driver(driver_.granularity(&unit, &location_, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                 "cuMemGetAllocationGranularity");
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    size_ = (total + unit - 1) / unit * unit;
    check_driver(driver_.reserve(&begin_, size_, 0, 0, 0), "cuMemAddressReserve");
  }
  ~GrowingRange() {
    CUdeviceptr at = begin_;
    for (const size_t bytes : pieces_) {
      driver_.unmap(at, bytes);
      at += bytes;
    }
    driver_.give_back(begin_, size_);
  }
  GrowingRange(const GrowingRange&) = delete;

  /// nullptr when the GPU has no more.
  void* grow(size_t bytes) {
    if (used_ + bytes > size_) return nullptr;
    pieces_.reserve(pieces_.size() + 1);  // the push_back after the mapping must not throw
    CUmemGenericAllocationHandle memory = 0;
    if (driver_.create(&memory, bytes, &location_, 0) != CUDA_SUCCESS) return nullptr;
    const CUdeviceptr at = begin_ + used_;
    const CUresult mapped = driver_.map(at, bytes, 0, memory, 0);
    driver_.release(memory);  // the mapping keeps the memory; if it failed, this frees it
    check_driver(mapped, "cuMemMap");
    const CUmemAccessDesc access{location_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const CUresult opened = driver_.set_access(at, bytes, &access, 1);
    if (opened != CUDA_SUCCESS) driver_.unmap(at, bytes);
    check_driver(opened, "cuMemSetAccess");
    pieces_.push_back(bytes);
    used_ += bytes;
    return reinterpret_cast<void*>(at);
  }

 private:
  const MemoryDriver driver_;
  CUmemAllocationProp location_{};
  CUdeviceptr begin_ = 0;
  size_t size_ = 0, used_ = 0;
  std::vector<size_t> pieces_;  ///< bytes of each mapping, from the front
};

/// Dense bf16 flop/s of one multiprocessor and clock, by architecture (NVIDIA's white papers).
double flops_per_clock(int major, int minor) {
  if (major == 8) return minor == 0 ? 2048 : 1024;
  if (major == 9) return 4096;
  if (major == 10) return 8192;
  return 0;
}

thread_local cudaStream_t own_stream = nullptr;

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(cuda::stream(), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

int count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
  cudaGetLastError();
  return 0;
}

std::string problem(int index) {
  int count = 0, driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return "gpu: no NVIDIA driver is installed on this machine";
  }
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    cudaGetLastError();
    return concat("gpu: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), "); the driver supports CUDA ",
                  driver / 1000, '.', driver % 1000 / 10, ", this build needs ", CUDART_VERSION / 1000, '.',
                  CUDART_VERSION % 1000 / 10);
  }
  if (index >= count)
    return concat("gpu: there is no cuda:", index, "; this machine shows ", count, count == 1 ? " GPU" : " GPUs");
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (major < 8)
    return concat("gpu: cuda:", index, " has compute capability ", major, '.', minor, "; 8.0 or newer is needed");
  return cuda::blas_library().problem;
}

void use(int index) {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (cuda::made) {
    MMFREE_CHECK(DeviceError, cuda::made->device == index, "gpu: this process already uses cuda:", cuda::made->device);
    return;
  }
  const std::string why_not = problem(index);
  MMFREE_CHECK(DeviceError, why_not.empty(), why_not);
  auto c = std::make_unique<cuda::Context>();
  c->device = index;
  check(cudaSetDevice(index), "cudaSetDevice");
  check(cudaGetDeviceProperties(&c->properties, index), "cudaGetDeviceProperties");
  check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  MMFREE_CHECK(DeviceError,
               cuda::blas_library().create(reinterpret_cast<cublasLtHandle_t*>(&c->blas)) == CUBLAS_STATUS_SUCCESS,
               "gpu: cuBLASLt cannot start");
  check(cudaMalloc(&c->workspace, cuda::kWorkspaceBytes), "cudaMalloc");
  cuda::made = c.release();
}

Info info() {
  const cudaDeviceProp& p = cuda::context().properties;
  int clock_khz = 0;
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, cuda::context().device);
  Info i{p.name, p.major, p.minor, p.multiProcessorCount, p.totalGlobalMem, 0, 0};
  size_t total = 0;
  check(cudaMemGetInfo(&i.free, &total), "cudaMemGetInfo");
  // Hopper's and Blackwell's sheets quote the tensor cores at a boost clock below the maximum that the driver reports.
  const double clock = std::min(1e3 * clock_khz, p.major == 9 ? 1.83e9 : 1e12);
  i.bf16_rate = flops_per_clock(p.major, p.minor) * p.multiProcessorCount * clock;
  return i;
}

std::string identity() {
  std::string text = "GPU-";
  for (const char byte : cuda::context().properties.uuid.bytes)
    for (const int half : {byte >> 4 & 15, byte & 15}) text += "0123456789abcdef"[half];
  return text;
}

size_t workspace_bytes() { return cuda::kWorkspaceBytes; }

void profile(bool on) { on ? cudaProfilerStart() : cudaProfilerStop(); }

// Not every installation of the toolkit has NVTX.
#if __has_include(<nvtx3/nvToolsExt.h>)
void begin_range(const char* name) { nvtxRangePushA(name); }
void end_range() { nvtxRangePop(); }
#else
void begin_range(const char*) {}
void end_range() {}
#endif

void synchronize() { check(cudaStreamSynchronize(cuda::stream()), "a kernel"); }

Arena::Source memory() {
  auto range = std::make_shared<GrowingRange>(cuda::context().device);
  return {Device::cuda, [range](size_t bytes) { return range->grow(bytes); }, [](void*) {}, true};
}

void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  const bool within = to_device == Device::cuda && from_device == Device::cuda;
  const cudaStream_t stream = own_stream ? own_stream : cuda::stream();
  MMFREE_CHECK(DeviceError, within || own_stream || !capturing(),
               "gpu: a copy between host and device inside a captured step");
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  if (!within) check(cudaStreamSynchronize(stream), "a copy between host and device");
}

void zero(void* to, size_t bytes) { check(cudaMemsetAsync(to, 0, bytes, cuda::stream()), "cudaMemsetAsync"); }

PinnedBuffer::PinnedBuffer(size_t bytes) : bytes_(bytes) {
  cuda::context();
  check(cudaMallocHost(&data_, std::max<size_t>(bytes, 1)), "cudaMallocHost");
}
PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

struct CopyStream::Handles {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
};

CopyStream::CopyStream() : handles_(std::make_unique<Handles>()) {
  cuda::context();
  check(cudaStreamCreateWithFlags(&handles_->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  for (cudaEvent_t* e : {&handles_->begin, &handles_->end})
    check(cudaEventCreateWithFlags(e, cudaEventDisableTiming), "cudaEventCreate");
}
CopyStream::~CopyStream() {
  cudaStreamSynchronize(handles_->stream);
  cudaEventDestroy(handles_->begin);
  cudaEventDestroy(handles_->end);
  cudaStreamDestroy(handles_->stream);
}
void CopyStream::start(void* to, const PinnedBuffer& from, size_t bytes) {
  MMFREE_CHECK(Error, bytes <= from.bytes(), "copy: ", bytes, " bytes from a buffer of ", from.bytes());
  check(cudaEventRecord(handles_->begin, cuda::stream()), "cudaEventRecord");
  check(cudaStreamWaitEvent(handles_->stream, handles_->begin), "cudaStreamWaitEvent");
  check(cudaMemcpyAsync(to, from.data(), bytes, cudaMemcpyHostToDevice, handles_->stream), "cudaMemcpyAsync");
  check(cudaEventRecord(handles_->end, handles_->stream), "cudaEventRecord");
}
void CopyStream::join() { check(cudaStreamWaitEvent(cuda::stream(), handles_->end), "cudaStreamWaitEvent"); }
void CopyStream::wait() { check(cudaStreamSynchronize(handles_->stream), "a copy to the device"); }

struct Readback::Handles {
  cudaEvent_t arrived = nullptr;
};

/// A wait polls without a pause for kSpin, because most results arrive soon; then it sleeps for kPoll between queries.
constexpr std::chrono::microseconds kSpin(100), kPoll(50);

Readback::Readback(size_t bytes) : buffer_(bytes), handles_(std::make_unique<Handles>()) {
  check(cudaEventCreateWithFlags(&handles_->arrived, cudaEventDisableTiming), "cudaEventCreate");
}
Readback::~Readback() { cudaEventDestroy(handles_->arrived); }
void Readback::start(const void* from, size_t bytes) {
  MMFREE_CHECK(Error, bytes <= buffer_.bytes(), "readback: ", bytes, " bytes into a buffer of ", buffer_.bytes());
  check(cudaMemcpyAsync(buffer_.data(), from, bytes, cudaMemcpyDeviceToHost, cuda::stream()), "cudaMemcpyAsync");
  check(cudaEventRecord(handles_->arrived, cuda::stream()), "cudaEventRecord");
}
const void* Readback::wait(const std::function<void()>& meanwhile) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  cudaError_t status;
  while ((status = cudaEventQuery(handles_->arrived)) == cudaErrorNotReady) {
    cudaGetLastError();  // "not ready" must not be reported by the next check
    if (Clock::now() - begin < kSpin) continue;
    if (meanwhile) meanwhile();
    std::this_thread::sleep_for(kPoll);
  }
  if (meanwhile) meanwhile();
  check(status, "a training step");
  return buffer_.data();
}

OwnStream::OwnStream() {
  cuda::context();
  MMFREE_CHECK(Error, !own_stream, "gpu: a thread can have one stream of its own");
  check(cudaSetDevice(cuda::context().device), "cudaSetDevice");
  check(cudaStreamCreateWithFlags(&own_stream, cudaStreamNonBlocking), "cudaStreamCreate");
}
OwnStream::~OwnStream() {
  cudaStreamDestroy(own_stream);
  own_stream = nullptr;
}

/// An event of each run, in turn: a join takes the oldest.
struct SideStream::Handles {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr;
  std::vector<cudaEvent_t> ends;
  size_t begun = 0, joined = 0;
  void* word = nullptr;  ///< two ints, one for each stream
};

/// Its kernels go first where a multiprocessor has room for one: exchanges are short, and others wait for them.
SideStream::SideStream() : handles_(std::make_unique<Handles>()) {
  cuda::context();
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&handles_->stream, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
  check(cudaEventCreateWithFlags(&handles_->begin, cudaEventDisableTiming), "cudaEventCreate");
  check(cudaMalloc(&handles_->word, 2 * sizeof(int)), "cudaMalloc");
}
SideStream::~SideStream() {
  cudaEventDestroy(handles_->begin);
  for (const cudaEvent_t e : handles_->ends) cudaEventDestroy(e);
  cudaStreamDestroy(handles_->stream);
  cudaFree(handles_->word);
}
void SideStream::run(const std::function<void()>& work) {
  Handles& h = *handles_;
  MMFREE_CHECK(Error, !cuda::side_stream, "gpu: work on a side stream inside such work");
  if (h.joined == h.begun) h.joined = h.begun = 0;
  if (h.begun == h.ends.size())
    check(cudaEventCreateWithFlags(&h.ends.emplace_back(), cudaEventDisableTiming), "cudaEventCreate");
  check(cudaEventRecord(h.begin, cuda::stream()), "cudaEventRecord");
  check(cudaStreamWaitEvent(h.stream, h.begin), "cudaStreamWaitEvent");
  {
    const std::unique_ptr<cudaStream_t, void (*)(cudaStream_t*)> back(&cuda::side_stream,
                                                                      [](cudaStream_t* s) { *s = nullptr; });
    cuda::side_stream = h.stream;
    // A launch that overlaps the one before it (launch.cuh) knows only one: this, which waits for both streams.
    check(cudaMemsetAsync(h.word, 0, sizeof(int), h.stream), "cudaMemsetAsync");
    work();
  }
  check(cudaEventRecord(h.ends[h.begun++], h.stream), "cudaEventRecord");
}
void SideStream::join() {
  Handles& h = *handles_;
  MMFREE_CHECK(Error, h.joined < h.begun, "gpu: a join without work on the side stream");
  wait_for(h.joined++);
}
void SideStream::join_all() {
  Handles& h = *handles_;
  if (h.joined < h.begun) wait_for(h.begun - 1);
  h.joined = h.begun;
}
void SideStream::follow(const SideStream& other) {
  const Handles& o = *other.handles_;
  if (o.begun > 0) check(cudaStreamWaitEvent(handles_->stream, o.ends[o.begun - 1]), "cudaStreamWaitEvent");
}
void SideStream::wait_for(size_t run) {
  const Handles& h = *handles_;
  check(cudaStreamWaitEvent(cuda::stream(), h.ends[run]), "cudaStreamWaitEvent");
  check(cudaMemsetAsync(static_cast<char*>(h.word) + sizeof(int), 0, sizeof(int), cuda::stream()), "cudaMemsetAsync");
}

/// Events are made once and used again by later takes.
struct Timeline::Handles {
  std::vector<cudaEvent_t> events;
  size_t marked = 0;
  ~Handles() {
    for (const cudaEvent_t e : events) cudaEventDestroy(e);
  }
};

Timeline::Timeline() : handles_(std::make_unique<Handles>()) { cuda::context(); }
Timeline::~Timeline() = default;
void Timeline::mark() {
  Handles& h = *handles_;
  if (h.marked == h.events.size()) check(cudaEventCreate(&h.events.emplace_back()), "cudaEventCreate");
  check(cudaEventRecord(h.events[h.marked++], cuda::stream()), "cudaEventRecord");
}
std::vector<double> Timeline::take() {
  Handles& h = *handles_;
  std::vector<double> seconds;
  synchronize();
  for (size_t i = 0; i < h.marked; ++i) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, h.events[0], h.events[i]), "cudaEventElapsedTime");
    seconds.push_back(double(milliseconds) * 1e-3);
  }
  h.marked = 0;
  return seconds;
}

struct Graph::Handles {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ~Handles() {
    if (executable) cudaGraphExecDestroy(executable);
    if (graph) cudaGraphDestroy(graph);
  }
};

Graph::Graph(const std::function<void()>& work) : handles_(std::make_unique<Handles>()) {
  check(cudaStreamBeginCapture(cuda::stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(cuda::stream(), &handles_->graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(cuda::stream(), &handles_->graph), "cudaStreamEndCapture");
  // Without the flag the side stream's kernels would wait until those of the compute stream leave room.
  check(cudaGraphInstantiate(&handles_->executable, handles_->graph, cudaGraphInstantiateFlagUseNodePriority),
        "cudaGraphInstantiate");
}
Graph::~Graph() = default;
void Graph::launch() { check(cudaGraphLaunch(handles_->executable, cuda::stream()), "cudaGraphLaunch"); }

}  // namespace gpu
}  // namespace mmfree
