#include "data/text/template_library.h"

#include <algorithm>
#include <array>
#include <span>

#include <utf8proc.h>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {
namespace {

[[noreturn]] void bad(const std::string& what) {
  fail(ExitCode::kData, what);
}

enum class Sides { kBoth, kLeft, kRight };

// str.strip with white space (chars == nullptr) or any of the given characters.
Text strip(const Text& text, Sides sides, const Value* chars) {
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  size_t end = bytes.size();
  const auto is_unwanted = [&](size_t at) {
    if (!chars) return is_space(utf8_at(bytes, at));
    const std::string& set = chars->text()->bytes();
    return set.find(bytes.substr(at, utf8_length(bytes[at]))) != std::string::npos;
  };
  if (chars && chars->is_none()) chars = nullptr;
  if (chars && !chars->text()) bad("strip needs a string");
  if (sides != Sides::kRight) {
    while (begin < end && is_unwanted(begin)) begin += utf8_length(bytes[begin]);
  }
  while (sides != Sides::kLeft && end > begin) {
    size_t last = end - 1;
    while (is_utf8_continuation(bytes[last])) --last;
    if (!is_unwanted(last)) break;
    end = last;
  }
  return text.part(begin, end);
}

std::vector<Value> split_at_space(const Text& text, int64_t most) {
  const std::string& bytes = text.bytes();
  std::vector<Value> parts;
  size_t at = leading_space(bytes);
  while (at < bytes.size()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(Value::string(text.part(at, end_without_space(bytes))));
      break;
    }
    size_t end = at;
    while (end < bytes.size() && !is_space(utf8_at(bytes, end))) end += utf8_length(bytes[end]);
    parts.push_back(Value::string(text.part(at, end)));
    at = end + leading_space(std::string_view(bytes).substr(end));
  }
  return parts;
}

Value split(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(2, {"sep", "maxsplit"});
  const Text& text = *self.text();
  const Value* separator = arguments.find(0, "sep");
  const Value* count = arguments.find(1, "maxsplit");
  if (count && !count->is_integer()) bad("split needs an integer maxsplit");
  const int64_t most = count ? count->as_integer() : -1;
  std::vector<Value> parts;
  if (!separator || separator->is_none()) {
    parts = split_at_space(text, most);
  } else {
    const std::string& between = need_text(*separator, "the separator of split").bytes();
    if (between.empty()) bad("empty separator");
    size_t begin = 0;
    for (size_t at = text.bytes().find(between);
         at != std::string::npos && (most < 0 || static_cast<int64_t>(parts.size()) < most);
         at = text.bytes().find(between, begin)) {
      parts.push_back(Value::string(text.part(begin, at)));
      begin = at + between.size();
    }
    parts.push_back(Value::string(text.part(begin, text.size())));
  }
  budget.charge_items(parts.size());
  return Value::list(std::move(parts));
}

Value split_lines(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(0);
  const Text& text = *self.text();
  std::vector<Value> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = utf8_at(text.bytes(), at);
    const size_t length = utf8_length(text.bytes()[at]);
    const bool is_end =
        (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    size_t next = at + length;
    if (is_end) {
      lines.push_back(Value::string(text.part(begin, at)));
      if (c == '\r' && next < text.size() && text.bytes()[next] == '\n') ++next;
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back(Value::string(text.part(begin, text.size())));
  budget.charge_items(lines.size());
  return Value::list(std::move(lines));
}

Value replace(Budget& budget, const Text& text, const Value& from, const Value& to, int64_t most) {
  const std::string& old = need_text(from, "replace").bytes();
  const Text& fresh = need_text(to, "replace");
  Text result;
  size_t begin = 0;
  int64_t done = 0;
  const auto add_fresh = [&] {
    budget.charge_text(fresh.size());
    if (result.size() + fresh.size() > kMaxTextBytes) budget.charge_text(kMaxTextBytes + 1);
    result.append(fresh);
  };
  if (old.empty()) {  // before every character and at the end, as Python does
    for (size_t at = 0; at < text.size() && (most < 0 || done < most); ++done) {
      add_fresh();
      const size_t next = at + utf8_length(text.bytes()[at]);
      result.append(text, at, next);
      begin = at = next;
    }
    if (begin == text.size() && (most < 0 || done < most)) add_fresh();
  } else {
    for (size_t at = text.bytes().find(old); at != std::string::npos && (most < 0 || done < most);
         at = text.bytes().find(old, begin), ++done) {
      result.append(text, begin, at);
      add_fresh();
      begin = at + old.size();
    }
  }
  result.append(text, begin, text.size());
  return budget.string(std::move(result));
}

enum class Case { kUpper, kLower, kCapitalize, kTitle };

// Characters whose Python mapping is longer than one character or depends on their place.
bool has_special_case(char32_t c, bool upper) {
  if (!upper) return c == 0x130 || c == 0x3A3;
  return c == 0x149 || c == 0x1F0 || c == 0x390 || c == 0x3B0 || c == 0x587 ||
         (c >= 0x1E96 && c <= 0x1E9E) || (c >= 0x1F50 && c <= 0x1FFC) ||
         (c >= 0xFB00 && c <= 0xFB17) || (c >= 0x1C4 && c <= 0x1CC) || (c >= 0x1F1 && c <= 0x1F3);
}

Value change_case(Budget& budget, const Text& text, Case change) {
  Text result;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text.bytes()[at]);
    const char32_t c = utf8_at(text.bytes(), at);
    const auto point = static_cast<utf8proc_int32_t>(c);
    const bool is_letter = utf8proc_toupper(point) != point || utf8proc_tolower(point) != point;
    const bool upper = change == Case::kUpper || (change == Case::kCapitalize && at == 0) ||
                       (change == Case::kTitle && !in_word);
    if (has_special_case(c, upper)) bad("changing the case of this character is not supported");
    std::string changed;
    if (c == 0xDF && upper) {
      changed = change == Case::kUpper ? "SS" : "Ss";  // sharp s
    } else {
      append_utf8(changed,
                  static_cast<char32_t>(upper ? utf8proc_toupper(point) : utf8proc_tolower(point)));
    }
    result.append(changed, text.tag_at(at));
    in_word = is_letter;
    at += length;
  }
  return budget.string(std::move(result));
}

