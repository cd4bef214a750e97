#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "core/cuda/driver.h"
#include "core/cuda/small_copies.h"
#include "core/ranks/gpu_peers.h"
#include "core/system/shared_file.h"

namespace mmfree::gpu {
namespace {

using cuda::check_driver;

/// A slab of another process: the allocation that it is in, and where in it.
struct Address {
  cudaIpcMemHandle_t allocation;
  uint64_t at;
};

using Mark = uint32_t;

/// The first marks of a rank are those of `meet`.
constexpr int kMeetings = 3;

/// Marks of a rank, in whole lines of the caches.
size_t marks_of_rank(int marks) { return (size_t(marks + kMeetings) + 31) / 32 * 32; }

/// Bytes from which on a piece may be read in shares: less is read faster than ranks meet.
constexpr size_t kShared = size_t(4) << 20;
/// Bytes up to which one kernel reads all pieces: copy engines would take longer to start.
constexpr size_t kSmall = size_t(1) << 20;

/// One of `count` almost equal shares, in whole cache lines.
Span share_of(const Span& piece, size_t i, size_t count) {
  const auto cut = [&](size_t k) { return k == count ? piece.bytes : piece.bytes / count * k / 128 * 128; };
  return {static_cast<char*>(piece.data) + cut(i), cut(i + 1) - cut(i)};
}

}  // namespace

struct Peers::Handles {
  int rank, device = 0;
  int callers_marks;
  size_t per_rank;                             ///< marks
  SharedPages pages;                           ///< [size, per_rank] Mark
  CUdeviceptr marks = 0;                       ///< the same on the GPU
  std::vector<Arena::Slab> slabs;              ///< of this rank
  std::vector<std::vector<const char*>> of{};  ///< [size, slabs]: where they begin; none of this rank
  std::vector<void*> opened{};                 ///< allocations
  decltype(&::cuStreamBatchMemOp) batch = MMFREE_DRIVER(cuStreamBatchMemOp);
  std::once_flag cancelled{};
  std::jthread cancelling{};

  Handles(std::vector<Arena::Slab> slabs, int rank, int size, int marks, const std::string& name)
      : rank(rank),
        callers_marks(marks),
        per_rank(marks_of_rank(marks)),
        pages(name, bytes_of_marks(size, marks)),
        slabs(std::move(slabs)) {
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
    cudaSetDevice(device);    // it may end in another thread than it began
    cudaDeviceSynchronize();  // what still waits needs the thread that cancels
    for (void* allocation : opened) cudaIpcCloseMemHandle(allocation);
    cancelling = {};
    cudaHostUnregister(pages.data());
  }

  /// number: 0 .. kMeetings − 1, or kMeetings + a mark of the callers
  CUdeviceptr mark(int of_rank, int number) const {
    return marks + (size_t(of_rank) * per_rank + size_t(number)) * sizeof(Mark);
  }
  CUstreamBatchMemOpParams writes(int number, Mark value) const {
    CUstreamBatchMemOpParams op{};
    op.writeValue = {CU_STREAM_MEM_OP_WRITE_VALUE_32, mark(rank, number), {value}, CU_STREAM_WRITE_VALUE_DEFAULT, 0};
    return op;
  }
  void add_waits(int number, std::vector<CUstreamBatchMemOpParams>& ops) const {
    for (int r = 0; r < int(of.size()); ++r) {
      if (r == rank) continue;
      CUstreamBatchMemOpParams op{};
      op.waitValue = {CU_STREAM_MEM_OP_WAIT_VALUE_32, mark(r, number), {1}, CU_STREAM_WAIT_VALUE_GEQ, 0};
      ops.push_back(op);
    }
  }
  void launch(std::vector<CUstreamBatchMemOpParams> ops) const {
    check_driver(batch(cuda::stream(), unsigned(ops.size()), ops.data(), 0), "cuStreamBatchMemOp");
  }
  /// The slab that all of this is in, or the end.
  std::vector<Arena::Slab>::const_iterator slab_of(const Span& span) const {
    const char* begin = static_cast<const char*>(span.data);
    return std::find_if(slabs.begin(), slabs.end(), [&](const Arena::Slab& slab) {
      return begin >= slab.begin && begin <= slab.begin + slab.bytes &&
             span.bytes <= size_t(slab.begin + slab.bytes - begin);
    });
  }
  /// Where another rank has that.
  const char* place(int of_rank, const Span& mine) const {
    const auto slab = slab_of(mine);
    MMFREE_CHECK(Error, slab != slabs.end() && of_rank != rank, "gpu: rank ", of_rank, " has no ", mine.bytes,
                 " bytes that this one may read");
    return of[size_t(of_rank)][size_t(slab - slabs.begin())] + (static_cast<const char*>(mine.data) - slab->begin);
  }
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

std::string Peers::addresses(const std::vector<Arena::Slab>& slabs) {
  std::string all;
  for (const Arena::Slab& slab : slabs) {
    Address address{};
    CUdeviceptr begin = 0;
    size_t bytes = 0;
    const auto at = reinterpret_cast<CUdeviceptr>(slab.begin);
    check_driver(MMFREE_DRIVER(cuMemGetAddressRange)(&begin, &bytes, at), "cuMemGetAddressRange");
    MMFREE_CUDA_CHECK(cudaIpcGetMemHandle(&address.allocation, reinterpret_cast<void*>(begin)));
    address.at = at - begin;
    all.append(reinterpret_cast<const char*>(&address), sizeof address);
  }
  return all;
}

size_t Peers::bytes_of_marks(int size, int marks) {
  constexpr size_t kPage = 4096;
  return (size_t(size) * marks_of_rank(marks) * sizeof(Mark) + kPage - 1) / kPage * kPage;
}

Peers::Peers(std::vector<Arena::Slab> slabs, const std::vector<std::string>& addresses, int rank, int marks,
             const std::string& marks_name)
    : handles_(std::make_unique<Handles>(std::move(slabs), rank, int(addresses.size()), marks, marks_name)) {
  Handles& h = *handles_;
  h.of.resize(addresses.size());
  for (size_t r = 0; r < addresses.size(); ++r) {
    if (int(r) == rank) continue;
    MMFREE_CHECK(Error, addresses[r].size() == h.slabs.size() * sizeof(Address), "gpu: addresses of ",
                 addresses[r].size(), " bytes; expected ", h.slabs.size() * sizeof(Address));
    for (size_t i = 0; i < h.slabs.size(); ++i) {
      Address address;
      std::memcpy(&address, addresses[r].data() + i * sizeof address, sizeof address);
      void* allocation = nullptr;
      MMFREE_CUDA_CHECK(cudaIpcOpenMemHandle(&allocation, address.allocation, cudaIpcMemLazyEnablePeerAccess));
      h.opened.push_back(allocation);
      h.of[r].push_back(static_cast<const char*>(allocation) + address.at);
    }
  }
}

// Nobody comes any more: what still waits on a stream would keep the process from ending.
Peers::~Peers() { cancel(); }

void Peers::tell(int mark) {
  MMFREE_CHECK(Error, mark < handles_->callers_marks, "gpu: mark ", mark, " of ", handles_->callers_marks);
  handles_->launch({handles_->writes(kMeetings + mark, 1)});
}

void Peers::await(int mark) {
  std::vector<CUstreamBatchMemOpParams> ops;
  handles_->add_waits(kMeetings + mark, ops);
  handles_->launch(std::move(ops));
}

void Peers::read(int rank, const void* mine, void* to, size_t bytes) {
  const char* from = handles_->place(rank, {const_cast<void*>(mine), bytes});
  MMFREE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda::stream()));
}

