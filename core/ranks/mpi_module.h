#pragma once

/// What the module libmmfree_mpi.so offers: the few calls of MPI that are used, in plain C, so that the program itself
/// runs without MPI and does not know which one the module was built with. The module is opened at run time. No call
/// waits; one thread at a time may call. Each gives nullptr, or what is wrong, in words that live until the next call.
extern "C" {

struct MmfreeMpi {
  int version;  ///< kMmfreeMpiVersion
  /// "Open MPI 4.1.4"; one line.
  const char* (*library)();
  const char* (*start)(int* rank, int* size);
  /// Begin to send or receive; `request` says which one it is.
  const char* (*send)(const void* data, int bytes, int to, int tag, int* request);
  const char* (*receive)(void* data, int bytes, int from, int tag, int* request);
  /// Whether it is done; then the request is gone. bytes: received.
  const char* (*test)(int request, int* done, int* bytes);
  const char* (*finish)();
};

const MmfreeMpi* mmfree_mpi();

}  // extern "C"

constexpr int kMmfreeMpiVersion = 1;