Value join(Budget& budget, const std::vector<Value>& items, const Text& between) {
  Text result;
  for (size_t i = 0; i < items.size(); ++i) {
    const Text text = to_text(items[i]);
    budget.charge_text(text.size() + between.size());
    if (i > 0) result.append(between);
    result.append(text);
    if (result.size() > kMaxTextBytes) budget.charge_text(result.size());
  }
  return budget.string(std::move(result));
}

// startswith / endswith with a string or a tuple of strings.
bool has_affix(const Value& self, const Arguments& arguments, bool at_end) {
  arguments.allow(1);
  if (arguments.positional.empty()) bad("startswith and endswith need a string");
  const std::string& text = self.text()->bytes();
  const auto matches = [&](const Value& affix) {
    const std::string& bytes = need_text(affix, "startswith or endswith").bytes();
    return at_end ? text.ends_with(bytes) : text.starts_with(bytes);
  };
  const Value& affix = arguments.positional[0];
  if (const List* list = affix.list(); list && list->is_tuple) {
    return std::any_of(list->items.begin(), list->items.end(), matches);
  }
  return matches(affix);
}

// str.format with plain "{}" fields only.
Value format(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(64);
  const Text& pattern = *self.text();
  Text result;
  size_t next = 0;
  for (size_t at = 0; at < pattern.size();) {
    const std::string two = pattern.bytes().substr(at, 2);
    if (two == "{}") {
      if (next == arguments.positional.size()) bad("format has fewer arguments than fields");
      result.append(to_text(arguments.positional[next++]));
    } else if (two == "{{" || two == "}}") {
      result.append(pattern, at, at + 1);
    } else if (two[0] == '{' || two[0] == '}') {
      bad("format fields other than {} are not supported");
    } else {
      result.append(pattern, at, at + 1);
      ++at;
      continue;
    }
    at += 2;
  }
  return budget.string(std::move(result));
}

// ---- methods

using Method = Value (*)(Budget&, const Value& self, const Arguments&);
struct MethodRow {
  std::string_view name;
  Method run;
};

Value strip_method(const Value& self, const Arguments& arguments, Sides sides) {
  arguments.allow(1, {"chars"});
  return Value::string(strip(*self.text(), sides, arguments.find(0, "chars")));
}

