#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mmfree {

/// TensorBoard's event files: a sequence of records, each a protocol buffer `Event`. Sources: TFRecord and event.proto,
/// summary.proto of TensorBoard.
///
/// A record is u64 length, u32 masked CRC-32C of the length, the bytes, u32 masked CRC-32C of the bytes; little-endian.

/// CRC-32C (Castagnoli), as iSCSI (RFC 3720) uses it.
uint32_t crc32c(std::string_view bytes);
/// ((crc >> 15) | (crc << 17)) + 0xa282ead8: a record that holds records must not have a trivial checksum.
uint32_t masked_crc32c(std::string_view bytes);

/// The record of `event`, an encoded `Event`.
std::string event_record(std::string_view event);

/// What a file begins with: its version ("brain.Event:2") and its writer, then "a session starts at step 0", at which
/// readers drop what they have of steps >= 0.
std::string event_file_start(double wall_time);

/// A record with one point for each (tag, value), shown as scalars; values are stored as f32.
using EventValues = std::vector<std::pair<std::string_view, float>>;
std::string scalars_record(double wall_time, int64_t step, const EventValues& values);

}  // namespace mmfree
