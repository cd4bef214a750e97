#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/h5/file.h"

namespace mmfree::h5 {

/// Looks at an HDF5 file's metadata before HDF5 follows it. HDF5 1.10 believes the counts and sizes in a file: a
/// crafted one makes it ask for gigabytes or loop for hours. So what decides on them must be what Writer makes: a
/// superblock of version 3 that names the file's true size, object headers of version 2 with the messages and the forms
/// that Writer uses, and indexes and heaps with HDF5's default parameters and counts that fit into the file. The blocks
/// behind those headers are left to HDF5, which checks them against their checksums. Private to h5.
class Structure {
 public:
  explicit Structure(File& file) : file_(file) {}
  /// Checks the superblock and the root group's header. @throws DataError, IoError
  void check_root();
  /// Checks the object header that a link leads to. `address` as HDF5 gives it; `name` is for errors.
  void check_object(uint64_t address, const std::string& name);

 private:
  class Bytes;
  void require(bool ok, const char* what) const;
  Bytes at(uint64_t address, uint64_t n, const char* signature);
  Bytes header_part(uint64_t address, uint64_t n, const char* signature);
  void check_messages(Bytes messages, bool ordered, std::vector<Bytes>* more);
  void check_message(int type, Bytes& m);
  void check_link(Bytes& m);
  void check_dataspace(Bytes& m);
  void check_datatype(Bytes& m, uint64_t max_bytes);
  void check_attribute(Bytes& m);
  void check_layout(Bytes& m);
  void check_filters(Bytes& m);
  void check_dense(Bytes& m);
  void check_chunk_index(int type, uint64_t address, uint64_t filtered);
  void check_heap(uint64_t address);
  void check_tree(uint64_t address);

  File& file_;
  std::string object_ = "the superblock";  // what is being checked
  uint64_t header_bytes_ = 0;              // of all headers so far
};

}  // namespace mmfree::h5