void Peers::take_back() {
  MMFREE_CUDA_CHECK(cudaMemsetAsync(reinterpret_cast<void*>(handles_->mark(handles_->rank, kMeetings)), 0,
                                    (handles_->per_rank - kMeetings) * sizeof(Mark), cuda::stream()));
}

bool Peers::reach(const Span& span) const { return handles_->slab_of(span) != handles_->slabs.end(); }

/// Behind this call all ranks have come to it. With three in turn a mark can be told again: when all have come to one
/// meeting, none waits at the one before, so that its mark is taken back; and none comes to that one again before it
/// has seen this rank at the third.
void Peers::meet(int i) {
  std::vector<CUstreamBatchMemOpParams> ops = {handles_->writes(i, 1)};
  handles_->add_waits(i, ops);
  ops.push_back(handles_->writes((i + kMeetings - 1) % kMeetings, 0));
  handles_->launch(std::move(ops));
}

/// A piece that is much larger than the others would leave its owner's way out as the only one in use. Of such a piece
/// each rank reads a share first, and then the others' shares from them.
void Peers::all_gather(const std::vector<std::vector<Span>>& lists) {
  const auto rank = size_t(handles_->rank), ranks = handles_->of.size();
  std::vector<cuda::SmallCopy> small;
  const auto take = [&](size_t from, const Span& span) {
    if (span.bytes > kSmall) return read(int(from), span.data, span.data, span.bytes);
    if (span.bytes > 0) small.push_back({span.data, handles_->place(int(from), span), span.bytes});
  };
  const auto each_piece = [&](const std::function<void(size_t of, const Span& piece, bool shared)>& run) {
    for (const std::vector<Span>& pieces : lists) {
      size_t all = 0;
      for (const Span& piece : pieces) all += piece.bytes;
      for (size_t k = 1; k < ranks; ++k) {
        const size_t of = (rank + k) % ranks;
        run(of, pieces[of], pieces[of].bytes >= kShared && pieces[of].bytes * ranks > 2 * all);
      }
    }
    cuda::make_copies(std::exchange(small, {}));
  };
  meet(0);
  each_piece(
      [&](size_t of, const Span& piece, bool shared) { take(of, shared ? share_of(piece, rank, ranks) : piece); });
  meet(1);
  each_piece([&](size_t, const Span& piece, bool shared) {
    for (size_t k = 1; k < ranks && shared; ++k) {
      const size_t from = (rank + k) % ranks;
      take(from, share_of(piece, from, ranks));
    }
  });
  meet(2);
}

/// Again and again, since marks that are taken back may still be on the streams.
void Peers::cancel() {
  std::call_once(handles_->cancelled, [h = handles_.get()] {
    const auto tell_all = [h] {
      auto* marks = static_cast<Mark*>(h->pages.data());
      for (size_t i = 0; i < h->pages.bytes() / sizeof(Mark); ++i)
        std::atomic_ref(marks[i]).store(1, std::memory_order_relaxed);
    };
    tell_all();
    h->cancelling = std::jthread([tell_all](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        tell_all();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
  });
}

}  // namespace mmfree::gpu
