#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>

#include "core/cuda/driver.h"
#include "core/ranks/gpu_peers.h"
#include "core/system/shared_file.h"

namespace mmfree::gpu {
namespace {

using cuda::check_driver;

/// Memory of another process: the allocation that it is in, and where in it.
struct Address {
  cudaIpcMemHandle_t allocation;
  uint64_t at;
};

using Mark = uint32_t;

/// Marks of a rank, in whole lines of the caches.
size_t marks_of_rank(int marks) { return (size_t(marks) + 31) / 32 * 32; }

}  // namespace

struct Peers::Handles {
  int rank, device = 0;
  size_t per_rank;                    ///< marks
  SharedPages pages;                  ///< [size, per_rank] Mark
  CUdeviceptr marks = 0;              ///< the same on the GPU
  std::vector<const char*> memory{};  ///< of each rank; nullptr for this one
  std::vector<void*> opened{};        ///< allocations
  decltype(&::cuStreamWriteValue32) write = MMFREE_DRIVER(cuStreamWriteValue32);
  decltype(&::cuStreamWaitValue32) wait = MMFREE_DRIVER(cuStreamWaitValue32);

  Handles(int rank, int size, int marks, const std::string& name)
      : rank(rank), per_rank(marks_of_rank(marks)), pages(name, bytes_of_marks(size, marks)) {
    cuda::stream();  // the GPU is chosen
    MMFREE_CUDA_CHECK(cudaGetDevice(&device));
    MMFREE_CUDA_CHECK(cudaHostRegister(pages.data(), pages.bytes(), cudaHostRegisterMapped));
    void* on_gpu = nullptr;
    if (const cudaError_t status = cudaHostGetDevicePointer(&on_gpu, pages.data(), 0); status != cudaSuccess) {
      cudaHostUnregister(pages.data());
      cuda::check(status, "cudaHostGetDevicePointer");
    }
    this->marks = reinterpret_cast<CUdeviceptr>(on_gpu);
  }
  ~Handles() {
    cudaSetDevice(device);  // it may end in another thread than it began
    for (void* allocation : opened) cudaIpcCloseMemHandle(allocation);
    cudaHostUnregister(pages.data());
  }
  CUdeviceptr mark(int of, int number) const { return marks + (size_t(of) * per_rank + size_t(number)) * sizeof(Mark); }
};

Arena::Source Peers::memory() {
  const auto obtain = [](size_t bytes) {
    void* slab = nullptr;
    cuda::stream();
    if (cudaMalloc(&slab, bytes) == cudaSuccess) return slab;
    cudaGetLastError();
    return static_cast<void*>(nullptr);
  };
  return {Device::cuda, obtain, [](void* slab) { cudaFree(slab); }};
}

std::string Peers::address(const void* data) {
  Address address{};
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  const auto at = reinterpret_cast<CUdeviceptr>(data);
  check_driver(MMFREE_DRIVER(cuMemGetAddressRange)(&begin, &bytes, at), "cuMemGetAddressRange");
  MMFREE_CUDA_CHECK(cudaIpcGetMemHandle(&address.allocation, reinterpret_cast<void*>(begin)));
  address.at = at - begin;
  return std::string(reinterpret_cast<const char*>(&address), sizeof address);
}

size_t Peers::bytes_of_marks(int size, int marks) {
  constexpr size_t kPage = 4096;
  return (size_t(size) * marks_of_rank(marks) * sizeof(Mark) + kPage - 1) / kPage * kPage;
}

Peers::Peers(const std::vector<std::string>& addresses, int rank, int marks, const std::string& marks_name)
    : handles_(std::make_unique<Handles>(rank, int(addresses.size()), marks, marks_name)) {
  for (size_t r = 0; r < addresses.size(); ++r) {
    handles_->memory.push_back(nullptr);
    if (int(r) == rank) continue;
    Address address;
    MMFREE_CHECK(Error, addresses[r].size() == sizeof address, "gpu: an address of ", addresses[r].size(),
                 " bytes; expected ", sizeof address);
    std::memcpy(&address, addresses[r].data(), sizeof address);
    void* allocation = nullptr;
    MMFREE_CUDA_CHECK(cudaIpcOpenMemHandle(&allocation, address.allocation, cudaIpcMemLazyEnablePeerAccess));
    handles_->opened.push_back(allocation);
    handles_->memory.back() = static_cast<const char*>(allocation) + address.at;
  }
}

// Nobody comes any more: what still waits on a stream would keep the process from ending.
Peers::~Peers() { cancel(); }

void Peers::tell(int mark) {
  check_driver(handles_->write(cuda::stream(), handles_->mark(handles_->rank, mark), 1, CU_STREAM_WRITE_VALUE_DEFAULT),
               "cuStreamWriteValue32");
}

void Peers::await(int mark) {
  for (int r = 0; r < int(handles_->memory.size()); ++r)
    if (r != handles_->rank)
      check_driver(handles_->wait(cuda::stream(), handles_->mark(r, mark), 1, CU_STREAM_WAIT_VALUE_GEQ),
                   "cuStreamWaitValue32");
}

void Peers::read(int rank, size_t at, void* to, size_t bytes) {
  const char* from = handles_->memory[size_t(rank)];
  MMFREE_CHECK(Error, from, "gpu: rank ", rank, " reads its own memory");
  MMFREE_CUDA_CHECK(cudaMemcpyAsync(to, from + at, bytes, cudaMemcpyDeviceToDevice, cuda::stream()));
}

void Peers::take_back() {
  MMFREE_CUDA_CHECK(cudaMemsetAsync(reinterpret_cast<void*>(handles_->mark(handles_->rank, 0)), 0,
                                    handles_->per_rank * sizeof(Mark), cuda::stream()));
}

void Peers::cancel() {
  auto* marks = static_cast<Mark*>(handles_->pages.data());
  for (size_t i = 0; i < handles_->pages.bytes() / sizeof(Mark); ++i)
    std::atomic_ref(marks[i]).store(1, std::memory_order_relaxed);
}

}  // namespace mmfree::gpu
