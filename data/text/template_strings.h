// What Python does with strings; every byte of a result keeps the origin of the byte it came from.
// `self` is a string. Errors: kData for wrong arguments and for what graft does not do.
#pragma once

#include <cstdint>
#include <vector>

#include "data/text/template_library.h"
#include "data/text/template_value.h"

namespace graft::data::jinja {

enum class Sides { kBoth, kLeft, kRight };
// str.strip with white space (chars == nullptr) or any of the given characters.
Text strip(const Text& text, Sides sides, const Value* chars);

Value split(Budget& budget, const Value& self, const Arguments& arguments);
Value split_lines(Budget& budget, const Value& self, const Arguments& arguments);
// At most `most` times; any number when it is negative.
Value replace(Budget& budget, const Text& text, const Value& from, const Value& to, int64_t most);

enum class Case { kUpper, kLower, kCapitalize, kTitle };
Value change_case(Budget& budget, const Text& text, Case change);

Value join(Budget& budget, const std::vector<Value>& items, const Text& between);
// startswith / endswith with a string or a tuple of strings.
bool has_affix(const Value& self, const Arguments& arguments, bool at_end);
// str.format with plain "{}" fields only.
Value format(Budget& budget, const Value& self, const Arguments& arguments);

}  // namespace graft::data::jinja