constexpr std::array kStringMethods = {
    MethodRow{"strip",
              [](Budget&, const Value& s, const Arguments& a) {
                return strip_method(s, a, Sides::kBoth);
              }},
    MethodRow{"lstrip",
              [](Budget&, const Value& s, const Arguments& a) {
                return strip_method(s, a, Sides::kLeft);
              }},
    MethodRow{"rstrip",
              [](Budget&, const Value& s, const Arguments& a) {
                return strip_method(s, a, Sides::kRight);
              }},
    MethodRow{"split", split},
    MethodRow{"splitlines", split_lines},
    MethodRow{"startswith",
              [](Budget&, const Value& s, const Arguments& a) {
                return Value::boolean(has_affix(s, a, false));
              }},
    MethodRow{"endswith",
              [](Budget&, const Value& s, const Arguments& a) {
                return Value::boolean(has_affix(s, a, true));
              }},
    MethodRow{"replace",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(3, {"count"});
                if (a.positional.size() < 2) bad("replace needs two strings");
                const Value* count = a.find(2, "count");
                if (count && !count->is_integer()) bad("replace needs an integer count");
                return replace(b, *s.text(), a.positional[0], a.positional[1],
                               count ? count->as_integer() : -1);
              }},
    MethodRow{"upper",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return change_case(b, *s.text(), Case::kUpper);
              }},
    MethodRow{"lower",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return change_case(b, *s.text(), Case::kLower);
              }},
    MethodRow{"title",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return change_case(b, *s.text(), Case::kTitle);
              }},
    MethodRow{"capitalize",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return change_case(b, *s.text(), Case::kCapitalize);
              }},
    MethodRow{"join",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(1);
                if (a.positional.empty()) bad("join needs a list");
                const std::vector<Value> items = items_of(b, a.positional[0]);
                for (const Value& item : items) need_text(item, "join");
                return join(b, items, *s.text());
              }},
    MethodRow{"format", format},
    MethodRow{"find",
              [](Budget&, const Value& s, const Arguments& a) {
                a.allow(1);
                if (a.positional.empty()) bad("find needs a string");
                const std::string& text = s.text()->bytes();
                const size_t at = text.find(need_text(a.positional[0], "find").bytes());
                if (at == std::string::npos) return Value::integer(-1);
                return Value::integer(
                    static_cast<int64_t>(utf8_count(std::string_view(text).substr(0, at))));
              }},
    MethodRow{"count",
              [](Budget&, const Value& s, const Arguments& a) {
                a.allow(1);
                if (a.positional.empty()) bad("count needs a string");
                const std::string& part = need_text(a.positional[0], "count").bytes();
                if (part.empty()) bad("count of the empty string is not supported");
                int64_t found = 0;
                const std::string& text = s.text()->bytes();
                for (size_t at = text.find(part); at != std::string::npos;
                     at = text.find(part, at + part.size())) {
                  ++found;
                }
                return Value::integer(found);
              }},
};

// Python's other string methods: known to be missing, so that they are refused and not undefined.
constexpr std::array<std::string_view, 32> kOtherStringMethods = {
    "casefold", "center",    "encode",      "expandtabs",   "format_map",   "index",
    "isalnum",  "isalpha",   "isascii",     "isdecimal",    "isdigit",      "isidentifier",
    "islower",  "isnumeric", "isprintable", "isspace",      "istitle",      "isupper",
    "ljust",    "maketrans", "partition",   "removeprefix", "removesuffix", "rfind",
    "rindex",   "rjust",     "rpartition",  "rsplit",       "swapcase",     "translate",
    "zfill",    "__len__"};

Value dict_items(Budget& budget, const Dict& dict) {
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    items.push_back(
        Value::list({Value(std::shared_ptr<const Text>(key)), value}, /*is_tuple=*/true));
  }
  budget.charge_items(items.size() * 2);
  return Value::list(std::move(items));
}

constexpr std::array kDictMethods = {
    MethodRow{"get",
              [](Budget&, const Value& s, const Arguments& a) {
                a.allow(2);
                if (a.positional.empty()) bad("get needs a key");
                const Text* key = a.positional[0].text();
                const Value* found = key ? s.dict()->find(key->bytes()) : nullptr;
                if (found) return *found;
                return a.positional.size() > 1 ? a.positional[1] : Value::none();
              }},
    MethodRow{"items",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return dict_items(b, *s.dict());
              }},
    MethodRow{"keys",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                return Value::list(items_of(b, s));
              }},
    MethodRow{"values",
              [](Budget& b, const Value& s, const Arguments& a) {
                a.allow(0);
                std::vector<Value> values;
                for (const auto& item : s.dict()->items) values.push_back(item.second);
                b.charge_items(values.size());
                return Value::list(std::move(values));
              }},
};
constexpr std::array<std::string_view, 7> kOtherDictMethods = {
    "clear", "copy", "fromkeys", "pop", "popitem", "setdefault", "update"};
constexpr std::array<std::string_view, 11> kOtherListMethods = {
    "append", "clear", "copy",   "count",   "extend", "index",
    "insert", "pop",   "remove", "reverse", "sort"};

