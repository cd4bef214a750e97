#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "train/formats/event_file.h"

namespace mmfree {

/// One field of an encoded protocol buffer.
struct ProtoField {
  int number = 0, type = 0;
  uint64_t bits = 0;       ///< of a varint or a fixed number
  std::string_view bytes;  ///< of a length-delimited field
};

/// @throws Error if `message` is none
inline std::vector<ProtoField> proto_fields(std::string_view message) {
  size_t at = 0;
  const auto need = [&](size_t n) { MMFREE_CHECK(Error, n <= message.size() - at, "a field ends beyond its message"); };
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      need(1);
      const auto byte = uint8_t(message[at++]);
      value |= uint64_t(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw Error("a varint of more than 10 bytes");
  };
  std::vector<ProtoField> fields;
  while (at < message.size()) {
    const uint64_t tag = varint();
    ProtoField f{int(tag >> 3), int(tag & 7), 0, {}};
    if (f.type == 0) {
      f.bits = varint();
    } else if (f.type == 1 || f.type == 5) {
      const size_t n = f.type == 1 ? 8 : 4;
      need(n);
      std::memcpy(&f.bits, message.data() + at, n);
      at += n;
    } else {
      MMFREE_CHECK(Error, f.type == 2, "wire type ", f.type);
      const uint64_t n = varint();
      need(n);
      f.bytes = message.substr(at, n);
      at += n;
    }
    fields.push_back(f);
  }
  return fields;
}

/// What an event file holds.
struct EventFileContent {
  struct Point {
    int64_t step = 0;
    float value = 0;
    double time = 0;
    bool operator==(const Point&) const = default;
  };
  std::string version, writer;
  int session_starts = 0;  ///< at step 0
  std::map<std::string, std::vector<Point>> points;
};

/// Reads what train/formats/event_file.h describes. @throws Error for a wrong checksum, length or field
inline EventFileContent read_events(std::string_view file) {
  EventFileContent content;
  const auto fixed = [&]<class T>(size_t at, T) {
    T value;
    MMFREE_CHECK(Error, at + sizeof value <= file.size(), "a torn record");
    std::memcpy(&value, file.data() + at, sizeof value);
    return value;
  };
  for (size_t at = 0; at < file.size();) {
    const auto length = fixed(at, uint64_t());
    MMFREE_CHECK(Error, fixed(at + 8, uint32_t()) == masked_crc32c(file.substr(at, 8)), "checksum of a length");
    MMFREE_CHECK(Error, length <= file.size() - at - 12, "a torn record");
    const std::string_view event = file.substr(at + 12, length);
    MMFREE_CHECK(Error, fixed(at + 12 + length, uint32_t()) == masked_crc32c(event), "checksum of a record");
    at += 16 + length;
    EventFileContent::Point point;
    for (const ProtoField& f : proto_fields(event)) {
      if (f.number == 1) point.time = std::bit_cast<double>(f.bits);
      if (f.number == 2) point.step = int64_t(f.bits);
      if (f.number == 3) content.version = f.bytes;
      if (f.number == 7) content.session_starts += proto_fields(f.bytes).at(0).bits == 1 && point.step == 0;
      if (f.number == 10) content.writer = proto_fields(f.bytes).at(0).bytes;
      if (f.number != 5) continue;
      for (const ProtoField& value : proto_fields(f.bytes)) {
        const auto parts = proto_fields(value.bytes);
        MMFREE_CHECK(Error, parts.size() == 2 && parts[0].number == 1 && parts[1].number == 2 && parts[1].type == 5,
                     "a value that is no tag and float");
        point.value = std::bit_cast<float>(uint32_t(parts[1].bits));
        content.points[std::string(parts[0].bytes)].push_back(point);
      }
    }
  }
  return content;
}

}  // namespace mmfree
