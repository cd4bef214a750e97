#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <string>

/// NCCL, as far as it is used here. The library is opened when it is first wanted, and a program runs without it. What
/// follows is the part of its C interface that has not changed since version 2.7, so that building needs no header of
/// it; core/cuda/nccl.cpp compares it with the header where there is one.
namespace mmfree::cuda {

struct NcclId {
  char bytes[128];
};
using NcclComm = struct ncclComm*;
inline constexpr int kNcclSuccess = 0, kNcclInProgress = 7;
inline constexpr int kNcclBytes = 1;  ///< ncclUint8

/// The functions of NCCL that are used. Results are ncclResult_t.
struct Nccl {
  int (*get_version)(int*);
  int (*get_unique_id)(NcclId*);
  int (*comm_init_rank)(NcclComm*, int size, NcclId, int rank);
  int (*comm_abort)(NcclComm);
  int (*comm_get_async_error)(NcclComm, int*);
  const char* (*get_error_string)(int);
  const char* (*get_last_error)(NcclComm);  ///< nullptr before version 2.13
  int (*group_start)();
  int (*group_end)();
  int (*send)(const void*, size_t, int type, int peer, NcclComm, cudaStream_t);
  int (*recv)(void*, size_t, int type, int peer, NcclComm, cudaStream_t);
  int (*all_gather)(const void*, void*, size_t, int type, NcclComm, cudaStream_t);
  int (*broadcast)(const void*, void*, size_t, int type, int root, NcclComm, cudaStream_t);
  std::string problem;  ///< why the library cannot be used; empty if it can
};

/// Opens the library on the first call (core/cuda/library.h says where it is looked for).
const Nccl& nccl_library();

}  // namespace mmfree::cuda