const MethodRow* find_method(std::span<const MethodRow> rows, std::string_view name) {
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const MethodRow& r) { return r.name == name; });
  return row == rows.end() ? nullptr : &*row;
}

bool is_in(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// ---- tests

using Test = bool (*)(const Value&, const Arguments&);
struct TestRow {
  std::string_view name;
  Test run;
};

const Value& only(const Arguments& arguments) {
  if (arguments.positional.size() != 1) bad("this test needs one argument");
  return arguments.positional[0];
}

bool is_equal(const Value& v, const Arguments& a) {
  return equal(v, only(a));
}
bool is_different(const Value& v, const Arguments& a) {
  return !equal(v, only(a));
}
bool is_sequence(const Value& v, const Arguments&) {
  return v.text() || v.list() || v.dict() || v.is_undefined();
}

constexpr std::array kTests = {
    TestRow{"defined", [](const Value& v, const Arguments&) { return !v.is_undefined(); }},
    TestRow{"undefined", [](const Value& v, const Arguments&) { return v.is_undefined(); }},
    TestRow{"none", [](const Value& v, const Arguments&) { return v.is_none(); }},
    TestRow{"boolean", [](const Value& v, const Arguments&) { return v.get<bool>() != nullptr; }},
    TestRow{"true", [](const Value& v, const Arguments&) { return v.get<bool>() && v.is_true(); }},
    TestRow{"false",
            [](const Value& v, const Arguments&) { return v.get<bool>() && !v.is_true(); }},
    TestRow{"integer",
            [](const Value& v, const Arguments&) { return v.get<int64_t>() != nullptr; }},
    TestRow{"float", [](const Value& v, const Arguments&) { return v.get<double>() != nullptr; }},
    TestRow{"number", [](const Value& v, const Arguments&) { return v.is_number(); }},
    TestRow{"string", [](const Value& v, const Arguments&) { return v.text() != nullptr; }},
    TestRow{"mapping", [](const Value& v, const Arguments&) { return v.dict() != nullptr; }},
    TestRow{"sequence", is_sequence},
    TestRow{"iterable", is_sequence},
    TestRow{"callable", [](const Value& v, const Arguments&) { return v.callable() != nullptr; }},
    TestRow{"odd",
            [](const Value& v, const Arguments&) {
              return v.is_integer() ? v.as_integer() % 2 != 0
                                    : (bad("odd needs an integer"), false);
            }},
    TestRow{"even",
            [](const Value& v, const Arguments&) {
              return v.is_integer() ? v.as_integer() % 2 == 0
                                    : (bad("even needs an integer"), false);
            }},
    TestRow{"divisibleby",
            [](const Value& v, const Arguments& a) {
              if (!v.is_integer() || !only(a).is_integer() || only(a).as_integer() == 0) {
                bad("divisibleby needs integers other than 0");
              }
              return v.as_integer() % only(a).as_integer() == 0;
            }},
    TestRow{"equalto", is_equal},
    TestRow{"eq", is_equal},
    TestRow{"==", is_equal},
    TestRow{"ne", is_different},
    TestRow{"!=", is_different},
    TestRow{"lt", [](const Value& v, const Arguments& a) { return less(v, only(a)); }},
    TestRow{"gt", [](const Value& v, const Arguments& a) { return less(only(a), v); }},
    TestRow{"in", [](const Value& v, const Arguments& a) { return contains(only(a), v); }},
};

// ---- filters

using Filter = Value (*)(Budget&, const Value&, const Arguments&);
struct FilterRow {
  std::string_view name;
  Filter run;
};

Value default_filter(Budget&, const Value& v, const Arguments& a) {
  a.allow(2, {"default_value", "boolean"});
  const Value* fallback = a.find(0, "default_value");
  const Value* boolean = a.find(1, "boolean");
  const bool is_missing = v.is_undefined() || (boolean && boolean->is_true() && !v.is_true());
  if (!is_missing) return v;
  return fallback ? *fallback : Value::string("");
}

Value length_filter(Budget&, const Value& v, const Arguments& a) {
  a.allow(0);
  if (v.is_undefined()) return Value::integer(0);
  if (const Text* text = v.text()) {
    return Value::integer(static_cast<int64_t>(utf8_count(text->bytes())));
  }
  if (const List* list = v.list()) return Value::integer(static_cast<int64_t>(list->items.size()));
  if (const Dict* dict = v.dict()) return Value::integer(static_cast<int64_t>(dict->items.size()));
  bad("object of type '" + std::string(v.type_name()) + "' has no length");
}

Value json_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(4, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonFormat format;
  if (const Value* ascii = a.find(0, "ensure_ascii")) format.ascii = ascii->is_true();
  if (const Value* indent = a.find(1, "indent"); indent && !indent->is_none()) {
    if (!indent->is_integer() || indent->as_integer() > 64) bad("tojson needs an indent of 0..64");
    format.indent = std::max<int64_t>(indent->as_integer(), 0);
  }
  format.item_separator = Text(format.indent < 0 ? ", " : ",", {});
  format.key_separator = Text(": ", {});
  if (const Value* pair = a.find(2, "separators"); pair && !pair->is_none()) {
    const List* list = pair->list();
    if (!list || list->items.size() != 2) bad("tojson needs two separators");
    format.item_separator = need_text(list->items[0], "separators");
    format.key_separator = need_text(list->items[1], "separators");
  }
  if (const Value* sort = a.find(3, "sort_keys")) format.sort_keys = sort->is_true();
  return budget.string(to_json(v, format));
}

// message.a.b as `attribute="a.b"`.
Value path_of(const Value& value, const Value& path) {
  if (path.is_integer()) return item_of(value, path);
  Value found = value;
  std::string_view rest = need_text(path, "attribute").bytes();
  while (!rest.empty()) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view part = rest.substr(0, dot);
    if (!part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos &&
        part.size() < 10) {
      found = item_of(found, Value::integer(std::stoll(std::string(part))));
    } else {
      found = item_of(found, Value::string(std::string(part)));
    }
    rest = rest.substr(std::min(dot + 1, rest.size()));
  }
  return found;
}

