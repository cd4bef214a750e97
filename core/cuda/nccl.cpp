#include "core/cuda/nccl.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>

#include "core/cuda/context.h"
#include "core/cuda/library.h"
#include "core/error.h"
#include "core/ranks/gpu_links.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

static_assert(sizeof(ncclUniqueId) == sizeof(mmfree::cuda::NcclId));
static_assert(std::is_same_v<ncclComm_t, ::ncclComm*>);
static_assert(int(ncclSuccess) == mmfree::cuda::kNcclSuccess && int(ncclInProgress) == mmfree::cuda::kNcclInProgress);
static_assert(int(ncclUint8) == mmfree::cuda::kNcclBytes && sizeof(ncclResult_t) == sizeof(int));
static_assert(std::is_same_v<decltype(&::ncclSend),
                             ncclResult_t (*)(const void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&::ncclBroadcast), ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t,
                                                                          int, ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&::ncclCommInitRank), ncclResult_t (*)(ncclComm_t*, int, ncclUniqueId, int)>);
#endif

namespace mmfree {
namespace cuda {
namespace {

constexpr int kOldest = 20700;  ///< 2.7: the first with sends; later versions count as major · 10000

Nccl open_nccl() {
  Nccl n{};
  void* library = open_library("libnccl.so.2");
  if (!library) {
    n.problem = concat("NCCL: libnccl.so.2 was not found; install it, for example `pip install nvidia-nccl-cu",
                       CUDART_VERSION / 1000, "`, or name its folder in LD_LIBRARY_PATH");
    return n;
  }
  const auto find = [&](auto& function, const char* name, bool needed = true) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function && needed) n.problem = concat("NCCL: this libnccl has no ", name, "; version 2.7 or newer is needed");
  };
  find(n.get_version, "ncclGetVersion");
  find(n.get_unique_id, "ncclGetUniqueId");
  find(n.comm_init_rank, "ncclCommInitRank");
  find(n.comm_abort, "ncclCommAbort");
  find(n.comm_get_async_error, "ncclCommGetAsyncError");
  find(n.get_error_string, "ncclGetErrorString");
  find(n.get_last_error, "ncclGetLastError", false);
  find(n.group_start, "ncclGroupStart");
  find(n.group_end, "ncclGroupEnd");
  find(n.send, "ncclSend");
  find(n.recv, "ncclRecv");
  find(n.all_gather, "ncclAllGather");
  find(n.broadcast, "ncclBroadcast");
  int version = 0;
  if (n.problem.empty() && (n.get_version(&version) != kNcclSuccess || (version >= 10000 && version < kOldest)))
    n.problem = concat("NCCL: version ", version, " is too old; 2.7 or newer is needed");
  return n;
}

}  // namespace

const Nccl& nccl_library() {
  static const Nccl library = open_nccl();
  return library;
}

}  // namespace cuda

namespace gpu {
namespace {

using cuda::kNcclBytes;
using cuda::nccl_library;
using cuda::NcclComm;
using cuda::NcclId;

std::string reason_of(int status, NcclComm comm) {
  const cuda::Nccl& n = nccl_library();
  std::string text = n.get_error_string(status);
  const char* last = n.get_last_error ? n.get_last_error(comm) : nullptr;
  if (last && *last) text += concat(": ", last);
  for (char& c : text)
    if (c == '\n') c = ' ';
  while (text.ends_with(' ')) text.pop_back();
  return text;
}

void check_nccl(int status, const char* what, NcclComm comm) {
  if (status == cuda::kNcclSuccess) return;
  throw DeviceError(concat("NCCL: ", what, ": ", reason_of(status, comm), "; NCCL_DEBUG=INFO tells more"));
}

/// Connecting is a call that waits for all ranks: it has a thread of its own, which is left behind if they do not come.
struct Connecting {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  int status = 0;
  NcclComm comm = nullptr;
};

NcclComm connect(const NcclId& id, int rank, int size, int seconds) {
  const auto state = std::make_shared<Connecting>();
  int device = 0;
  cuda::stream();  // the GPU is chosen
  MMFREE_CUDA_CHECK(cudaGetDevice(&device));
  std::thread([state, id, rank, size, device] {
    NcclComm comm = nullptr;
    int status = cudaSetDevice(device) == cudaSuccess ? 0 : 1;
    if (status == 0) status = nccl_library().comm_init_rank(&comm, size, id, rank);
    const std::lock_guard lock(state->mutex);
    state->status = status;
    state->comm = comm;
    state->done = true;
    state->changed.notify_all();
  }).detach();
  std::unique_lock lock(state->mutex);
  const bool in_time = state->changed.wait_for(lock, std::chrono::seconds(seconds), [&] { return state->done; });
  MMFREE_CHECK(DeviceError, in_time, "NCCL: the ranks' GPUs are not connected after ", seconds,
               " s; NCCL_DEBUG=INFO tells more");
  check_nccl(state->status, "connecting the ranks' GPUs", nullptr);
  return state->comm;
}

/// What is called between a start and its end becomes one operation.
template <class Calls>
void grouped(NcclComm comm, const char* what, Calls&& calls) {
  const cuda::Nccl& n = nccl_library();
  check_nccl(n.group_start(), what, comm);
  const int inner = calls(n);
  const int outer = n.group_end();
  check_nccl(inner ? inner : outer, what, comm);
}

}  // namespace

struct Links::Handles {
  NcclComm comm = nullptr;
  int rank = 0, size = 0;
  std::atomic<bool> gone = false;  ///< cancelled
  mutable std::mutex mutex;        ///< failure and cancel

