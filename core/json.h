// One value tree for JSON and YAML, with the source position of every value.
//
// Reading is strict: UTF-8 only, no duplicate keys, no trailing text, at most kMaxDepth levels.
// Objects keep the order of their source. Numbers keep their kind: 1 is an integer, 1.0 is not.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace graft {

// 1-based line and column (in bytes) in a file; {0, 0} for values made by the program.
struct Mark {
  int64_t line = 0;
  int64_t column = 0;
};

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;
  // Deeper input is refused: 256 levels hold every real file and bound the recursion.
  static constexpr int kMaxDepth = 256;

  // NOLINTBEGIN(google-explicit-constructor): a tree is written down like a literal.
  Json() = default;  // null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(uint64_t value);
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  // NOLINTEND(google-explicit-constructor)
  static Json object(std::initializer_list<Member> members = {}) { return Json(Object(members)); }
  static Json array(std::initializer_list<Json> items = {}) { return Json(Array(items)); }

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_float() const { return std::holds_alternative<double>(value_); }
  bool is_number() const { return is_int() || is_float(); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  // "null", "boolean", "integer", "number", "string", "array" or "object".
  std::string_view type_name() const;

  // Checked access. Errors: kData with expected and observed type at the value's mark.
  bool as_bool() const;
  int64_t as_int() const;
  double as_double() const;  // integers convert
  const std::string& as_string() const;
  const Array& as_array() const;
  Array& as_array();
  const Object& as_object() const;
  Object& as_object();

  // Member of an object, or nullptr when absent (or when this is not an object).
  const Json* find(std::string_view key) const;
  // Member of an object. Errors: kData naming the missing key.
  const Json& at(std::string_view key) const;
  // Sets or appends a member; a null value becomes an object first.
  Json& set(std::string key, Json value);
  void push_back(Json value);
  size_t size() const;  // members or items; 0 for scalars

  Mark mark() const { return mark_; }
  void set_mark(Mark mark) { mark_ = mark; }

  friend bool operator==(const Json& a, const Json& b) { return a.value_ == b.value_; }

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
  Mark mark_;
};

// Parses one JSON document. `name` is the file name for error messages.
// Errors: kData with name:line:column.
Json parse_json(std::string_view text, std::string_view name);

// Reads and parses a JSON file of at most 100 MB. Errors: kIo, kData.
Json read_json_file(const std::string& path);

struct JsonStyle {
  int indent = -1;      // spaces a level; -1 = one line
  bool spaces = false;  // one-line form with ", " and ": " (Python's json.dumps)
  bool sort_keys = false;
  bool ascii = false;  // escape everything above 0x7e as \uXXXX
};

// Writes a value. Floats are written as Python writes them: the shortest text that reads back to
// the same double, always with '.' or 'e'; non-finite values become null.
std::string dump_json(const Json& value, JsonStyle style = {});

// Appends `text` as a JSON string with quotes; text must be UTF-8.
void append_json_string(std::string& out, std::string_view text, bool ascii = false);

}  // namespace graft
