#include "core/json.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include <simdjson.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/error.h"
#include "core/file.h"

namespace graft {
namespace {

std::string at_mark(Mark mark) {
  if (mark.line == 0) {
    return "";
  }
  return "line " + std::to_string(mark.line) + ", column " + std::to_string(mark.column);
}

[[noreturn]] void wrong_type(const Json& value, std::string_view expected) {
  fail(ExitCode::kData,
       "expected " + std::string(expected) + ", got " + std::string(value.type_name()),
       at_mark(value.mark()));
}

// Builds the tree from simdjson's on-demand walk. Values are visited in source order, so the line
// of each is found by counting on from the previous one.
class TreeBuilder {
 public:
  TreeBuilder(const char* text, size_t size, std::string_view name)
      : text_(text), size_(size), name_(name) {}

  Json build() {
    simdjson::ondemand::document document;
    check(parser().iterate(text_, size_, size_ + simdjson::SIMDJSON_PADDING).get(document));
    Json tree = root(document);
    const char* rest = nullptr;
    if (document.current_location().get(rest) == simdjson::SUCCESS) {
      fail_at(static_cast<size_t>(rest - text_), "text after the end of the JSON value");
    }
    return tree;
  }

 private:
  static simdjson::ondemand::parser& parser() {
    // Reused for its buffers; a document never outlives build().
    thread_local simdjson::ondemand::parser instance;
    return instance;
  }

  [[noreturn]] void fail_at(size_t offset, const std::string& what) {
    const Mark mark = mark_of(offset);
    fail(ExitCode::kData, what,
         std::string(name_) + ":" + std::to_string(mark.line) + ":" + std::to_string(mark.column),
         "correct the JSON there");
  }
  [[noreturn]] void fail_here(const std::string& what) { fail_at(last_offset_, what); }

  void check(simdjson::error_code code) {
    if (code != simdjson::SUCCESS) {
      fail_here(std::string("malformed JSON: ") + simdjson::error_message(code));
    }
  }

  Mark mark_of(size_t offset) {
    if (offset < line_scan_offset_) {
      line_scan_offset_ = 0;
      line_ = 1;
      line_begin_ = 0;
    }
    offset = std::min(offset, size_);
    while (line_scan_offset_ < offset) {
      const void* newline =
          std::memchr(text_ + line_scan_offset_, '\n', offset - line_scan_offset_);
      if (newline == nullptr) {
        line_scan_offset_ = offset;
        break;
      }
      line_begin_ = static_cast<size_t>(static_cast<const char*>(newline) - text_) + 1;
      line_scan_offset_ = line_begin_;
      ++line_;
    }
    return {line_, static_cast<int64_t>(offset - line_begin_) + 1};
  }

  template <typename Value>
  void note_position(Value& value) {
    const char* place = nullptr;
    if (value.current_location().get(place) == simdjson::SUCCESS) {
      last_offset_ = static_cast<size_t>(place - text_);
    }
  }

  Json root(simdjson::ondemand::document& document) {
    simdjson::ondemand::json_type type{};
    note_position(document);
    check(document.type().get(type));
    const Mark mark = mark_of(last_offset_);
    Json result;
    switch (type) {
      case simdjson::ondemand::json_type::array: {
        simdjson::ondemand::array items;
        check(document.get_array().get(items));
        result = array(items, 1);
        break;
      }
      case simdjson::ondemand::json_type::object: {
        simdjson::ondemand::object members;
        check(document.get_object().get(members));
        result = object(members, 1);
        break;
      }
      default:
        result = scalar(document, type);
    }
    result.set_mark(mark);
    return result;
  }

  Json value(simdjson::ondemand::value item, int depth) {
    if (depth > Json::kMaxDepth) {
      fail_here("more than " + std::to_string(Json::kMaxDepth) + " levels of nesting");
    }
    note_position(item);
    const Mark mark = mark_of(last_offset_);
    simdjson::ondemand::json_type type{};
    check(item.type().get(type));
    Json result;
    switch (type) {
      case simdjson::ondemand::json_type::array: {
        simdjson::ondemand::array items;
        check(item.get_array().get(items));
        result = array(items, depth + 1);
        break;
      }
      case simdjson::ondemand::json_type::object: {
        simdjson::ondemand::object members;
        check(item.get_object().get(members));
        result = object(members, depth + 1);
        break;
      }
      default:
        result = scalar(item, type);
    }
    result.set_mark(mark);
    return result;
  }

  template <typename Value>
  Json scalar(Value& item, simdjson::ondemand::json_type type) {
    switch (type) {
      case simdjson::ondemand::json_type::string: {
        std::string_view text;
        check(item.get_string().get(text));
        return {text};
      }
      case simdjson::ondemand::json_type::boolean: {
        bool flag = false;
        check(item.get_bool().get(flag));
        return {flag};
      }
      case simdjson::ondemand::json_type::number: {
        simdjson::ondemand::number number;
        check(item.get_number().get(number));
        if (number.is_int64()) {
          return {number.get_int64()};
        }
        if (number.is_uint64()) {
          fail_here("integer above 9223372036854775807");
        }
        return {number.get_double()};
      }
      default: {
        bool is_null = false;
        check(item.is_null().get(is_null));
        if (!is_null) {
          fail_here("malformed JSON: not a value");
        }
        return {};
      }
    }
  }