Value join_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(2, {"d", "attribute"});
  std::vector<Value> items = items_of(budget, v);
  if (const Value* attribute = a.find(1, "attribute"); attribute && !attribute->is_none()) {
    for (Value& item : items) item = path_of(item, *attribute);
  }
  const Value* between = a.find(0, "d");
  return join(budget, items, between ? to_text(*between) : Text());
}

Value list_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(0);
  return Value::list(items_of(budget, v));
}

Value items_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(0);
  if (v.is_undefined()) return Value::list({});
  if (!v.dict()) bad("Can only get item pairs from a mapping.");
  return dict_items(budget, *v.dict());
}

Value sorted_pairs(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(0);
  if (!v.dict()) bad("dictsort needs a dict");
  const Value pairs = dict_items(budget, *v.dict());
  std::vector<Value> items = pairs.list()->items;
  const auto key = [&](const Value& pair) {  // case-insensitive, as jinja2's default
    return change_case(budget, *pair.list()->items[0].text(), Case::kLower);
  };
  std::stable_sort(items.begin(), items.end(), [&](const Value& x, const Value& y) {
    return key(x).text()->bytes() < key(y).text()->bytes();
  });
  return Value::list(std::move(items));
}

Arguments tail(const Arguments& arguments, size_t from) {
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(std::min(
                                                            from, arguments.positional.size())),
                         arguments.positional.end());
  return rest;
}

Value map_filter(Budget& budget, const Value& v, const Arguments& a) {
  std::vector<Value> items = items_of(budget, v);
  if (a.positional.empty()) {
    a.allow(0, {"attribute", "default"});
    const Value* attribute = a.find(0, "attribute");
    const Value* fallback = a.find(1, "default");
    if (!attribute) bad("map needs a filter or attribute=");
    for (Value& item : items) {
      item = path_of(item, *attribute);
      if (item.is_undefined() && fallback) item = *fallback;
    }
    return Value::list(std::move(items));
  }
  const std::string name = need_text(a.positional[0], "map").bytes();
  Arguments rest = tail(a, 1);
  rest.keywords = a.keywords;
  for (Value& item : items) item = run_filter(budget, name, item, rest);
  return Value::list(std::move(items));
}

enum class Keep { kPassing, kFailing };
enum class Subject { kItem, kAttribute };

Value select(Budget& budget, const Value& v, const Arguments& a, Keep keep, Subject subject) {
  a.allow(64);
  const size_t skip = subject == Subject::kAttribute ? 1 : 0;
  if (a.positional.size() < skip) bad("selectattr and rejectattr need an attribute");
  const bool has_test = a.positional.size() > skip;
  const std::string test = has_test ? need_text(a.positional[skip], "a test").bytes() : "";
  const Arguments rest = tail(a, skip + 1);
  std::vector<Value> kept;
  for (Value& item : items_of(budget, v)) {
    budget.charge(1);
    const Value subject_value =
        subject == Subject::kAttribute ? path_of(item, a.positional[0]) : item;
    const bool passes = has_test ? run_test(test, subject_value, rest) : subject_value.is_true();
    if (passes == (keep == Keep::kPassing)) kept.push_back(std::move(item));
  }
  return Value::list(std::move(kept));
}

