#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/gpu.h"
#include "data/batches.h"

namespace mmfree {

/// The batches of consecutive steps. A thread of its own reads them ahead.
class BatchFeed {
 public:
  /// `steps` batches of `rows` samples from `first_sample` on. `pinned`: in page-locked memory, to be copied to a GPU.
  BatchFeed(const Batches& batches, int64_t first_sample, int64_t steps, int64_t rows, int64_t seq_len, bool pinned)
      : BatchFeed(batches, {first_sample, rows, rows}, steps, seq_len, pinned) {}
  /// The samples of a step: `rows` from `first` on, and from one step to the next `stride` samples further.
  struct Samples {
    int64_t first, rows, stride;
  };
  BatchFeed(const Batches& batches, const Samples& samples, int64_t steps, int64_t seq_len, bool pinned);
  ~BatchFeed();
  BatchFeed(const BatchFeed&) = delete;

  /// One batch: `size` = rows · seq_len tokens, then as many targets, both i32, and starts of documents, u8.
  struct Slot {
    std::unique_ptr<gpu::PinnedBuffer> pinned;
    std::vector<int32_t> plain;
    int64_t size = 0;
    int64_t scored = 0;  ///< targets that are not kIgnoreTarget
    int32_t* data() { return pinned ? static_cast<int32_t*>(pinned->data()) : plain.data(); }
    int32_t* targets() { return data() + size; }
    /// 1 at a token that starts a document, else 0.
    uint8_t* starts() { return reinterpret_cast<uint8_t*>(data() + 2 * size); }
  };
  /// The batch of the next step; waits until it is read. The caller owns it until `release`. @throws as Batches::read
  Slot* next();
  void release(Slot* slot);
  /// Seconds that all calls of `next` have waited.
  double waited() const { return waited_; }

 private:
  void read_ahead(int64_t steps);
  const Batches& batches_;
  Samples samples_;
  double waited_ = 0;
  std::vector<Slot> slots_;
  std::deque<Slot*> empty_, full_;
  std::exception_ptr failure_;
  bool done_ = false, stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace mmfree
