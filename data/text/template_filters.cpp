// The filters and tests of template_library.h, a row each.
#include <algorithm>
#include <array>
#include <span>

#include "core/error.h"
#include "data/text/template_library.h"
#include "data/text/template_strings.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {
namespace {

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

}  // namespace graft::data::jinja