Value extreme(Budget& budget, const Value& v, const Arguments& a, bool greatest) {
  a.allow(0);
  const std::vector<Value> items = items_of(budget, v);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const auto best = greatest ? std::max_element(items.begin(), items.end(), less)
                             : std::min_element(items.begin(), items.end(), less);
  return *best;
}

Value unique_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(0);
  std::vector<Value> kept;
  std::vector<Value> keys;
  for (const Value& item : items_of(budget, v)) {
    const Value key = item.text() ? change_case(budget, *item.text(), Case::kLower) : item;
    budget.charge(static_cast<int64_t>(keys.size()));
    const bool is_known =
        std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return equal(k, key); });
    if (is_known) continue;
    keys.push_back(key);
    kept.push_back(item);
  }
  return Value::list(std::move(kept));
}

Value int_filter(Budget&, const Value& v, const Arguments& a) {
  a.allow(1, {"default"});
  const Value* fallback = a.find(0, "default");
  if (v.is_integer()) return Value::integer(v.as_integer(), v.tag());
  if (const double* number = v.get<double>()) {
    if (*number > -9e18 && *number < 9e18) return Value::integer(static_cast<int64_t>(*number));
  }
  if (const Text* text = v.text()) {
    const Text stripped = strip(*text, Sides::kBoth, nullptr);
    const std::string& digits = stripped.bytes();
    const size_t first = !digits.empty() && (digits[0] == '-' || digits[0] == '+') ? 1 : 0;
    if (digits.size() > first && digits.size() < 18 &&
        digits.find_first_not_of("0123456789", first) == std::string::npos) {
      return Value::integer(std::stoll(digits), stripped.tag_at(0));
    }
    if (digits.find_first_of("0123456789") != std::string::npos) {
      bad("int of this text is not supported");
    }
  }
  return fallback ? *fallback : Value::integer(0);
}

Value indent_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(3, {"width", "first", "blank"});
  const Value* width = a.find(0, "width");
  const Value* first = a.find(1, "first");
  const Value* blank = a.find(2, "blank");
  std::string margin(4, ' ');
  if (width && width->text()) {
    margin = width->text()->bytes();
  } else if (width) {
    if (!width->is_integer() || width->as_integer() < 0 || width->as_integer() > 1000) {
      bad("indent needs a width of 0..1000");
    }
    margin.assign(static_cast<size_t>(width->as_integer()), ' ');
  }
  const Text text = to_text(v);
  Text result;
  if (first && first->is_true()) result.append(margin, text.tag_at(0));
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.bytes().find('\n', begin), text.size());
    const bool is_blank = end == begin;
    if (begin > 0 && (!is_blank || (blank && blank->is_true()))) {
      budget.charge_text(margin.size());
      result.append(margin, text.tag_at(begin));
    }
    const size_t next = std::min(end + 1, text.size());
    result.append(text, begin, next);
    if (result.size() > kMaxTextBytes) budget.charge_text(result.size());
    begin = next;
  }
  return budget.string(std::move(result));
}

Value reverse_filter(Budget& budget, const Value& v, const Arguments& a) {
  a.allow(0);
  if (v.text()) bad("reverse of a string is not supported");
  std::vector<Value> items = items_of(budget, v);
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items));
}

Value end_item(Budget& budget, const Value& v, const Arguments& a, bool last) {
  a.allow(0);
  const std::vector<Value> items = items_of(budget, v);
  if (items.empty()) return Value::undefined("No item, sequence was empty.");
  return last ? items.back() : items.front();
}

Value case_filter(Budget& budget, const Value& v, const Arguments& a, Case change) {
  a.allow(0);
  return change_case(budget, to_text(v), change);
}

