#include "train/formats/event_file.h"

#include <array>
#include <bit>
#include <cstring>

namespace mmfree {
namespace {

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}

template <class T>
void put_fixed(std::string& out, T value) {
  for (size_t i = 0; i < sizeof value; ++i) out += char(uint8_t(value >> 8 * i));
}

/// The parts of a protocol buffer. Numbers of fields and wire types: protobuf.dev/programming-guides/encoding.
class Message {
 public:
  Message& number(int field, int64_t value) {
    tag(field, 0);
    varint(uint64_t(value));
    return *this;
  }
  Message& real(int field, double value) {
    tag(field, 1);
    put_fixed(bytes_, std::bit_cast<uint64_t>(value));
    return *this;
  }
  Message& real(int field, float value) {
    tag(field, 5);
    put_fixed(bytes_, std::bit_cast<uint32_t>(value));
    return *this;
  }
  Message& text(int field, std::string_view value) {
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  void tag(int field, int type) { varint(uint64_t(field) << 3 | uint64_t(type)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += char(uint8_t(value) | 0x80);
    bytes_ += char(uint8_t(value));
  }
  std::string bytes_;
};

// Numbers of the fields of Event, Summary, Summary.Value, SessionLog and SourceMetadata.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7, kSourceMetadata = 10;
constexpr int kValue = 1, kTag = 1, kSimpleValue = 2, kStatus = 1, kWriter = 1;
constexpr int64_t kSessionStart = 1;

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> table = crc_table();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ uint8_t(c)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

std::string event_record(std::string_view event) {
  std::string record;
  record.reserve(event.size() + 16);
  put_fixed(record, uint64_t(event.size()));
  put_fixed(record, masked_crc32c(record));
  record += event;
  put_fixed(record, masked_crc32c(event));
  return record;
}

std::string event_file_start(double wall_time) {
  Message version, session;
  version.real(kWallTime, wall_time).text(kFileVersion, "brain.Event:2");
  version.text(kSourceMetadata, Message().text(kWriter, "mmfree").bytes());
  session.real(kWallTime, wall_time).number(kStep, 0);
  session.text(kSessionLog, Message().number(kStatus, kSessionStart).bytes());
  return event_record(version.bytes()) + event_record(session.bytes());
}

std::string scalars_record(double wall_time, int64_t step, const EventValues& values) {
  Message summary, value, event;
  for (const auto& [tag, number] : values) {
    value.clear();
    summary.text(kValue, value.text(kTag, tag).real(kSimpleValue, number).bytes());
  }
  event.real(kWallTime, wall_time).number(kStep, step).text(kSummary, summary.bytes());
  return event_record(event.bytes());
}

}  // namespace mmfree
