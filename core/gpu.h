#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/arena.h"

/// The GPU as the rest of the program sees it. Present in every build: without the CUDA backend `problem` says so and
/// everything else throws DeviceError.
namespace mmfree::gpu {

/// Why GPU `index` cannot be used, in one line; empty if it can.
std::string problem(int index = 0);

/// Makes GPU `index` the one of this process; call before any tensor is made on Device::cuda. Later calls with the same
/// index do nothing. @throws DeviceError with what `problem` says
void use(int index = 0);

/// Properties of the GPU in use.
struct Info {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  size_t memory = 0, free = 0;  ///< bytes
  double bf16_rate = 0;         ///< dense bf16 flop/s by the vendor's data sheet; 0: unknown
};
Info info();

/// What copy_bytes and zero_bytes do where a GPU is involved.
void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
void zero(void* to, size_t bytes);

/// Bytes of device memory that belong to no arena: the workspace of the matrix products.
size_t workspace_bytes();

/// Tells a profiler that was started with `--profile-from-start off` where to begin and to end.
void profile(bool on);

/// Waits for everything that was launched; a fault of any kernel surfaces here. @throws DeviceError
void synchronize();

/// Device memory as an arena takes it: one range of addresses that grows at its end, so that tensors of any size can
/// share it without gaps between slabs.
Arena::Source memory();

/// Page-locked host memory, which copies run from at full speed and without waiting.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Copies from page-locked memory that run beside the compute stream.
class CopyStream {
 public:
  CopyStream();
  ~CopyStream();
  CopyStream(const CopyStream&) = delete;
  /// Starts a copy to the device, after everything that the compute stream was given so far.
  void start(void* to, const PinnedBuffer& from, size_t bytes);
  /// Makes later work of the compute stream wait for the copies started so far, without stopping the host.
  void join();
  /// Waits on the host for the copies started so far.
  void wait();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

/// Bytes on their way from the device to the host, behind the work that the compute stream was given so far.
class Readback {
 public:
  explicit Readback(size_t bytes);
  ~Readback();
  Readback(const Readback&) = delete;
  void start(const void* from, size_t bytes);
  /// Waits for them. While they are not there, calls `meanwhile` about 20,000 times a second, if given: a kernel that
  /// hangs never fails by itself, so whoever looks for signals, lost peers or a time-out does it there. `meanwhile` may
  /// throw if the work before the copy ends all the same (an aborted exchange); else it has to end the process, because
  /// destructors wait for the device.
  /// @throws DeviceError if anything before the copy failed; what `meanwhile` throws
  const void* wait(const std::function<void()>& meanwhile = {});

 private:
  struct Handles;
  PinnedBuffer buffer_;
  std::unique_ptr<Handles> handles_;
};

/// While alive, copies of this thread use a stream of their own: they neither wait for the compute stream nor hold it
/// up. What they read must not be written meanwhile.
class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
};

/// A recorded sequence of kernels, launched as one.
class Graph {
 public:
  /// Runs `work` once without executing it and keeps what it launches on the compute stream. The memory it used must
  /// stay as it was: tensors it allocated and freed may be reused between launches, never held across one.
  /// @throws DeviceError if `work` does something that cannot be recorded
  explicit Graph(const std::function<void()>& work);
  ~Graph();
  Graph(const Graph&) = delete;
  void launch();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace mmfree::gpu
