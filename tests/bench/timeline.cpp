// Writes what a program's GPU did, activity by activity: a library that CUDA loads into any program that it starts.
//   CUDA_INJECTION64_PATH=LIB/libmmfree_timeline.so MMFREE_TIMELINE=FILE PROGRAM ...
// writes FILE.RANK (the variable RANK, or the process id without it), a line for each kernel, copy and fill, with tabs
// between: kind, name, start and end (ns since 1970), stream, graph, node of the graph, bytes, devices from and to of a
// copy ("host" for the host, "-" where there is none), blocks of a kernel. Nodes of a graph are seen one by one, on the
// streams where the driver put them. A kernel's name is its function's, after its source file where the name holds
// that. timeline.py makes a table and a picture of the files. libcupti of the toolkit that this was built with must be
// found.
#include <cupti.h>
#include <cxxabi.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {

constexpr size_t kBufferBytes = 8 << 20, kAlignment = 8;

std::mutex mutex;           ///< of what follows
std::FILE* file = nullptr;  ///< closed by no one: activities may end after the program's last statement
long lost = 0;              ///< activities without times or room

void check(CUptiResult status, const char* what) {
  if (status == CUPTI_SUCCESS) return;
  const char* text = nullptr;
  cuptiGetResultString(status, &text);
  std::fprintf(stderr, "timeline: %s: %s; the timeline will be empty or not whole\n", what, text ? text : "unknown");
}

/// "adamw" of "..._GLOBAL__N__4df4d1c6_8_adamw_cu_9d7eecac...": how nvcc names a source file's anonymous namespace.
std::string source_of(const std::string& mangled) {
  const std::string mark = "_GLOBAL__N__";
  size_t at = mangled.find(mark);
  if (at == std::string::npos) return "";
  at = mangled.find('_', at + mark.size());
  if (at == std::string::npos) return "";
  const size_t length = std::strtoul(mangled.c_str() + at + 1, nullptr, 10);
  at = mangled.find('_', at + 1);
  if (at == std::string::npos) return "";
  const std::string source = mangled.substr(at + 1, length);
  return source.substr(0, source.rfind("_cu"));
}

/// "adamw:update_block" of a kernel's mangled name.
std::string short_name(const char* mangled) {
  int status = 0;
  char* full = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = full ? full : mangled;
  std::free(full);
  const std::string unnamed = "(anonymous namespace)::";
  for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
  name.erase(std::min(name.size(), name.find_first_of("<(")));
  if (const size_t at = name.find_last_of(": "); at != std::string::npos) name.erase(0, at + 1);
  const std::string source = source_of(mangled);
  return source.empty() ? name : source + ':' + name;
}

const char* name_of_kernel(const char* mangled) {
  static auto& names = *new std::map<const char*, std::string>;  // by address, which a name keeps; needed until the end
  std::string& name = names[mangled];
  if (name.empty()) name = short_name(mangled ? mangled : "kernel");
  return name.c_str();
}

const char* name_of_copy(uint8_t kind) {
  switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
      return "host to device";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
      return "device to host";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOD:
      return "on the device";
    case CUPTI_ACTIVITY_MEMCPY_KIND_PTOP:
      return "device to device";
    default:
      return "other copy";
  }
}

/// What all kinds of activities have.
struct Line {
  const char *kind, *name;
  uint64_t bytes = 0;
  std::string from = "-", to = "-";
  int64_t blocks = 0;
};

template <class Record>
void write(const Record& r, const Line& line) {
  if (r.start == 0 || r.end == 0) return void(++lost);
  std::fprintf(file, "%s\t%s\t%llu\t%llu\t%u\t%u\t%llu\t%llu\t%s\t%s\t%lld\n", line.kind, line.name,
               static_cast<unsigned long long>(r.start), static_cast<unsigned long long>(r.end), r.streamId, r.graphId,
               static_cast<unsigned long long>(r.graphNodeId), static_cast<unsigned long long>(line.bytes),
               line.from.c_str(), line.to.c_str(), static_cast<long long>(line.blocks));
}

void write_record(const CUpti_Activity& record) {
  switch (record.kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto& r = reinterpret_cast<const CUpti_ActivityKernel10&>(record);
      return write(r, {"kernel", name_of_kernel(r.name), 0, "-", "-", int64_t(r.gridX) * r.gridY * r.gridZ});
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& r = reinterpret_cast<const CUpti_ActivityMemcpy6&>(record);
      const std::string device = std::to_string(r.deviceId);
      const bool reads_host = r.copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD;
      const bool writes_host = r.copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH;
      return write(
          r, {"copy", name_of_copy(r.copyKind), r.bytes, reads_host ? "host" : device, writes_host ? "host" : device});
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY2: {
      const auto& r = reinterpret_cast<const CUpti_ActivityMemcpyPtoP4&>(record);
      return write(
          r, {"copy", name_of_copy(r.copyKind), r.bytes, std::to_string(r.srcDeviceId), std::to_string(r.dstDeviceId)});
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto& r = reinterpret_cast<const CUpti_ActivityMemset4&>(record);
      return write(r, {"fill", "fill", r.bytes});
    }
    default:
      return;
  }
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* most) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, kBufferBytes));
  *size = *buffer ? kBufferBytes : 0;
  *most = 0;  // as many records as there is room for
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard lock(mutex);
  CUpti_Activity* record = nullptr;
  while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) write_record(*record);
  std::free(buffer);
  size_t dropped = 0;
  if (cuptiActivityGetNumDroppedRecords(nullptr, 0, &dropped) == CUPTI_SUCCESS) lost += long(dropped);
}

void flush() {
  check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  const std::lock_guard lock(mutex);
  std::fflush(file);
  if (lost > 0) std::fprintf(stderr, "timeline: %ld activities have no times\n", lost);
  lost = 0;
}

/// A program that ends its profile has waited for its GPU: what it did so far is written, however it ends.
void CUPTIAPI profile_ends(void*, CUpti_CallbackDomain, CUpti_CallbackId, const void* data) {
  if (static_cast<const CUpti_CallbackData*>(data)->callbackSite == CUPTI_API_EXIT) flush();
}

void start(const std::string& path) {
  file = std::fopen(path.c_str(), "w");
  if (!file) return void(std::fprintf(stderr, "timeline: %s cannot be written\n", path.c_str()));
  std::fprintf(file, "# kind\tname\tstart\tend\tstream\tgraph\tnode\tbytes\tfrom\tto\tblocks\n");
  check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  for (const CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                        CUPTI_ACTIVITY_KIND_MEMCPY2, CUPTI_ACTIVITY_KIND_MEMSET})
    check(cuptiActivityEnable(kind), "cuptiActivityEnable");
  static CUpti_SubscriberHandle subscriber;
  check(cuptiSubscribe(&subscriber, CUpti_CallbackFunc(profile_ends), nullptr), "cuptiSubscribe");
  check(cuptiEnableCallback(1, subscriber, CUPTI_CB_DOMAIN_DRIVER_API, CUPTI_DRIVER_TRACE_CBID_cuProfilerStop),
        "cuptiEnableCallback");
  std::atexit(flush);
}

}  // namespace

/// CUDA calls it before its first other work. What it gives says that the program may go on.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  static std::atomic<bool> started = false;
  const char *path = std::getenv("MMFREE_TIMELINE"), *rank = std::getenv("RANK");
  if (path && *path && !started.exchange(true))
    start(std::string(path) + '.' + (rank && *rank ? rank : std::to_string(getpid())));
  return 1;
}
