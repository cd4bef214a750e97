#include "data/h5/session.h"

#include <hdf5.h>

namespace mmfree::h5 {

std::atomic<bool>& needs_lock() {
  static std::atomic<bool> needed = [] {
    H5dont_atexit();
    H5open();
    H5PLset_loading_state(0);
    hbool_t threadsafe = false;
    H5is_library_threadsafe(&threadsafe);
    return !threadsafe;
  }();
  return needed;
}

Session::Session() {
  static std::recursive_mutex mutex;
  if (needs_lock()) lock_ = std::unique_lock(mutex);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

}  // namespace mmfree::h5
