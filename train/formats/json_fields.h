#pragma once
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "train/formats/strict_json.h"

namespace mmfree {

/// Typed access to one JSON object. Every error message starts with `where`, which names the file.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {
    MMFREE_CHECK(DataError, object_.is_object(), where_, "expected a JSON object");
  }

  int64_t integer(const char* key, int64_t otherwise) const {
    return has(key) ? as_integer(object_[key], key) : otherwise;
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    MMFREE_CHECK(DataError, object_[key].is_number(), where_, key, " must be a number");
    return object_[key].get<double>();
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    MMFREE_CHECK(DataError, object_[key].is_boolean(), where_, key, " must be true or false");
    return object_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    return has(key) ? as_text(object_[key], key) : otherwise;
  }
  /// A token id; of a list the first; -1 for null or an empty list.
  int64_t token_id(const char* key, int64_t otherwise) const {
    if (!object_.contains(key)) return otherwise;
    const nlohmann::json& value = object_[key];
    if (value.is_null() || (value.is_array() && value.empty())) return -1;
    return as_integer(value.is_array() ? value[0] : value, key);
  }
  /// The items of a list; none if the key is missing.
  std::vector<nlohmann::json> list(const char* key) const {
    if (!has(key)) return {};
    MMFREE_CHECK(DataError, object_[key].is_array(), where_, key, " must be a list");
    return object_[key].get<std::vector<nlohmann::json>>();
  }

  int64_t as_integer(const nlohmann::json& value, const char* key) const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    MMFREE_CHECK(DataError, value.is_number_integer(), where_, key, " must be an integer");
    const bool fits =
        value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t(kMost) : value.get<int64_t>() >= -kMost;
    MMFREE_CHECK(DataError, fits, where_, key, " must lie within -", kMost, "..", kMost);
    return value.get<int64_t>();
  }
  std::string as_text(const nlohmann::json& value, const char* key) const {
    MMFREE_CHECK(DataError, value.is_string(), where_, key, " must be a string");
    return value.get<std::string>();
  }
  /// The value among `values` whose name the key gives.
  template <class Enum>
  Enum choice(const char* key, const std::vector<Enum>& values) const {
    const std::string name = as_text(object_[key], key);
    std::string known;
    for (const Enum value : values) {
      if (name == name_of(value)) return value;
      known += concat(' ', name_of(value));
    }
    throw DataError(concat(where_, key, " is ", quote(name), ", expected one of", known));
  }
  /// The file, and the path of this object in it.
  const std::string& where() const { return where_; }
  /// Whether the key is there, and whether with a value other than null.
  bool given(const char* key) const { return object_.contains(key); }
  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const nlohmann::json& operator[](const char* key) const { return object_[key]; }

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace mmfree
