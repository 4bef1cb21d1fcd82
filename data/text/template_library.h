// What templates can call: filters and tests (template_filters.cpp) and methods
// (template_methods.cpp), one row each in a table; and what operators do with values.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/text/template_value.h"

namespace graft::data::jinja {

constexpr int64_t kMaxSteps = 5'000'000;
constexpr size_t kMaxTextBytes = size_t{64} << 20;
constexpr int64_t kMaxRange = 100'000;  // jinja2.sandbox.MAX_RANGE

// A kData error; whoever evaluates adds the place in the template.
[[noreturn]] void bad(const std::string& what);

// Counts what a render costs. Errors: kData past a limit.
class Budget {
 public:
  void charge(int64_t steps);
  void charge_text(size_t bytes);   // a text that was or will be built
  void charge_items(size_t items);  // a list
  // Wraps a finished text.
  Value string(Text text);

 private:
  int64_t steps_ = 0;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
  // The argument at `index`, else the one named `keyword`, else nullptr.
  const Value* find(size_t index, std::string_view keyword) const;
  // Errors: kData when there are more positional arguments or other keywords.
  void allow(size_t count, std::initializer_list<std::string_view> keywords = {}) const;
};

// Errors: kData naming an unknown filter, or a wrong input.
Value run_filter(Budget& budget,
                 std::string_view name,
                 const Value& input,
                 const Arguments& arguments);
bool run_test(std::string_view name, const Value& input, const Arguments& arguments);
// Whether values of this kind have a method `name` (in Python), known to graft or not.
bool has_method(const Value& self, std::string_view name);
Value run_method(Budget& budget,
                 std::string_view name,
                 const Value& self,
                 const Arguments& arguments);

// The items that a `for` walks over. Errors: kData for what Python cannot iterate.
std::vector<Value> items_of(Budget& budget, const Value& value);
// The list of a dict's (key, value).
Value dict_items(Budget& budget, const Dict& dict);
// value.name and value[key]; undefined when there is none. Errors: kData on an undefined value.
Value attribute_of(const Value& value, std::string_view name);
Value item_of(const Value& value, const Value& key);
bool contains(const Value& container, const Value& item);
bool less(const Value& a, const Value& b);  // Errors: kData for kinds without an order
[[noreturn]] void fail_undefined(const Value& value);
// The text of a value that must be a string.
const Text& need_text(const Value& value, std::string_view what);

}  // namespace graft::data::jinja
