#include "data/text/template_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <utf8proc.h>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {

Text::Text(std::string bytes, Tag tag) : bytes_(std::move(bytes)), first_{bytes_.size(), tag} {}

void Text::append(std::string_view bytes, Tag tag) {
  if (bytes.empty()) return;
  const bool was_empty = bytes_.empty();
  bytes_.append(bytes);
  Run& last = more_.empty() ? first_ : more_.back();
  if (was_empty || last.tag == tag) {
    last = {bytes_.size(), tag};
    return;
  }
  if (more_.empty()) {
    more_.reserve(4);
    more_.push_back(first_);
  }
  more_.push_back({bytes_.size(), tag});
}

size_t Text::run_at(size_t at) const {
  const std::span<const Run> all = runs();
  const auto run = std::upper_bound(all.begin(), all.end(), at,
                                    [](size_t value, const Run& r) { return value < r.end; });
  return static_cast<size_t>(run - all.begin());
}

void Text::append(const Text& other, size_t begin, size_t end) {
  const std::span<const Run> all = other.runs();
  for (size_t run = other.run_at(begin); begin < end; ++run) {
    const size_t stop = std::min(end, all[run].end);
    append(std::string_view(other.bytes_).substr(begin, stop - begin), all[run].tag);
    begin = stop;
  }
}

Text Text::part(size_t begin, size_t end) const {
  Text result;
  result.append(*this, begin, end);
  return result;
}

Tag Text::tag_at(size_t at) const {
  const std::span<const Run> all = runs();
  return all.empty() ? Tag{} : all[std::min(run_at(at), all.size() - 1)].tag;
}

void Text::mark_generation(size_t begin, int32_t number) {
  if (begin >= size()) return;
  if (more_.empty()) more_.push_back(first_);
  size_t run = run_at(begin);
  const size_t run_begin = run == 0 ? 0 : more_[run - 1].end;
  if (run_begin < begin) {
    more_.insert(more_.begin() + static_cast<std::ptrdiff_t>(run), {begin, more_[run].tag});
    ++run;
  }
  for (; run < more_.size(); ++run) more_[run].tag.generation = number;
}

Value Value::list(std::vector<Value> items, bool is_tuple, Tag tag) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->depth = std::max(list->depth, item.depth() + 1);
  if (list->depth > kMaxNesting) fail(ExitCode::kData, "lists are nested too deeply");
  list->items = std::move(items);
  list->is_tuple = is_tuple;
  return Value(std::shared_ptr<const List>(std::move(list)), tag);
}

Value Value::dict(std::vector<std::pair<std::shared_ptr<const Text>, Value>> items, Tag tag) {
  auto dict = std::make_shared<Dict>();
  for (const auto& item : items) dict->depth = std::max(dict->depth, item.second.depth() + 1);
  if (dict->depth > kMaxNesting) fail(ExitCode::kData, "dicts are nested too deeply");
  dict->items = std::move(items);
  return Value(std::shared_ptr<const Dict>(std::move(dict)), tag);
}

Value Value::from_json(const Json& json, Tag tag) {
  if (json.is_null()) return Value(None{}, tag);
  if (json.is_bool()) return Value(Data(json.as_bool()), tag);
  if (json.is_int()) return Value(Data(json.as_int()), tag);
  if (json.is_float()) return Value(Data(json.as_double()), tag);
  if (json.is_string()) return string(json.as_string(), tag);
  if (json.is_array()) {
    std::vector<Value> items;
    for (const Json& item : json.as_array()) items.push_back(from_json(item, tag));
    return list(std::move(items), false, tag);
  }
  std::vector<std::pair<std::shared_ptr<const Text>, Value>> items;
  for (const auto& [key, value] : json.as_object()) {
    items.emplace_back(std::make_shared<Text>(key, tag), from_json(value, tag));
  }
  return dict(std::move(items), tag);
}

std::shared_ptr<const Text> Value::shared_text() const {
  const auto* text = get<std::shared_ptr<const Text>>();
  return text ? *text : nullptr;
}

const Text* Value::text() const {
  const auto* text = get<std::shared_ptr<const Text>>();
  return text ? text->get() : nullptr;
}
const List* Value::list() const {
  const auto* list = get<std::shared_ptr<const List>>();
  return list ? list->get() : nullptr;
}
const Dict* Value::dict() const {
  const auto* dict = get<std::shared_ptr<const Dict>>();
  return dict ? dict->get() : nullptr;
}
Namespace* Value::name_space() const {
  const auto* space = get<std::shared_ptr<Namespace>>();
  return space ? space->get() : nullptr;
}
Loop* Value::loop() const {
  const auto* loop = get<std::shared_ptr<Loop>>();
  return loop ? loop->get() : nullptr;
}
const Callable* Value::callable() const {
  const auto* callable = get<std::shared_ptr<const Callable>>();
  return callable ? callable->get() : nullptr;
}