  NcclComm get() const {
    MMFREE_CHECK(DeviceError, !gone, "NCCL: the exchanges of the ranks were cancelled");
    return comm;
  }
};

std::string Links::problem() { return nccl_library().problem; }

std::string Links::new_id() {
  NcclId id = {};
  check_nccl(nccl_library().get_unique_id(&id), "a new id", nullptr);
  return std::string(id.bytes, sizeof id.bytes);
}

Links::Links(const std::string& id, int rank, int size, int seconds) : handles_(std::make_unique<Handles>()) {
  NcclId raw = {};
  MMFREE_CHECK(Error, id.size() == sizeof raw.bytes, "NCCL: an id of ", id.size(), " bytes; expected 128");
  id.copy(raw.bytes, sizeof raw.bytes);
  handles_->rank = rank;
  handles_->size = size;
  handles_->comm = connect(raw, rank, size, seconds);
}

// A communicator that is destroyed waits for the others; one that is aborted does not.
Links::~Links() { cancel(); }

void Links::exchange(const std::vector<Outgoing>& out, const std::vector<Incoming>& in) {
  if (out.empty() && in.empty()) return;
  const NcclComm comm = handles_->get();
  grouped(comm, "an exchange", [&](const cuda::Nccl& n) {
    int status = 0;
    for (const Outgoing& p : out)
      if (!status) status = n.send(p.data, p.bytes, kNcclBytes, p.to, comm, cuda::stream());
    for (const Incoming& p : in)
      if (!status) status = n.recv(p.data, p.bytes, kNcclBytes, p.from, comm, cuda::stream());
    return status;
  });
}

void Links::all_gather(const std::vector<std::vector<Span>>& lists) {
  const NcclComm comm = handles_->get();
  const auto rank = size_t(handles_->rank);
  // Pieces of one size that lie in a row have a call of their own, which is faster.
  const auto in_a_row = [](const std::vector<Span>& pieces) {
    const auto* begin = static_cast<const char*>(pieces[0].data);
    return std::all_of(pieces.begin(), pieces.end(), [&](const Span& p) {
      return p.bytes == pieces[0].bytes && p.data == begin + size_t(&p - pieces.data()) * p.bytes;
    });
  };
  const auto is_empty = [](const Span& p) { return p.bytes == 0; };
  grouped(comm, "all_gather", [&](const cuda::Nccl& n) {
    int status = 0;
    for (const std::vector<Span>& pieces : lists) {
      if (std::all_of(pieces.begin(), pieces.end(), is_empty)) continue;
      if (in_a_row(pieces)) {
        if (!status)
          status = n.all_gather(pieces[rank].data, pieces[0].data, pieces[0].bytes, kNcclBytes, comm, cuda::stream());
        continue;
      }
      for (size_t r = 0; r < pieces.size(); ++r)
        if (const auto& [data, bytes] = pieces[r]; !status && bytes > 0)
          status = n.broadcast(data, data, bytes, kNcclBytes, int(r), comm, cuda::stream());
    }
    return status;
  });
}

std::string Links::failure() const {
  const std::lock_guard lock(handles_->mutex);
  if (handles_->gone) return "";
  int status = 0;
  const int asked = nccl_library().comm_get_async_error(handles_->comm, &status);
  if (asked) status = asked;
  if (status == cuda::kNcclSuccess || status == cuda::kNcclInProgress) return "";
  return concat("NCCL: ", reason_of(status, handles_->comm));
}

void Links::cancel() {
  const std::lock_guard lock(handles_->mutex);
  if (handles_->gone.exchange(true) || !handles_->comm) return;
  nccl_library().comm_abort(handles_->comm);
}

}  // namespace gpu
}  // namespace mmfree
