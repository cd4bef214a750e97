#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"

/// The interface to the GPU for all code outside core/cuda. It exists in every build: without the CUDA backend
/// `problem` says so, and every other function throws DeviceError.
namespace mmfree::gpu {

/// Number of GPUs that this process sees; 0 without a driver.
int count();

/// Why GPU `index` cannot be used, in one line; empty if it can.
std::string problem(int index = 0);

/// Selects GPU `index` for this process; call it before the first tensor on Device::cuda. Later calls with the same
/// index do nothing. @throws DeviceError with the text of `problem`, or if another GPU is in use
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
/// What no other GPU of the world is called: its UUID.
std::string identity();

/// The GPU's part of copy_bytes and zero_bytes (core/device.h).
void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
void zero(void* to, size_t bytes);

/// Bytes of device memory that belong to no arena: the workspace of the matrix products.
size_t workspace_bytes();

/// Why attention does not use cuDNN, in one line: the library cannot be used, or had no plan for the last case that it
/// should do. Empty if it is used. The plain kernels do what cuDNN does not.
std::string attention_problem();

/// Starts (`on`) or stops recording in a profiler that was started with `--profile-from-start off`.
void profile(bool on);
/// Opens a range of NVTX in this thread, which profilers show beside the kernels launched in it, and closes the newest.
void begin_range(const char* name);
void end_range();

/// Waits for the compute stream. @throws DeviceError if a kernel failed
void synchronize();

/// Device memory as a contiguous Arena::Source: one range of addresses that grows at its end, so that slabs have no
/// gaps between them.
Arena::Source memory();

/// Page-locked host memory: copies from it run at full speed and asynchronously.
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

/// A stream for copies from page-locked memory, concurrent with the compute stream.
class CopyStream {
 public:
  CopyStream();
  ~CopyStream();
  CopyStream(const CopyStream&) = delete;
  /// Starts a copy to the device. It runs after all work launched so far on the compute stream.
  void start(void* to, const PinnedBuffer& from, size_t bytes);
  /// Makes later work on the compute stream wait for the copies started so far. The host does not wait.
  void join();
  /// The host waits for the copies started so far.
  void wait();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

/// An asynchronous copy from the device to the host, after all work launched so far on the compute stream.
class Readback {
 public:
  explicit Readback(size_t bytes);
  ~Readback();
  Readback(const Readback&) = delete;
  void start(const void* from, size_t bytes);
  /// Waits for the copy and returns the bytes. While it waits it calls `meanwhile`, if given, about 20,000 times a
  /// second: a kernel that hangs never returns an error, so `meanwhile` checks for signals, lost peers or a time-out.
  /// It may throw only if the work before the copy ends nevertheless (an aborted exchange). Otherwise it must end the
  /// process, because destructors wait for the device.
  /// @throws DeviceError if anything before the copy failed; what `meanwhile` throws
  const void* wait(const std::function<void()>& meanwhile = {});

 private:
  struct Handles;
  PinnedBuffer buffer_;
  std::unique_ptr<Handles> handles_;
};

/// While alive, copies of this thread use a stream of their own: neither they nor the compute stream wait for the
/// other. The caller makes sure that no kernel writes what they read.
class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
};

/// A second stream for exchanges, copies and kernels beside the compute stream, which may be recorded with it. Matrix
/// products must stay on the compute stream: they share a workspace.
class SideStream {
 public:
  SideStream();
  ~SideStream();
  SideStream(const SideStream&) = delete;
  /// Calls `work`, which launches what is to run after all work launched so far, here and on the compute stream. What
  /// is launched there later does not wait for it until the `join` that belongs to it; memory that it uses must stay
  /// allocated until then.
  void run(const std::function<void()>& work);
  /// Makes later work on the compute stream wait for the oldest `run` without a join. A recording must not end before
  /// all have one.
  void join();
  /// The same for all runs without a join.
  void join_all();
  /// What is launched here next waits for the newest `run` of `other`.
  void follow(const SideStream& other);

 private:
  void wait_for(size_t run);
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

/// Times on the compute stream.
class Timeline {
 public:
  Timeline();
  ~Timeline();
  Timeline(const Timeline&) = delete;
  /// Takes the time when the work launched so far has ended. Must not be recorded.
  void mark();
  /// Waits for the marks since the last call and returns seconds from the first to each. One is exact to a microsecond.
  std::vector<double> take();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

/// A recorded sequence of kernels, launched as one.
class Graph {
 public:
  /// Calls `work` once and records what it launches on the compute stream, without running it. Every launch uses the
  /// same addresses, so these must stay allocated. Memory that `work` allocated and freed may be used by others between
  /// launches, but holds nothing across one.
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