  Json array(simdjson::ondemand::array& items, int depth) {
    Json::Array result;
    for (auto item : items) {
      simdjson::ondemand::value one;
      check(item.get(one));
      result.push_back(value(one, depth));
    }
    return {std::move(result)};
  }

  Json object(simdjson::ondemand::object& members, int depth) {
    Json::Object result;
    std::unordered_set<std::string> seen;
    for (auto member : members) {
      simdjson::ondemand::field field;
      check(std::move(member).get(field));
      std::string_view key;
      check(field.unescaped_key().get(key));
      std::string name(key);
      if (is_duplicate(result, seen, name)) {
        note_position(field.value());
        fail_here("duplicate key \"" + name + "\"");
      }
      result.emplace_back(std::move(name), value(field.value(), depth));
    }
    return {std::move(result)};
  }

  // Linear for the usual few keys, a set for large objects, so that input cannot make it quadratic.
  static bool is_duplicate(const Json::Object& members,
                           std::unordered_set<std::string>& seen,
                           const std::string& name) {
    constexpr size_t kLinear = 16;
    if (members.size() < kLinear) {
      for (const auto& [key, unused] : members) {
        if (key == name) {
          return true;
        }
      }
      return false;
    }
    if (seen.empty()) {
      for (const auto& [key, unused] : members) {
        seen.insert(key);
      }
    } else {
      seen.insert(members.back().first);
    }
    return seen.count(name) != 0;
  }

  const char* text_;
  size_t size_;
  std::string_view name_;
  size_t last_offset_ = 0;
  size_t line_scan_offset_ = 0;
  int64_t line_ = 1;
  size_t line_begin_ = 0;
};

// Python's repr of a float, so that JSON made here equals the reference tools' byte for byte: the
// shortest digits, fixed notation for exponents -4..15.
void append_number(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  char buffer[48];
  const double magnitude = std::fabs(value);
  const bool fixed = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) {
    out += ".0";
  }
}

void newline(std::string& out, const JsonStyle& style, int level) {
  if (style.indent >= 0) {
    out += '\n';
    out.append(static_cast<size_t>(style.indent) * static_cast<size_t>(level), ' ');
  }
}

void append_value(std::string& out, const Json& value, const JsonStyle& style, int level) {
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int()) {
    out += std::to_string(value.as_int());
  } else if (value.is_float()) {
    append_number(out, value.as_double());
  } else if (value.is_string()) {
    append_json_string(out, value.as_string(), style.ascii);
  } else if (value.is_array()) {
    out += '[';
    bool first = true;
    for (const Json& item : value.as_array()) {
      if (!first) {
        out += style.indent < 0 && style.spaces ? ", " : ",";
      }
      first = false;
      newline(out, style, level + 1);
      append_value(out, item, style, level + 1);
    }
    if (!first) {
      newline(out, style, level);
    }
    out += ']';
  } else {
    std::vector<const Json::Member*> members;
    for (const Json::Member& member : value.as_object()) {
      members.push_back(&member);
    }
    if (style.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out += '{';
    bool first = true;
    for (const Json::Member* member : members) {
      if (!first) {
        out += style.indent < 0 && style.spaces ? ", " : ",";
      }
      first = false;
      newline(out, style, level + 1);
      append_json_string(out, member->first, style.ascii);
      out += style.indent >= 0 || style.spaces ? ": " : ":";
      append_value(out, member->second, style, level + 1);
    }
    if (!first) {
      newline(out, style, level);
    }
    out += '}';
  }
}

// The letter that follows the backslash in a short escape; 0 for a byte that has none.
char escape_letter(char byte) {
  switch (byte) {
    case '"':
    case '\\':
      return byte;
    case '\n':
      return 'n';
    case '\r':
      return 'r';
    case '\t':
      return 't';
    case '\b':
      return 'b';
    case '\f':
      return 'f';
    default:
      return 0;
  }
}

bool needs_escape(unsigned char byte, bool ascii) {
  return byte < 0x20 || byte == '"' || byte == '\\' || (ascii && byte >= 0x7f);
}

// First byte at or after `at` that cannot stand in a JSON string as it is, or text.size().
size_t plain_run_end(std::string_view text, size_t at, bool ascii) {
#if defined(__SSE2__)
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i backslash = _mm_set1_epi8('\\');
  const __m128i last_control = _mm_set1_epi8(0x1f);
  const __m128i del = _mm_set1_epi8(0x7f);
  for (; at + 16 <= text.size(); at += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text.data() + at));
    const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, last_control), bytes);
    const __m128i named =
        _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash));
    auto hits = static_cast<unsigned>(_mm_movemask_epi8(_mm_or_si128(control, named)));
    if (ascii) {
      const __m128i above = _mm_cmpeq_epi8(_mm_max_epu8(bytes, del), bytes);
      hits |= static_cast<unsigned>(_mm_movemask_epi8(above));
    }
    if (hits != 0) {
      return at + static_cast<size_t>(__builtin_ctz(hits));
    }
  }