int64_t Value::as_integer() const {
  if (const bool* value = get<bool>()) return *value ? 1 : 0;
  return *get<int64_t>();
}

double Value::as_double() const {
  if (const double* value = get<double>()) return *value;
  return static_cast<double>(as_integer());
}

int Value::depth() const {
  if (const List* items = list()) return items->depth;
  if (const Dict* items = dict()) return items->depth;
  return 0;
}

bool Value::is_true() const {
  if (is_undefined() || is_none()) return false;
  if (is_integer()) return as_integer() != 0;
  if (const double* value = get<double>()) return *value != 0.0;
  if (const Text* value = text()) return value->size() > 0;
  if (const List* value = list()) return !value->items.empty();
  if (const Dict* value = dict()) return !value->items.empty();
  return true;
}

std::string_view Value::type_name() const {
  constexpr std::array<std::string_view, 11> names = {"undefined", "None", "bool",    "int",
                                                      "float",     "str",  "list",    "dict",
                                                      "Namespace", "loop", "callable"};
  if (const List* value = list(); value && value->is_tuple) return "tuple";
  return names[data_.index()];
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name->bytes() == key) return &value;
  }
  return nullptr;
}

Value* Namespace::find(std::string_view name) {
  for (auto& item : items) {
    if (item.first == name) return &item.second;
  }
  return nullptr;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
    return a.as_double() == b.as_double();
  }
  if (a.text() && b.text()) return a.text()->bytes() == b.text()->bytes();
  if (a.list() && b.list()) {
    const List& x = *a.list();
    const List& y = *b.list();
    return x.is_tuple == y.is_tuple && x.items.size() == y.items.size() &&
           std::equal(x.items.begin(), x.items.end(), y.items.begin(), equal);
  }
  if (a.dict() && b.dict()) {
    if (a.dict()->items.size() != b.dict()->items.size()) return false;
    for (const auto& [key, value] : a.dict()->items) {
      const Value* other = b.dict()->find(key->bytes());
      if (!other || !equal(value, *other)) return false;
    }
    return true;
  }
  if (a.callable() || b.callable()) return a.callable() == b.callable();
  if (a.loop() || b.loop()) return a.loop() == b.loop();
  if (a.name_space() || b.name_space()) return a.name_space() == b.name_space();
  return (a.is_undefined() && b.is_undefined()) || (a.is_none() && b.is_none());
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 64> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::scientific)
                       .ptr;
  const std::string scientific(buffer.data(), end);
  const size_t e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  if (exponent < -4 || exponent >= 16) {  // Python's repr; to_chars writes two digits as it does
    return scientific;
  }
  const auto fixed =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed)
          .ptr;
  std::string text(buffer.data(), fixed);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

namespace {

void append_hex(std::string& out, char32_t character, int digits) {
  constexpr std::string_view hex = "0123456789abcdef";
  for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4) {
    out.push_back(hex[character >> shift & 15U]);
  }
}

bool is_printable(char32_t character) {
  if (character < 0x7F) return character >= 0x20;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

void append_repr(Text& out, const Text& text) {
  const std::string& bytes = text.bytes();
  const bool has_single = bytes.find('\'') != std::string::npos;
  const char quote = has_single && bytes.find('"') == std::string::npos ? '"' : '\'';
  const Tag first = text.tag_at(0);
  out.append(std::string_view(&quote, 1), first);
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = utf8_length(bytes[at]);
    const char32_t c = utf8_at(bytes, at);
    std::string shown;
    if (bytes[at] == quote || c == '\\') {
      shown = std::string("\\") + bytes[at];
    } else if (c == '\n') {
      shown = "\\n";
    } else if (c == '\r') {
      shown = "\\r";
    } else if (c == '\t') {
      shown = "\\t";
    } else if (is_printable(c)) {
      shown = bytes.substr(at, length);
    } else {
      shown = c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
      append_hex(shown, c, c < 0x100 ? 2 : c < 0x10000 ? 4 : 8);
    }
    out.append(shown, text.tag_at(at));
    at += length;
  }
  out.append(std::string_view(&quote, 1), first);
}

void append_repr(Text& out, const Value& value) {
  const Tag tag = value.tag();
  if (const Text* text = value.text()) {
    append_repr(out, *text);
  } else if (const List* list = value.list()) {
    out.append(list->is_tuple ? "(" : "[", tag);
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.append(", ", tag);
      append_repr(out, list->items[i]);
    }
    if (list->is_tuple) {
      out.append(list->items.size() == 1 ? ",)" : ")", tag);
    } else {
      out.append("]", tag);
    }
  } else if (const Dict* dict = value.dict()) {
    out.append("{", tag);
    for (size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out.append(", ", tag);
      append_repr(out, *dict->items[i].first);
      out.append(": ", tag);
      append_repr(out, dict->items[i].second);
    }
    out.append("}", tag);
  } else if (value.is_undefined()) {
    out.append("Undefined", tag);
  } else {
    out.append(to_text(value));
  }
}

