#include "data/text/template_globals.h"

#include <ctime>

#include "core/error.h"

namespace graft::data::jinja {
namespace {

Value make_range(Budget& budget, const Arguments& arguments) {
  arguments.allow(3);
  std::vector<int64_t> numbers;
  for (const Value& value : arguments.positional) {
    if (!value.is_integer()) bad("range needs integers");
    numbers.push_back(value.as_integer());
  }
  if (numbers.empty()) bad("range needs an end");
  const int64_t begin = numbers.size() > 1 ? numbers[0] : 0;
  const int64_t end = numbers.size() > 1 ? numbers[1] : numbers[0];
  const int64_t step = numbers.size() > 2 ? numbers[2] : 1;
  if (step == 0) bad("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      bad("Range too big. The sandbox blocks ranges larger than MAX_RANGE (" +
          std::to_string(kMaxRange) + ").");
    }
    items.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  budget.charge_items(items.size());
  return Value::list(std::move(items));
}

Value strftime_now(Budget& budget, const Arguments& arguments, const std::string& now) {
  arguments.allow(1);
  if (arguments.positional.empty()) bad("strftime_now needs a format");
  const std::string format = need_text(arguments.positional[0], "strftime_now").bytes();
  if (now.empty()) {
    fail(ExitCode::kData, "the template writes today's date", "",
         "give the date as YYYY-MM-DD, so that the same data gives the same tokens every day");
  }
  std::tm date{};
  const char* end = strptime(now.c_str(), "%Y-%m-%d", &date);
  if (!end || *end != '\0') {
    fail(ExitCode::kUsage, "the date must be YYYY-MM-DD, got \"" + now + "\"", "now");
  }
  if (format.empty() || format.size() > 256) bad("strftime_now needs a format of 1..256 bytes");
  std::string text(4096, '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &date));
  return budget.string(Text(std::move(text), {Origin::kInput, -1, 0}));
}

const std::vector<Value>& loop_items(const Loop& loop) {
  if (!loop.items) bad("the loop has ended");
  return *loop.items;
}

}  // namespace

std::optional<Value> global_function(const std::string& name) {
  for (const char* known : {"raise_exception", "namespace", "range", "strftime_now", "dict"}) {
    if (name != known) continue;
    auto function = std::make_shared<Callable>();
    function->kind = Callable::Kind::kGlobal;
    function->name = name;
    return Value(std::shared_ptr<const Callable>(std::move(function)));
  }
  for (const char* missing : {"cycler", "joiner", "lipsum"}) {
    if (name == missing) bad("the function " + name + " is not supported");
  }
  return std::nullopt;
}

Value call_global(Budget& budget,
                  const std::string& name,
                  const Arguments& arguments,
                  const std::string& now) {
  if (name == "raise_exception") {
    arguments.allow(1);
    if (arguments.positional.empty()) bad("raise_exception needs a message");
    bad(to_text(arguments.positional[0]).bytes());
  }
  if (name == "range") return make_range(budget, arguments);
  if (name == "strftime_now") return strftime_now(budget, arguments, now);
  auto space = std::make_shared<Namespace>();
  std::vector<std::pair<std::shared_ptr<const Text>, Value>> items;
  if (arguments.positional.size() > 1) bad(name + " takes at most one dict");
  if (!arguments.positional.empty()) {
    const Dict* dict = arguments.positional[0].dict();
    if (!dict) bad(name + " takes a dict");
    for (const auto& [key, value] : dict->items) {
      store(*space, key->bytes(), value);
      items.emplace_back(key, value);
    }
  }
  for (const auto& [key, value] : arguments.keywords) {
    store(*space, key, value);
    items.emplace_back(std::make_shared<Text>(key, Tag{}), value);
  }
  if (name == "dict") return Value::dict(std::move(items));
  return Value(Value::Data(std::move(space)));
}

Value call_loop(Loop& loop, const std::string& name, const Arguments& arguments) {
  loop_items(loop);
  if (name == "cycle" && !arguments.positional.empty()) {
    const auto count = static_cast<int64_t>(arguments.positional.size());
    return arguments.positional[static_cast<size_t>(loop.index0 % count)];
  }
  if (name == "changed") {
    Value now = Value::list(arguments.positional, true);
    const bool changed = !loop.has_changed || !equal(loop.last_changed, now);
    loop.has_changed = true;
    loop.last_changed = std::move(now);
    return Value::boolean(changed);
  }
  bad("loop." + name + " is not supported");
}

Value loop_attribute(const Loop& loop, const std::string& name) {
  const std::vector<Value>& items = loop_items(loop);
  const auto length = static_cast<int64_t>(items.size());
  const int64_t i = loop.index0;
  if (name == "index") return Value::integer(i + 1);
  if (name == "index0") return Value::integer(i);
  if (name == "revindex") return Value::integer(length - i);
  if (name == "revindex0") return Value::integer(length - i - 1);
  if (name == "first") return Value::boolean(i == 0);
  if (name == "last") return Value::boolean(i + 1 == length);
  if (name == "length") return Value::integer(length);
  if (name == "depth") return Value::integer(loop.depth0 + 1);
  if (name == "depth0") return Value::integer(loop.depth0);
  if (name == "previtem") {
    return i > 0 ? items[static_cast<size_t>(i - 1)] : Value::undefined("loop.previtem");
  }
  if (name == "nextitem") {
    return i + 1 < length ? items[static_cast<size_t>(i + 1)] : Value::undefined("loop.nextitem");
  }
  return Value::undefined("loop." + name);
}

void refuse_cycle(const Value& value) {
  if (value.name_space() || value.loop()) {
    bad("storing a " + std::string(value.type_name()) + " in another value is not supported");
  }
}

void store(Namespace& space, const std::string& name, Value value) {
  refuse_cycle(value);
  if (Value* known = space.find(name)) {
    *known = std::move(value);
  } else {
    space.items.emplace_back(name, std::move(value));
  }
}

}  // namespace graft::data::jinja
