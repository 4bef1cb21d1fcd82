// The methods of template_library.h, a row each.
#include <algorithm>
#include <array>
#include <span>

#include "data/text/template_library.h"
#include "data/text/template_strings.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {
namespace {

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

}  // namespace

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

}  // namespace graft::data::jinja
