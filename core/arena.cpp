#include "core/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>

#include "core/gpu.h"

namespace mmfree {
namespace {

constexpr size_t kAlign = 256;

std::vector<std::shared_ptr<Arena>>& scopes() {
  thread_local std::vector<std::shared_ptr<Arena>> stack;
  return stack;
}

/// Host memory, in huge pages where the system has them: slabs are touched all over, and 4 KiB pages would cost a fault
/// each. It works without, so what madvise says does not matter.
void* host_slab(size_t bytes) {
  constexpr size_t kHugePage = size_t(2) << 20;
  void* slab = std::aligned_alloc(bytes % kHugePage == 0 ? kHugePage : kAlign, bytes);
  if (slab && bytes % kHugePage == 0) madvise(slab, bytes, MADV_HUGEPAGE);
  return slab;
}

/// Host memory that reads as zeros; the system finds pages for what is written alone.
Arena::Source unwritten_memory() {
  auto sizes = std::make_shared<std::map<void*, size_t>>();
  const auto obtain = [sizes](size_t bytes) -> void* {
    void* slab = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) return nullptr;
    sizes->emplace(slab, bytes);
    return slab;
  };
  return {Device::cpu, obtain, [sizes](void* slab) { munmap(slab, sizes->at(slab)); }};
}

}  // namespace

Arena::~Arena() {
  for (const Slab& slab : slabs_) source_.give_back(slab.begin);
}

std::shared_ptr<Arena> Arena::host() {
  return std::make_shared<Arena>(Source{Device::cpu, host_slab, [](void* p) { std::free(p); }});
}

std::shared_ptr<Arena> Arena::current(Device device) {
  for (auto it = scopes().rbegin(); it != scopes().rend(); ++it)
    if ((*it)->device() == device) return *it;
  // Never destroyed: tensors may be made while static objects are destroyed, and the driver may be gone by then.
  if (device == Device::cuda) {
    static const auto& device_wide = *new std::shared_ptr<Arena>(gpu());
    return device_wide;
  }
  static const auto& process_wide = *new std::shared_ptr<Arena>(host());
  return process_wide;
}

std::shared_ptr<Arena> Arena::gpu() { return std::make_shared<Arena>(gpu::memory()); }

std::shared_ptr<Arena> Arena::counted(Device device) {
  if (device == Device::cpu) return std::make_shared<Arena>(unwritten_memory());
  auto next = std::make_shared<size_t>(size_t(1) << 40);
  const auto obtain = [next](size_t bytes) {
    void* slab = reinterpret_cast<void*>(*next);
    *next += bytes;
    return slab;
  };
  return std::make_shared<Arena>(Source{Device::cuda, obtain, [](void*) {}, true});
}

/// The smallest free block of at least `want` bytes, or end(). The block at the end of a contiguous source is taken
/// only if no other fits: its size depends on how much memory was obtained so far, and addresses must not.
Arena::FreeBySize::iterator Arena::best_fit(size_t want) {
  const auto fit = free_by_size_.lower_bound({want, nullptr});
  if (!source_.contiguous || fit == free_by_size_.end() || fit->second + fit->first != end_) return fit;
  const auto other = std::next(fit);
  return other == free_by_size_.end() ? fit : other;
}

/// Obtains a slab for `want` bytes, less what is free at the end of a contiguous source.
void Arena::grow(size_t want) {
  if (source_.contiguous && !free_by_address_.empty()) {
    const auto& [begin, block] = *free_by_address_.rbegin();
    if (begin + block.first == end_) want -= block.first;
  }
  const size_t slab = (want + slab_bytes_ - 1) / slab_bytes_ * slab_bytes_;
  char* memory = static_cast<char*>(source_.obtain(slab));
  MMFREE_CHECK(OutOfMemory, memory, "out of memory: ", slab >> 20, " MiB more could not be obtained on ",
               name_of(source_.device), " beyond ", stats_.reserved >> 20, " MiB, of which ", stats_.live >> 20,
               " MiB are in use; reduce train.micro_batch_size, data.seq_len or the model",
               source_.device == Device::cuda ? ", or set train.recompute=full" : "");
  stats_.reserved += slab;
  ++stats_.slabs;
  if (!source_.contiguous || slabs_.empty()) slabs_.push_back({memory, 0});
  slabs_.back().bytes += slab;
  end_ = memory + slab;
  used_[memory] = {slab, int(slabs_.size()) - 1};
  stats_.live += slab;  // free_block subtracts it again, and joins the slab with its free neighbour
  free_block(memory);
}

