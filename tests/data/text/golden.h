// Reading golden files: one JSON object a line.
#pragma once

#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/file.h"
#include "core/json.h"
#include "data/text/tokenizer.h"

namespace graft::test {

inline std::vector<Json> read_golden(const std::string& path) {
  std::vector<Json> rows;
  const std::string text = read_file(path);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (end > at) rows.push_back(parse_json(text.substr(at, end - at), path));
    at = end + 1;
  }
  return rows;
}

inline std::vector<int32_t> ids_of(const Json& row, std::string_view key) {
  std::vector<int32_t> ids;
  for (const Json& id : row.at(key).as_array()) ids.push_back(static_cast<int32_t>(id.as_int()));
  return ids;
}

inline std::vector<data::ByteRange> ranges_of(const Json& row, std::string_view key) {
  std::vector<data::ByteRange> ranges;
  for (const Json& range : row.at(key).as_array()) {
    ranges.push_back({range.as_array()[0].as_int(), range.as_array()[1].as_int()});
  }
  return ranges;
}

}  // namespace graft::test

namespace Catch {
template <>
struct StringMaker<graft::data::ByteRange> {
  static std::string convert(const graft::data::ByteRange& range) {
    return "[" + std::to_string(range.begin) + "," + std::to_string(range.end) + ")";
  }
};
}  // namespace Catch