#endif
  while (at < text.size() && !needs_escape(static_cast<unsigned char>(text[at]), ascii)) {
    ++at;
  }
  return at;
}

}  // namespace

Json::Json(uint64_t value) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail(ExitCode::kBug, "integer above 9223372036854775807 in a JSON value");
  }
  value_ = static_cast<int64_t>(value);
}

std::string_view Json::type_name() const {
  constexpr std::string_view kNames[] = {"null",   "boolean", "integer", "number",
                                         "string", "array",   "object"};
  return kNames[value_.index()];
}

bool Json::as_bool() const {
  if (!is_bool()) {
    wrong_type(*this, "true or false");
  }
  return std::get<bool>(value_);
}

int64_t Json::as_int() const {
  if (!is_int()) {
    wrong_type(*this, "an integer");
  }
  return std::get<int64_t>(value_);
}

double Json::as_double() const {
  if (is_int()) {
    return static_cast<double>(std::get<int64_t>(value_));
  }
  if (!is_float()) {
    wrong_type(*this, "a number");
  }
  return std::get<double>(value_);
}

const std::string& Json::as_string() const {
  if (!is_string()) {
    wrong_type(*this, "a string");
  }
  return std::get<std::string>(value_);
}

const Json::Array& Json::as_array() const {
  if (!is_array()) {
    wrong_type(*this, "an array");
  }
  return std::get<Array>(value_);
}

Json::Array& Json::as_array() {
  if (!is_array()) {
    wrong_type(*this, "an array");
  }
  return std::get<Array>(value_);
}

const Json::Object& Json::as_object() const {
  if (!is_object()) {
    wrong_type(*this, "an object");
  }
  return std::get<Object>(value_);
}

Json::Object& Json::as_object() {
  if (!is_object()) {
    wrong_type(*this, "an object");
  }
  return std::get<Object>(value_);
}

const Json* Json::find(std::string_view key) const {
  if (is_object()) {
    for (const Member& member : std::get<Object>(value_)) {
      if (member.first == key) {
        return &member.second;
      }
    }
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) {
    fail(ExitCode::kData, "missing key \"" + std::string(key) + "\"", at_mark(mark_));
  }
  return *value;
}

Json& Json::set(std::string key, Json value) {
  if (is_null()) {
    value_ = Object();
  }
  for (Member& member : as_object()) {
    if (member.first == key) {
      member.second = std::move(value);
      return member.second;
    }
  }
  as_object().emplace_back(std::move(key), std::move(value));
  return as_object().back().second;
}

void Json::push_back(Json value) {
  if (is_null()) {
    value_ = Array();
  }
  as_array().push_back(std::move(value));
}

size_t Json::size() const {
  return is_array() ? as_array().size() : is_object() ? as_object().size() : 0;
}

Json parse_json(std::string_view text, std::string_view name) {
  // simdjson reads up to SIMDJSON_PADDING bytes past the end, so the text needs room behind it.
  thread_local std::string padded;
  padded.reserve(text.size() + simdjson::SIMDJSON_PADDING);
  padded.assign(text);
  return TreeBuilder(padded.data(), padded.size(), name).build();
}

Json read_json_file(const std::string& path) {
  constexpr int64_t kMaxBytes = 100'000'000;
  return parse_json(read_file(path, kMaxBytes), path);
}

std::string dump_json(const Json& value, JsonStyle style) {
  std::string out;
  append_value(out, value, style, 0);
  return out;
}

void append_json_string(std::string& out, std::string_view text, bool ascii) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto append_unit = [&](uint32_t unit) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) {
      out += kHex[(unit >> shift) & 15U];
    }
  };
  out += '"';
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t run_end = plain_run_end(text, i, ascii);
    out.append(text, i, run_end - i);
    if (run_end == text.size()) {
      break;
    }
    i = run_end;
    const auto byte = static_cast<unsigned char>(text[i]);
    if (const char letter = escape_letter(text[i]); letter != 0) {
      out += '\\';
      out += letter;
    } else if (byte < 0x80) {
      append_unit(byte);
    } else {
      const int extra = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
      uint32_t point = byte & (0x3fU >> extra);
      for (int k = 0; k < extra && i + 1 < text.size(); ++k) {
        point = (point << 6) | (static_cast<unsigned char>(text[++i]) & 0x3fU);
      }
      if (point >= 0x10000) {
        append_unit(0xd800 + ((point - 0x10000) >> 10));
        append_unit(0xdc00 + ((point - 0x10000) & 0x3ff));
      } else {
        append_unit(point);
      }
    }
  }
  out += '"';
}

}  // namespace graft
