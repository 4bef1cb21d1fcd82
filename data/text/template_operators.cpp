#include "data/text/template_operators.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "data/text/utf8.h"

namespace graft::data::jinja {
namespace {

// The text of a string; that of a temporary one without a copy.
Text take_text(Value value) {
  std::shared_ptr<const Text> text = value.shared_text();
  value = Value();
  // Every Text is made as a Text: the const is the variant's.
  return text.use_count() == 1 ? std::move(const_cast<Text&>(*text)) : *text;
}

Value repeat(Budget& budget, const Value& text, const Value& count) {
  const int64_t times = std::max<int64_t>(count.as_integer(), 0);
  const auto size = static_cast<int64_t>(text.text()->size());
  if (size > 0 && times > static_cast<int64_t>(kMaxTextBytes) / size) {
    budget.charge_text(kMaxTextBytes + 1);
  }
  if (size == 0) return text;
  Text result;
  for (int64_t i = 0; i < times; ++i) result.append(*text.text());
  return budget.string(std::move(result));
}

Value arithmetic(char operation, const Value& left, const Value& right) {
  const bool is_exact = left.is_integer() && right.is_integer() && operation != '/';
  if (!is_exact) {
    const double a = left.as_double();
    const double b = right.as_double();
    if ((operation == '/' || operation == 'd' || operation == '%') && b == 0.0) {
      bad("division by zero");
    }
    if (operation == '%') bad("% of floats is not supported");
    return Value(Value::Data(operation == '+'   ? a + b
                             : operation == '-' ? a - b
                             : operation == '*' ? a * b
                             : operation == 'd' ? std::floor(a / b)
                                                : a / b));
  }
  const int64_t a = left.as_integer();
  const int64_t b = right.as_integer();
  int64_t result = 0;
  bool overflows = false;
  if (operation == '+') {
    overflows = __builtin_add_overflow(a, b, &result);
  } else if (operation == '-') {
    overflows = __builtin_sub_overflow(a, b, &result);
  } else if (operation == '*') {
    overflows = __builtin_mul_overflow(a, b, &result);
  } else {
    if (b == 0) bad("integer division or modulo by zero");
    if (b == -1) {  // the quotient of the smallest integer does not fit
      overflows = __builtin_sub_overflow(int64_t{0}, a, &result);
      if (operation == '%') return Value::integer(0);
    } else {  // rounds down, as Python does
      const bool rounds = a % b != 0 && (a < 0) != (b < 0);
      result = operation == 'd' ? a / b - (rounds ? 1 : 0) : a % b + (rounds ? b : 0);
    }
  }
  if (overflows) bad("integers of more than 63 bits are not supported");
  return Value::integer(result, left.tag());
}

}  // namespace

void append_text(Budget& budget, const Text& text, Text& out) {
  budget.charge_text(text.size());
  out.append(text);
  if (out.size() > kMaxTextBytes) budget.charge_text(out.size());
}

Value binary_operation(Budget& budget,
                       const std::string& operation_text,
                       Value left,
                       const Value& right) {
  if (left.is_undefined()) fail_undefined(left);
  const char operation = operation_text == "//" ? 'd' : operation_text[0];
  if (operation == '%' && left.text()) bad("string formatting with % is not supported");
  if (right.is_undefined()) fail_undefined(right);
  if (left.is_number() && right.is_number()) return arithmetic(operation, left, right);
  if (operation == '+' && left.text() && right.text()) {
    Text text = take_text(std::move(left));
    budget.charge_text(text.size());
    append_text(budget, *right.text(), text);
    return Value::string(std::move(text));
  }
  if (operation == '+' && left.list() && right.list() &&
      left.list()->is_tuple == right.list()->is_tuple) {
    std::vector<Value> items = left.list()->items;
    items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
    budget.charge_items(items.size());
    return Value::list(std::move(items), left.list()->is_tuple);
  }
  if (operation == '*' && left.text() && right.is_integer()) return repeat(budget, left, right);
  if (operation == '*' && right.text() && left.is_integer()) return repeat(budget, right, left);
  bad("unsupported operand type(s) for " + operation_text + ": '" + std::string(left.type_name()) +
      "' and '" + std::string(right.type_name()) + "'");
}

bool compare(const std::string& operation, const Value& left, const Value& right) {
  return operation == "=="       ? equal(left, right)
         : operation == "!="     ? !equal(left, right)
         : operation == "in"     ? contains(right, left)
         : operation == "not in" ? !contains(right, left)
         : operation == "<"      ? less(left, right)
         : operation == ">"      ? less(right, left)
         : operation == "<="     ? !less(right, left)
                                 : !less(left, right);
}

Value with_sign(const Value& value, int64_t sign) {
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_integer()) return Value::integer(sign * value.as_integer());
  if (!value.is_number())
    bad("bad operand type for a sign: '" + std::string(value.type_name()) + "'");
  return Value(Value::Data(static_cast<double>(sign) * value.as_double()));
}

Value slice_of(Budget& budget,
               const Value& object,
               std::optional<int64_t> start,
               std::optional<int64_t> stop,
               int64_t step) {
  if (object.is_undefined()) fail_undefined(object);
  if (step == 0) bad("slice step cannot be zero");
  const Text* text = object.text();
  const List* list = object.list();
  if (!text && !list) bad("'" + std::string(object.type_name()) + "' object cannot be sliced");

  std::vector<size_t> bounds;  // byte offsets of the characters
  if (text) {
    budget.charge_items(text->size() / 8);
    for (size_t at = 0; at < text->size(); at += utf8_length(text->bytes()[at])) {
      bounds.push_back(at);
    }
    bounds.push_back(text->size());
  }
  const auto size = static_cast<int64_t>(text ? bounds.size() - 1 : list->items.size());
  // Python's slice.indices
  const auto clamp = [&](std::optional<int64_t> at, int64_t fallback) {
    if (!at) return fallback;
    const int64_t from_front = *at < 0 ? std::max(*at, -size - 1) + size : *at;
    return step > 0 ? std::clamp<int64_t>(from_front, 0, size)
                    : std::clamp<int64_t>(from_front, -1, size - 1);
  };
  const int64_t first = clamp(start, step > 0 ? 0 : size - 1);
  const int64_t end = clamp(stop, step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  if (text && stride == 1) {
    if (first >= end) return Value::string("");
    return budget.string(
        text->part(bounds[static_cast<size_t>(first)], bounds[static_cast<size_t>(end)]));
  }
  Text part;
  std::vector<Value> items;
  for (int64_t i = first; stride > 0 ? i < end : i > end; i += stride) {
    const auto at = static_cast<size_t>(i);
    if (text) {
      part.append(*text, bounds[at], bounds[at + 1]);
    } else {
      items.push_back(list->items[at]);
    }
  }
  if (text) return budget.string(std::move(part));
  budget.charge_items(items.size());
  return Value::list(std::move(items), list->is_tuple, object.tag());
}

}  // namespace graft::data::jinja
