#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"

namespace mmfree::gpu {

/// What the ranks' GPUs read from each other's memory, where all are in one machine and CUDA lets them (IPC and peer
/// access). Copy engines do it and the front end of the stream waits, so no multiprocessor is held. Exists in every
/// build; without the CUDA backend all throws DeviceError.
///
/// A rank that has written something tells a mark; others await it and read. Every call but `cancel` is put on the
/// stream in use, in the order of its kernels, and may be recorded.
class Peers {
 public:
  /// Device memory that other processes can open.
  static Arena::Source memory();
  /// What another process needs to open such memory from `data` on. @throws DeviceError
  static std::string address(const void* data);
  /// Bytes of the marks that all ranks share.
  static size_t bytes_of_marks(int size, int marks);

  /// addresses: of each rank's memory, in order. marks_name: a SharedFile of bytes_of_marks, made by one rank.
  /// @throws DeviceError, Error if something cannot be opened
  Peers(const std::vector<std::string>& addresses, int rank, int marks, const std::string& marks_name);
  ~Peers();
  Peers(const Peers&) = delete;

  /// Tells the others that what was launched before is done. mark: 0 .. marks − 1
  void tell(int mark);
  /// What is launched next waits until all others have told it.
  void await(int mark);
  /// Copies `bytes` of rank r's memory, from byte `at` on.
  void read(int rank, size_t at, void* to, size_t bytes);
  /// Takes this rank's marks back, so that they can be told again. All others must have awaited them; they may await
  /// them again only behind an exchange that this rank makes behind this call.
  void take_back();

  /// Ends all waits, also recorded ones. What is read then means nothing. Any thread.
  void cancel();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace mmfree::gpu
