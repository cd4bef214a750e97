#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/ranks/gpu_links.h"

namespace mmfree::gpu {

/// What the ranks' GPUs read from each other's memory, where all are in one machine and CUDA lets them (IPC and peer
/// access). Copy engines do it and the front end of the stream waits, so no multiprocessor is held but for a few
/// microseconds by small pieces of all_gather. Exists in every build; without the CUDA backend all throws DeviceError.
///
/// Ranks have the same things at the same places of their slabs. A rank that has written something tells a mark; others
/// await it and read. Every call that waits or copies is put on the stream in use, in the order of its kernels, and may
/// be recorded.
class Peers {
 public:
  /// Device memory that other processes can open.
  static Arena::Source memory();
  /// What other processes need to open such slabs. @throws DeviceError
  static std::string addresses(const std::vector<Arena::Slab>& slabs);
  /// Bytes of the marks that all ranks share.
  static size_t bytes_of_marks(int size, int marks);

  /// slabs: of this rank. addresses: of each rank's slabs, of the same number and sizes. marks_name: a SharedFile of
  /// bytes_of_marks, made by one rank. @throws DeviceError, Error if something cannot be opened
  Peers(std::vector<Arena::Slab> slabs, const std::vector<std::string>& addresses, int rank, int marks,
        const std::string& marks_name);
  ~Peers();
  Peers(const Peers&) = delete;

  /// Tells the others that what was launched before is done. mark: 0 .. marks − 1
  void tell(int mark);
  /// What is launched next waits until all others have told it.
  void await(int mark);
  /// Copies what rank r has at the place that `mine` is at. @throws Error if that is in no slab
  void read(int rank, const void* mine, void* to, size_t bytes);
  /// Takes this rank's marks back, so that they can be told again. All others must have awaited them; they may await
  /// them again only behind an exchange that this rank makes behind this call.
  void take_back();

  /// Whether all of this is in a slab.
  bool reach(const Span& span) const;
  /// Collective, one after another on whichever stream. Of each list: the ranks' pieces, each at its place in every
  /// rank; this rank gets the others'. It ends when all have what they read.
  void all_gather(const std::vector<std::vector<Span>>& lists);

  /// Ends all waits of all ranks, also recorded and later ones. What is read then means nothing. Any thread.
  void cancel();

 private:
  void meet(int i);
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace mmfree::gpu