constexpr std::array kFilters = {
    FilterRow{"trim",
              [](Budget&, const Value& v, const Arguments& a) {
                a.allow(1, {"chars"});
                return Value::string(strip(to_text(v), Sides::kBoth, a.find(0, "chars")));
              }},
    FilterRow{"length", length_filter},
    FilterRow{"count", length_filter},
    FilterRow{"tojson", json_filter},
    FilterRow{"default", default_filter},
    FilterRow{"d", default_filter},
    FilterRow{"join", join_filter},
    FilterRow{"upper",
              [](Budget& b, const Value& v, const Arguments& a) {
                return case_filter(b, v, a, Case::kUpper);
              }},
    FilterRow{"lower",
              [](Budget& b, const Value& v, const Arguments& a) {
                return case_filter(b, v, a, Case::kLower);
              }},
    FilterRow{"capitalize",
              [](Budget& b, const Value& v, const Arguments& a) {
                return case_filter(b, v, a, Case::kCapitalize);
              }},
    FilterRow{"replace",
              [](Budget& b, const Value& v, const Arguments& a) {
                a.allow(3, {"count"});
                if (a.positional.size() < 2) bad("replace needs two strings");
                const Value* count = a.find(2, "count");
                const bool limited = count && count->is_integer();
                return replace(b, to_text(v), a.positional[0], a.positional[1],
                               limited ? count->as_integer() : -1);
              }},
    FilterRow{"list", list_filter},
    FilterRow{"items", items_filter},
    FilterRow{"dictsort", sorted_pairs},
    FilterRow{"map", map_filter},
    FilterRow{"select",
              [](Budget& b, const Value& v, const Arguments& a) {
                return select(b, v, a, Keep::kPassing, Subject::kItem);
              }},
    FilterRow{"reject",
              [](Budget& b, const Value& v, const Arguments& a) {
                return select(b, v, a, Keep::kFailing, Subject::kItem);
              }},
    FilterRow{"selectattr",
              [](Budget& b, const Value& v, const Arguments& a) {
                return select(b, v, a, Keep::kPassing, Subject::kAttribute);
              }},
    FilterRow{"rejectattr",
              [](Budget& b, const Value& v, const Arguments& a) {
                return select(b, v, a, Keep::kFailing, Subject::kAttribute);
              }},
    FilterRow{"string",
              [](Budget& b, const Value& v, const Arguments& a) {
                a.allow(0);
                return b.string(to_text(v));
              }},
    FilterRow{"safe",
              [](Budget& b, const Value& v, const Arguments& a) {
                a.allow(0);
                return b.string(to_text(v));
              }},
    FilterRow{
        "first",
        [](Budget& b, const Value& v, const Arguments& a) { return end_item(b, v, a, false); }},
    FilterRow{
        "last",
        [](Budget& b, const Value& v, const Arguments& a) { return end_item(b, v, a, true); }},
    FilterRow{"reverse", reverse_filter},
    FilterRow{
        "min",
        [](Budget& b, const Value& v, const Arguments& a) { return extreme(b, v, a, false); }},
    FilterRow{"max",
              [](Budget& b, const Value& v, const Arguments& a) { return extreme(b, v, a, true); }},
    FilterRow{"unique", unique_filter},
    FilterRow{"int", int_filter},
    FilterRow{"indent", indent_filter},
};

template <class Rows>
std::vector<std::string_view> names_of(const Rows& rows) {
  std::vector<std::string_view> names;
  for (const auto& row : rows) names.push_back(row.name);
  return names;
}

}  // namespace

void Budget::charge(int64_t steps) {
  steps_ += steps;
  if (steps_ > kMaxSteps) {
    fail(ExitCode::kData, "the template took more than " + std::to_string(kMaxSteps) + " steps", "",
         "templates of real models take less than 100,000: this one loops");
  }
}

void Budget::charge_text(size_t bytes) {
  if (bytes > kMaxTextBytes) {
    fail(ExitCode::kData,
         "the template built a text of more than " + std::to_string(kMaxTextBytes) + " bytes");
  }
  charge(static_cast<int64_t>(bytes / 16));
}

// An item takes 50 bytes: a million of them are no template's.
void Budget::charge_items(size_t items) {
  charge(static_cast<int64_t>(items) * 4);
}

Value Budget::string(Text text) {
  charge_text(text.size());
  return Value::string(std::move(text));
}

const Value* Arguments::find(size_t index, std::string_view keyword) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [name, value] : keywords) {
    if (name == keyword) return &value;
  }
  return nullptr;
}

void Arguments::allow(size_t count, std::initializer_list<std::string_view> known) const {
  if (positional.size() > count) {
    bad("at most " + std::to_string(count) + " arguments are known here, got " +
        std::to_string(positional.size()));
  }
  for (const auto& [name, value] : keywords) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      bad("the argument \"" + name + "\" is not known here");
    }
  }
}

Value run_filter(Budget& budget,
                 std::string_view name,
                 const Value& input,
                 const Arguments& arguments) {
  for (const FilterRow& row : kFilters) {
    if (row.name == name) return row.run(budget, input, arguments);
  }
  bad(unknown_name("filter", name, names_of(kFilters)));
}

bool run_test(std::string_view name, const Value& input, const Arguments& arguments) {
  for (const TestRow& row : kTests) {
    if (row.name == name) return row.run(input, arguments);
  }
  bad(unknown_name("test", name, names_of(kTests)));
}