void* Arena::allocate(size_t bytes) {
  MMFREE_CHECK(Error, bytes <= size_t(1) << 46, "arena: ", bytes, " bytes requested, expected at most 2^46");
  const size_t want = (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign;
  std::lock_guard lock(mutex_);
  auto fit = best_fit(want);
  if (fit == free_by_size_.end()) {
    grow(want);
    fit = best_fit(want);
  }
  const auto [have, block] = *fit;
  const int slab = free_by_address_.at(block).second;
  free_by_size_.erase(fit);
  free_by_address_.erase(block);
  if (have > want) insert_free(block + want, have - want, slab);
  used_[block] = {want, slab};
  stats_.live += want;
  stats_.peak = std::max(stats_.peak, stats_.live);
  return block;
}

void Arena::release(void* p) {
  if (!p) return;
  std::lock_guard lock(mutex_);
  // Destructors call this, so it must not throw: if the list of free blocks cannot grow, the block is lost.
  try {
    free_block(static_cast<char*>(p));
  } catch (const std::bad_alloc&) {
  }
}

void Arena::free_block(char* block) {
  auto it = used_.find(block);
  if (it == used_.end()) return;
  char* begin = it->first;
  auto [bytes, slab] = it->second;
  used_.erase(it);
  stats_.live -= bytes;
  auto next = free_by_address_.lower_bound(begin);
  if (next != free_by_address_.end() && next->first == begin + bytes && next->second.second == slab) {
    bytes += next->second.first;
    free_by_size_.erase({next->second.first, next->first});
    next = free_by_address_.erase(next);
  }
  if (next != free_by_address_.begin()) {
    auto prev = std::prev(next);
    if (prev->first + prev->second.first == begin && prev->second.second == slab) {
      begin = prev->first;
      bytes += prev->second.first;
      free_by_size_.erase({prev->second.first, prev->first});
      free_by_address_.erase(prev);
    }
  }
  insert_free(begin, bytes, slab);
}

void Arena::insert_free(char* begin, size_t bytes, int slab) {
  const auto listed = free_by_size_.insert({bytes, begin}).first;
  try {
    free_by_address_[begin] = {bytes, slab};
  } catch (...) {
    free_by_size_.erase(listed);
    throw;
  }
}

ArenaStats Arena::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

std::vector<Arena::Slab> Arena::slabs() const {
  std::lock_guard lock(mutex_);
  return slabs_;
}

std::string Arena::layout() const {
  std::lock_guard lock(mutex_);
  std::vector<std::array<size_t, 3>> blocks;
  for (const auto& [begin, block] : used_) {
    const auto slab = size_t(block.second);
    blocks.push_back({slab, size_t(begin - slabs_[slab].begin), block.first});
  }
  std::sort(blocks.begin(), blocks.end());  // slabs may be in any order in memory
  std::string text;
  for (const Slab& slab : slabs_) text += concat("slab of ", slab.bytes, " bytes\n");
  for (const auto& [slab, at, bytes] : blocks) text += concat("slab ", slab, " at ", at, ": ", bytes, " bytes\n");
  return text;
}

void Arena::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.live;
}

ArenaScope::ArenaScope(std::shared_ptr<Arena> arena) { scopes().push_back(std::move(arena)); }
ArenaScope::~ArenaScope() { scopes().pop_back(); }

}  // namespace mmfree
