#include "data/feed.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <system_error>

#include "core/error.h"
#include "core/ops/head_loss.h"

namespace mmfree {

BatchFeed::BatchFeed(const Batches& batches, const Samples& samples, int64_t steps, int64_t seq_len, bool pinned)
    : batches_(batches), samples_(samples), slots_(3) {
  const int64_t size = samples.rows * seq_len;
  const size_t count = size_t(2 * size + (size + 3) / 4);
  for (Slot& s : slots_) {
    s.size = size;
    if (pinned)
      s.pinned = std::make_unique<gpu::PinnedBuffer>(count * sizeof(int32_t));
    else
      s.plain.resize(count);
    std::fill_n(s.starts(), size, uint8_t(0));
    empty_.push_back(&s);
  }
  try {
    thread_ = std::thread([this, steps] { read_ahead(steps); });
  } catch (const std::system_error& e) {
    throw IoError(concat("feed: cannot start the thread that reads data: ", e.code().message(),
                         "; raise the limit of processes (ulimit -u)"));
  }
}

BatchFeed::~BatchFeed() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BatchFeed::read_ahead(int64_t steps) {
  try {
    int64_t sample = samples_.first;
    for (int64_t step = 0; step < steps; ++step) {
      Slot* slot = nullptr;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || !empty_.empty(); });
        if (stop_) return;
        slot = empty_.front();
        empty_.pop_front();
      }
      batches_.read(sample, samples_.rows,
                    {slot->data(), slot->targets(), batches_.has_starts() ? slot->starts() : nullptr});
      if (__builtin_add_overflow(sample, samples_.stride, &sample)) sample = std::numeric_limits<int64_t>::max();
      slot->scored = slot->size - std::count(slot->targets(), slot->targets() + slot->size, kIgnoreTarget);
      std::lock_guard lock(mutex_);
      full_.push_back(slot);
      changed_.notify_all();
    }
  } catch (...) {
    std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  std::lock_guard lock(mutex_);
  done_ = true;
  changed_.notify_all();
}

BatchFeed::Slot* BatchFeed::next() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ || !full_.empty(); });
  waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (full_.empty() && failure_) std::rethrow_exception(failure_);
  MMFREE_CHECK(Error, !full_.empty(), "feed: asked for a batch after the last step");
  Slot* slot = full_.front();
  full_.pop_front();
  return slot;
}

void BatchFeed::release(Slot* slot) {
  std::lock_guard lock(mutex_);
  empty_.push_back(slot);
  changed_.notify_all();
}

}  // namespace mmfree
