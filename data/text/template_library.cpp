#include "data/text/template_library.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {

void bad(const std::string& what) {
  fail(ExitCode::kData, what);
}

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

Value dict_items(Budget& budget, const Dict& dict) {
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    items.push_back(
        Value::list({Value(std::shared_ptr<const Text>(key)), value}, /*is_tuple=*/true));
  }
  budget.charge_items(items.size() * 2);
  return Value::list(std::move(items));
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