bool has_method(const Value& self, std::string_view name) {
  if (self.text()) return find_method(kStringMethods, name) || is_in(kOtherStringMethods, name);
  if (self.dict()) return find_method(kDictMethods, name) || is_in(kOtherDictMethods, name);
  return self.list() && is_in(kOtherListMethods, name);
}

Value run_method(Budget& budget,
                 std::string_view name,
                 const Value& self,
                 const Arguments& arguments) {
  const MethodRow* row = self.text()   ? find_method(kStringMethods, name)
                         : self.dict() ? find_method(kDictMethods, name)
                                       : nullptr;
  if (!row) {
    bad("the method " + std::string(self.type_name()) + "." + std::string(name) +
        " is not supported");
  }
  return row->run(budget, self, arguments);
}

std::vector<Value> items_of(Budget& budget, const Value& value) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    items = list->items;
  } else if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) {
      items.push_back(Value(std::shared_ptr<const Text>(item.first)));
    }
  } else if (const Text* text = value.text()) {
    budget.charge_items(text->size());
    for (size_t at = 0; at < text->size();) {
      const size_t next = at + utf8_length(text->bytes()[at]);
      items.push_back(Value::string(text->part(at, next)));
      at = next;
    }
  } else if (!value.is_undefined()) {
    bad("'" + std::string(value.type_name()) + "' object is not iterable");
  }
  budget.charge_items(items.size());
  return items;
}

void fail_undefined(const Value& value) {
  bad("'" + value.get<Undefined>()->name + "' is undefined");
}

const Text& need_text(const Value& value, std::string_view what) {
  if (value.is_undefined()) fail_undefined(value);
  const Text* text = value.text();
  if (!text) {
    bad(std::string(what) + " needs a string, got a value of type " +
        std::string(value.type_name()));
  }
  return *text;
}

Value attribute_of(const Value& value, std::string_view name) {
  if (value.is_undefined()) fail_undefined(value);
  if (name.starts_with('_')) bad("access to attribute '" + std::string(name) + "' is unsafe");
  if (Namespace* space = value.name_space()) {
    const Value* found = space->find(name);
    return found ? *found : Value::undefined(std::string(name));
  }
  if (has_method(value, name)) {
    auto method = std::make_shared<Callable>();
    method->kind = Callable::Kind::kMethod;
    method->name = name;
    method->self = value;
    return Value(std::shared_ptr<const Callable>(std::move(method)));
  }
  if (const Dict* dict = value.dict()) {
    const Value* found = dict->find(name);
    return found ? *found : Value::undefined(std::string(name));
  }
  if (value.callable()) bad("attributes of macros and functions are not supported");
  return Value::undefined(std::string(value.type_name()) + " has no attribute '" +
                          std::string(name));
}

Value item_of(const Value& value, const Value& key) {
  if (value.is_undefined()) fail_undefined(value);
  if (key.is_integer() && (value.list() || value.text())) {
    const Text* text = value.text();
    const auto size =
        static_cast<int64_t>(text ? utf8_count(text->bytes()) : value.list()->items.size());
    const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
    if (index < 0 || index >= size) return Value::undefined("item " + std::to_string(index));
    if (!text) return value.list()->items[static_cast<size_t>(index)];
    size_t at = 0;
    for (int64_t i = 0; i < index; ++i) at += utf8_length(text->bytes()[at]);
    return Value::string(text->part(at, at + utf8_length(text->bytes()[at])));
  }
  const Text* name = key.text();
  if (!name) return Value::undefined("item of this kind");
  if (const Dict* dict = value.dict()) {
    if (const Value* found = dict->find(name->bytes())) return *found;
  }
  return attribute_of(value, name->bytes());
}

bool contains(const Value& container, const Value& item) {
  if (const Text* text = container.text()) {
    return text->bytes().find(need_text(item, "in").bytes()) != std::string::npos;
  }
  if (const List* list = container.list()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& other) { return equal(item, other); });
  }
  if (const Dict* dict = container.dict()) {
    return item.text() && dict->find(item.text()->bytes());
  }
  if (container.is_undefined()) return false;
  bad("argument of type '" + std::string(container.type_name()) + "' is not iterable");
}

bool less(const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() < b.as_integer();
    return a.as_double() < b.as_double();
  }
  if (a.text() && b.text()) return a.text()->bytes() < b.text()->bytes();
  bad("no order between '" + std::string(a.type_name()) + "' and '" + std::string(b.type_name()) +
      "'");
}

}  // namespace graft::data::jinja
