#pragma once
#include <atomic>
#include <mutex>

namespace mmfree::h5 {

/// Whether HDF5 needs our lock because the library was built without thread safety. Asked of the library once; tests
/// set it.
std::atomic<bool>& needs_lock();

/// Encloses a group of HDF5 calls. HDF5 is prepared: no exit handler, no plugins, no error output in this thread. Where
/// HDF5 needs it, one lock of the process is held meanwhile, so a Session encloses no other work. Sessions nest.
class Session {
 public:
  Session();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

}  // namespace mmfree::h5
