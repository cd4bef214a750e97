#include "core/ranks/mpi_module.h"

// The C++ bindings of old MPIs would want their own library.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <string>
#include <vector>

namespace {

std::vector<MPI_Request> requests;
std::vector<char> is_receive;
std::vector<int> unused;
std::string text;

const char* outcome(int code, const char* call) {
  if (code == MPI_SUCCESS) return nullptr;
  char reason[MPI_MAX_ERROR_STRING + 1] = {};
  int length = 0;
  MPI_Error_string(code, reason, &length);
  text = std::string(call) + ": " + reason;
  return text.c_str();
}

const char* library() {
  char name[MPI_MAX_LIBRARY_VERSION_STRING + 1] = {};
  int length = 0;
  MPI_Get_library_version(name, &length);
  text = name;
  // Open MPI: "Open MPI v4.1.4, package: ..."; MPICH: "MPICH Version:\t4.0.2\nMPICH Release date: ...".
  text = text.substr(0, text.find_first_of(",\n"));
  for (char& c : text)
    if (c == '\t') c = ' ';
  return text.c_str();
}

const char* start(int* rank, int* size) {
  int provided = 0;
  if (const char* wrong = outcome(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init"))
    return wrong;
  if (provided < MPI_THREAD_SERIALIZED) return "MPI_Init: this MPI serves one thread only (MPI_THREAD_SERIALIZED)";
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, rank);
  MPI_Comm_size(MPI_COMM_WORLD, size);
  return nullptr;
}

int new_request(bool receives) {
  if (unused.empty()) {
    unused.push_back(int(requests.size()));
    requests.push_back(MPI_REQUEST_NULL);
    is_receive.push_back(0);
  }
  const int request = unused.back();
  unused.pop_back();
  is_receive[size_t(request)] = receives;
  return request;
}

const char* send(const void* data, int bytes, int to, int tag, int* request) {
  *request = new_request(false);
  return outcome(MPI_Isend(data, bytes, MPI_BYTE, to, tag, MPI_COMM_WORLD, &requests[size_t(*request)]), "MPI_Isend");
}

const char* receive(void* data, int bytes, int from, int tag, int* request) {
  *request = new_request(true);
  return outcome(MPI_Irecv(data, bytes, MPI_BYTE, from, tag, MPI_COMM_WORLD, &requests[size_t(*request)]), "MPI_Irecv");
}

const char* test(int request, int* done, int* bytes) {
  MPI_Status status;
  if (const char* wrong = outcome(MPI_Test(&requests[size_t(request)], done, &status), "MPI_Test")) return wrong;
  *bytes = 0;
  if (!*done) return nullptr;
  if (is_receive[size_t(request)]) MPI_Get_count(&status, MPI_BYTE, bytes);
  unused.push_back(request);
  return nullptr;
}

const char* finish() { return outcome(MPI_Finalize(), "MPI_Finalize"); }

constexpr MmfreeMpi kCalls = {kMmfreeMpiVersion, library, start, send, receive, test, finish};

}  // namespace

extern "C" const MmfreeMpi* mmfree_mpi() { return &kCalls; }
