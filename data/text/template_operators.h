// What operators do with values (internal to data/text).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "data/text/template_library.h"

namespace graft::data::jinja {

// Errors of all: kData for kinds of values that Python refuses, and past a limit of the budget.

// Charges for `text` and for what `out` becomes.
void append_text(Budget& budget, const Text& text, Text& out);
// + - * / // %
Value binary_operation(Budget& budget,
                       const std::string& operation,
                       Value left,
                       const Value& right);
// == != in "not in" < > <= >=
bool compare(const std::string& operation, const Value& left, const Value& right);
Value with_sign(const Value& value, int64_t sign);
// object[start:stop:step] of a string, list or tuple, by characters.
Value slice_of(Budget& budget,
               const Value& object,
               std::optional<int64_t> start,
               std::optional<int64_t> stop,
               int64_t step);

}  // namespace graft::data::jinja