class JsonWriter {
 public:
  JsonWriter(Text& out, const JsonFormat& format) : out_(out), format_(format) {}

  void write(const Value& value, int64_t level) {
    const Tag tag = value.tag();
    if (const Text* text = value.text()) {
      write_string(*text, tag);
    } else if (const List* list = value.list()) {
      write_items('[', ']', list->items.size(), level, tag,
                  [&](size_t i) { write(list->items[i], level + 1); });
    } else if (const Dict* dict = value.dict()) {
      std::vector<size_t> order(dict->items.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      if (format_.sort_keys) {
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
          return dict->items[a].first->bytes() < dict->items[b].first->bytes();
        });
      }
      write_items('{', '}', order.size(), level, tag, [&](size_t i) {
        write_string(*dict->items[order[i]].first, tag);
        separator(format_.key_separator, tag);
        write(dict->items[order[i]].second, level + 1);
      });
    } else if (value.is_none()) {
      out_.append("null", tag);
    } else if (const bool* flag = value.get<bool>()) {
      out_.append(*flag ? "true" : "false", tag);
    } else if (const double* number = value.get<double>()) {
      out_.append(std::isnan(*number)   ? "NaN"
                  : std::isinf(*number) ? (*number < 0 ? "-Infinity" : "Infinity")
                                        : float_text(*number),
                  tag);
    } else if (value.is_integer()) {
      out_.append(std::to_string(value.as_integer()), tag);
    } else {
      fail(ExitCode::kData,
           "Object of type " + std::string(value.type_name()) + " is not JSON serializable");
    }
  }

 private:
  void separator(const Text& text, Tag tag) { out_.append(text.bytes(), tag); }

  void line(int64_t level, Tag tag) {
    if (format_.indent < 0) return;
    out_.append("\n" + std::string(static_cast<size_t>(format_.indent * level), ' '), tag);
  }

  template <class WriteItem>
  void write_items(
      char open, char close, size_t count, int64_t level, Tag tag, const WriteItem& item) {
    out_.append(std::string_view(&open, 1), tag);
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) separator(format_.item_separator, tag);
      line(level + 1, tag);
      item(i);
    }
    if (count > 0) line(level, tag);
    out_.append(std::string_view(&close, 1), tag);
  }

  void write_string(const Text& text, Tag empty_tag) {
    const std::string& bytes = text.bytes();
    const Tag first = bytes.empty() ? empty_tag : text.tag_at(0);
    out_.append("\"", first);
    for (size_t at = 0; at < bytes.size();) {
      const size_t length = utf8_length(bytes[at]);
      const char32_t c = utf8_at(bytes, at);
      std::string shown;
      if (c == '"' || c == '\\') {
        shown = std::string("\\") + bytes[at];
      } else if (c == '\n') {
        shown = "\\n";
      } else if (c == '\r') {
        shown = "\\r";
      } else if (c == '\t') {
        shown = "\\t";
      } else if (c == '\b') {
        shown = "\\b";
      } else if (c == '\f') {
        shown = "\\f";
      } else if (c < 0x20 || (format_.ascii && c > 0x7E && c < 0x10000)) {
        shown = "\\u";
        append_hex(shown, c, 4);
      } else if (format_.ascii && c >= 0x10000) {
        shown = "\\u";
        append_hex(shown, 0xD800U + ((c - 0x10000U) >> 10), 4);
        shown += "\\u";
        append_hex(shown, 0xDC00U + ((c - 0x10000U) & 0x3FFU), 4);
      } else {
        shown = bytes.substr(at, length);
      }
      out_.append(shown, text.tag_at(at));
      at += length;
    }
    out_.append("\"", first);
  }

  Text& out_;
  const JsonFormat& format_;
};

}  // namespace

Text to_repr(const Value& value) {
  Text out;
  append_repr(out, value);
  return out;
}

Text to_text(const Value& value) {
  const Tag tag = value.tag();
  if (const Text* text = value.text()) return *text;
  if (value.is_undefined()) return {};
  if (value.is_none()) return {"None", tag};
  if (const bool* flag = value.get<bool>()) return {*flag ? "True" : "False", tag};
  if (const double* number = value.get<double>()) return {float_text(*number), tag};
  if (value.is_integer()) return {std::to_string(value.as_integer()), tag};
  if (value.list() || value.dict()) return to_repr(value);
  fail(ExitCode::kData, "cannot write a " + std::string(value.type_name()) + " as text");
}

Text to_json(const Value& value, const JsonFormat& format) {
  Text out;
  JsonWriter(out, format).write(value, 0);
  return out;
}

}  // namespace graft::data::jinja
