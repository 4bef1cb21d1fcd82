#include "data/text/template_eval.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "core/error.h"
#include "data/text/template_library.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {

// The variables of one frame. A frame that a macro was defined in lives until the render ends.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int32_t, Value>> variables;
  bool is_captured = false;
  Value* find(int32_t name) {
    for (auto& [known, value] : variables) {
      if (known == name) return &value;
    }
    return nullptr;
  }
  void set(int32_t name, Value value) {
    if (Value* known = find(name)) {
      *known = std::move(value);
    } else {
      variables.emplace_back(name, std::move(value));
    }
  }
};

namespace {

constexpr int kMaxCalls = 200;
// Expressions and statements inside each other, calls included; each takes about a kilobyte of the
// stack.
constexpr int kMaxDepth = 2000;

enum class Flow { kNormal, kBreak, kContinue };

class Evaluator {
 public:
  Evaluator(const Tree& tree, const std::string& name, const RunInput& input)
      : tree_(tree),
        name_(name),
        input_(input),
        loop_name_(tree.number_of("loop")),
        caller_name_(tree.number_of("caller")) {}

  RunResult run() {
    Scope root;
    // Macros are values of the scopes that they point to: freed together, at the end.
    scope_ = &root;
    for (const Variables* variables : {input_.defaults, &input_.variables}) {
      if (!variables) continue;
      for (const auto& [number, value] : *variables) {
        if (number != kNoName) root.set(number, value);
      }
    }
    RunResult result;
    output_ = &result.text;
    try {
      execute(tree_.body, result.text);
    } catch (const Error& error) {
      if (!error.text().where.empty()) throw;
      fail_at(name_, position_, error.text().what, error.text().fix);
    }
    result.generation = generation_ranges(result.text);
    return result;
  }

 private:
  // ---- scopes

  class Frame {
   public:
    Frame(Evaluator& evaluator, Scope* parent)
        : evaluator_(evaluator), before_(evaluator.scope_), scope_(evaluator.new_scope()) {
      scope_->parent = parent;
      evaluator_.scope_ = scope_.get();
    }
    ~Frame() {
      evaluator_.scope_ = before_;
      if (scope_->is_captured) {
        evaluator_.captured_.push_back(std::move(scope_));
      } else {
        scope_->variables.clear();
        evaluator_.free_.push_back(std::move(scope_));
      }
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Evaluator& evaluator_;
    Scope* before_;
    std::unique_ptr<Scope> scope_;
  };

  // Scopes are used again: each turn of a loop needs one.
  std::unique_ptr<Scope> new_scope() {
    if (free_.empty()) return std::make_unique<Scope>();
    std::unique_ptr<Scope> scope = std::move(free_.back());
    free_.pop_back();
    return scope;
  }

  void capture_scope() {
    for (Scope* scope = scope_; scope && !scope->is_captured; scope = scope->parent) {
      scope->is_captured = true;
    }
  }

  Value look_up(const Node& node) {
    for (Scope* scope = scope_; scope; scope = scope->parent) {
      if (const Value* value = scope->find(node.name)) return *value;
    }
    for (const char* known : {"raise_exception", "namespace", "range", "strftime_now", "dict"}) {
      if (node.text == known) {
        auto function = std::make_shared<Callable>();
        function->kind = Callable::Kind::kGlobal;
        function->name = node.text;
        return Value(std::shared_ptr<const Callable>(std::move(function)));
      }
    }
    for (const char* missing : {"cycler", "joiner", "lipsum"}) {
      if (node.text == missing) bad("the function " + node.text + " is not supported");
    }
    return Value::undefined(node.text);
  }

  // ---- statements

  Flow execute(const std::vector<NodePtr>& body, Text& out) {
    for (const NodePtr& node : body) {
      const Flow flow = execute(*node, out);
      if (flow != Flow::kNormal) return flow;
    }
    return Flow::kNormal;
  }

  class Deeper {
   public:
    explicit Deeper(Evaluator& evaluator) : evaluator_(evaluator) {
      if (++evaluator_.depth_ > kMaxDepth) {
        --evaluator_.depth_;
        bad("more than " + std::to_string(kMaxDepth) + " expressions inside each other");
      }
    }
    ~Deeper() { --evaluator_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Evaluator& evaluator_;
  };

  Flow execute(const Node& node, Text& out) {
    const Deeper deeper(*this);
    budget_.charge(1);
    position_ = node.position;
    switch (node.kind) {
      case NodeKind::kTemplateText:
        write(out, *node.value.text());
        return Flow::kNormal;
      case NodeKind::kOutput: {
        const Value value = evaluate(*node.children[0]);
        write(out, value.text() ? *value.text() : to_text(value));
        return Flow::kNormal;
      }
      case NodeKind::kIf:
        return execute(evaluate(*node.children[0]).is_true() ? node.body : node.other, out);
      case NodeKind::kFor:
        return execute_for(node, out);
      case NodeKind::kSet:
        assign(*node.children[0], evaluate(*node.children[1]));
        return Flow::kNormal;
      case NodeKind::kSetBlock:
        assign(*node.children[0], capture_body(node, node.children[1].get()));
        return Flow::kNormal;
      case NodeKind::kMacro:
        scope_->set(node.name, closure(node, Callable::Kind::kMacro));
        return Flow::kNormal;
      case NodeKind::kCallBlock: {
        const Value caller = closure(node, Callable::Kind::kCaller);
        write(out, to_text(call(*node.children[0], &caller)));
        return Flow::kNormal;
      }
      case NodeKind::kFilterBlock:
        write(out, to_text(capture_body(node, node.children[0].get())));
        return Flow::kNormal;
      case NodeKind::kGeneration:
        execute_generation(node, out);
        return Flow::kNormal;
      case NodeKind::kWith:
        execute_with(node, out);
        return Flow::kNormal;
      case NodeKind::kBreak:
        return Flow::kBreak;
      case NodeKind::kContinue:
        return Flow::kContinue;
      default:
        break;
    }
    fail(ExitCode::kBug, "an expression stands where a statement should");
  }

  void write(Text& out, const Text& text) {
    budget_.charge_text(text.size());
    out.append(text);
    if (out.size() > kMaxTextBytes) budget_.charge_text(out.size());
  }

  Value capture_body(const Node& node, const Node* filters) {
    Text text;
    {
      const Frame frame(*this, scope_);
      execute(node.body, text);
    }
    Value value = budget_.string(std::move(text));
    return filters ? filtered(*filters, &value) : value;
  }

  void execute_with(const Node& node, Text& out) {
    std::vector<Value> values;
    for (size_t i = 1; i < node.children.size(); i += 2)
      values.push_back(evaluate(*node.children[i]));
    const Frame frame(*this, scope_);
    for (size_t i = 0; i < values.size(); ++i) assign(*node.children[2 * i], std::move(values[i]));
    execute(node.body, out);
  }

  void execute_generation(const Node& node, Text& out) {
    const auto number = static_cast<int32_t>(generation_.size() + 1);
    const auto begin = static_cast<int64_t>(out.size());
    generation_.push_back({-1, -1});
    {
      const Frame frame(*this, scope_);
      execute(node.body, out);
    }
    out.mark_generation(static_cast<size_t>(begin), number);
    if (&out == output_) {
      generation_[static_cast<size_t>(number - 1)] = {begin, static_cast<int64_t>(out.size())};
    }
  }

  // Blocks in macros and set blocks: their text is found again by its mark.
  std::vector<ByteRange> generation_ranges(const Text& text) const {
    std::vector<ByteRange> ranges = generation_;
    int64_t begin = 0;
    for (const Text::Run& run : text.runs()) {
      const auto end = static_cast<int64_t>(run.end);
      if (run.tag.generation > 0) {
        const auto index = static_cast<size_t>(run.tag.generation - 1);
        if (generation_[index].begin < 0) {
          if (ranges[index].begin < 0) ranges[index].begin = begin;
          ranges[index].end = end;
        }
      }
      begin = end;
    }
    std::erase_if(ranges, [](const ByteRange& range) { return range.begin < 0; });
    return ranges;
  }

  Flow execute_for(const Node& node, Text& out) {
    std::vector<Value> items = items_of(budget_, evaluate(*node.children[1]));
    if (node.children[2]) {
      std::vector<Value> kept;
      for (Value& item : items) {
        const Frame frame(*this, scope_);
        assign(*node.children[0], item);
        if (evaluate(*node.children[2]).is_true()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      const Frame frame(*this, scope_);
      return execute(node.other, out);
    }
    auto loop = std::make_shared<Loop>();
    loop->items = &items;
    loop->depth0 = loop_depth_++;
    const Value loop_value{Value::Data(loop)};
    for (size_t i = 0; i < items.size(); ++i) {
      budget_.charge(1);
      loop->index0 = static_cast<int64_t>(i);
      const Frame frame(*this, scope_);
      if (loop_name_ != kNoName) scope_->set(loop_name_, loop_value);
      assign(*node.children[0], items[i]);
      if (execute(node.body, out) == Flow::kBreak) break;
    }
    --loop_depth_;
    loop->items = nullptr;  // a loop that was stored somewhere must not be read any more
    return Flow::kNormal;
  }

  void assign(const Node& target, Value value) {
    if (target.kind == NodeKind::kName) {
      scope_->set(target.name, std::move(value));
      return;
    }
    if (target.kind == NodeKind::kGetattr) {
      const Value object = evaluate(*target.children[0]);
      Namespace* space = object.name_space();
      if (!space) bad("cannot assign attribute on non-namespace object");
      store(*space, target.text, std::move(value));
      return;
    }
    const std::vector<Value> items = items_of(budget_, value);
    if (items.size() != target.children.size()) {
      bad("cannot unpack " + std::to_string(items.size()) + " values into " +
          std::to_string(target.children.size()) + " names");
    }
    for (size_t i = 0; i < items.size(); ++i) assign(*target.children[i], items[i]);
  }

  // Values that could form a cycle are not stored.
  static void refuse_cycle(const Value& value) {
    if (value.name_space() || value.loop()) {
      bad("storing a " + std::string(value.type_name()) + " in another value is not supported");
    }
  }

  static void store(Namespace& space, const std::string& name, Value value) {
    refuse_cycle(value);
    if (Value* known = space.find(name)) {
      *known = std::move(value);
    } else {
      space.items.emplace_back(name, std::move(value));
    }
  }

  // ---- calls

  Value closure(const Node& node, Callable::Kind kind) {
    capture_scope();
    auto callable = std::make_shared<Callable>();
    callable->kind = kind;
    callable->name = kind == Callable::Kind::kMacro ? node.text : "caller";
    callable->node = &node;
    callable->scope = scope_;
    return Value(std::shared_ptr<const Callable>(std::move(callable)));
  }

  Arguments arguments_of(const Node& node) {
    Arguments arguments;
    for (size_t i = 1; i < node.children.size(); ++i) {
      arguments.positional.push_back(evaluate(*node.children[i]));
    }
    for (const auto& [name, value] : node.keywords) {
      arguments.keywords.emplace_back(name, evaluate(*value));
    }
    return arguments;
  }

  Value call(const Node& node, const Value* caller) {
    const Node& callee = *node.children[0];
    if (callee.kind == NodeKind::kGetattr) {
      const Value object = evaluate(*callee.children[0]);
      const Arguments arguments = arguments_of(node);
      position_ = node.position;
      if (object.loop()) return call_loop(*object.loop(), callee.text, arguments);
      if (has_method(object, callee.text)) {
        return run_method(budget_, callee.text, object, arguments);
      }
      return call_value(attribute_of(object, callee.text), arguments, caller);
    }
    const Value function = evaluate(callee);
    const Arguments arguments = arguments_of(node);
    position_ = node.position;
    return call_value(function, arguments, caller);
  }

  Value call_value(const Value& function, const Arguments& arguments, const Value* caller) {
    if (function.is_undefined()) fail_undefined(function);
    const Callable* callable = function.callable();
    if (!callable) bad("'" + std::string(function.type_name()) + "' object is not callable");
    switch (callable->kind) {
      case Callable::Kind::kMethod:
        return run_method(budget_, callable->name, callable->self, arguments);
      case Callable::Kind::kGlobal:
        return call_global(callable->name, arguments);
      default:
        return call_macro(*callable, arguments, caller);
    }
  }

  Value call_macro(const Callable& macro, const Arguments& arguments, const Value* caller) {
    const Node& node = *macro.node;
    if (++calls_ > kMaxCalls) {
      bad("more than " + std::to_string(kMaxCalls) + " calls inside each other");
    }
    if (arguments.positional.size() > node.parameters.size()) {
      bad("macro '" + macro.name + "' takes not more than " +
          std::to_string(node.parameters.size()) + " argument(s)");
    }
    Text text;
    {
      const Frame frame(*this, macro.scope);
      for (const auto& keyword : arguments.keywords) {
        const bool is_known =
            std::any_of(node.parameters.begin(), node.parameters.end(), [&](int32_t parameter) {
              return tree_.names[static_cast<size_t>(parameter)] == keyword.first;
            });
        if (!is_known) {
          bad("macro '" + macro.name + "' takes no keyword argument '" + keyword.first + "'");
        }
      }
      for (size_t i = 0; i < node.parameters.size(); ++i) {
        const std::string& name = tree_.names[static_cast<size_t>(node.parameters[i])];
        const Node* fallback = node.keywords[i].second.get();
        const Value* given = arguments.find(i, name);
        Value value = given ? *given : fallback ? evaluate(*fallback) : Value::undefined(name);
        scope_->set(node.parameters[i], std::move(value));
      }
      if (caller && caller_name_ != kNoName) scope_->set(caller_name_, *caller);
      execute(node.body, text);
    }
    --calls_;
    return budget_.string(std::move(text));
  }

  Value call_global(const std::string& name, const Arguments& arguments) {
    if (name == "raise_exception") {
      arguments.allow(1);
      if (arguments.positional.empty()) bad("raise_exception needs a message");
      bad(to_text(arguments.positional[0]).bytes());
    }
    if (name == "range") return make_range(arguments);
    if (name == "strftime_now") return strftime_now(arguments);
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

  Value make_range(const Arguments& arguments) {
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
    budget_.charge_items(items.size());
    return Value::list(std::move(items));
  }

  Value strftime_now(const Arguments& arguments) {
    arguments.allow(1);
    if (arguments.positional.empty()) bad("strftime_now needs a format");
    const std::string format = need_text(arguments.positional[0], "strftime_now").bytes();
    if (input_.now.empty()) {
      fail(ExitCode::kData, "the template writes today's date", "",
           "give the date as YYYY-MM-DD, so that the same data gives the same tokens every day");
    }
    std::tm date{};
    const char* end = strptime(input_.now.c_str(), "%Y-%m-%d", &date);
    if (!end || *end != '\0') {
      fail(ExitCode::kUsage, "the date must be YYYY-MM-DD, got \"" + input_.now + "\"", "now");
    }
    if (format.empty() || format.size() > 256) bad("strftime_now needs a format of 1..256 bytes");
    std::string text(4096, '\0');
    text.resize(std::strftime(text.data(), text.size(), format.c_str(), &date));
    return budget_.string(Text(std::move(text), {Origin::kInput, -1, 0}));
  }

  static const std::vector<Value>& loop_items(const Loop& loop) {
    if (!loop.items) bad("the loop has ended");
    return *loop.items;
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

  static Value loop_attribute(const Loop& loop, const std::string& name) {
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

  Value filtered(const Node& node, const Value* block) {
    const Deeper deeper(*this);
    const Node* input = node.children[0].get();
    const Value value = !input                                      ? *block
                        : block && input->kind == NodeKind::kFilter ? filtered(*input, block)
                                                                    : evaluate(*input);
    const Arguments arguments = arguments_of(node);
    position_ = node.position;
    return run_filter(budget_, node.text, value, arguments);
  }

  // ---- expressions

  Value evaluate(const Node& node) {
    const Deeper deeper(*this);
    budget_.charge(1);
    switch (node.kind) {
      case NodeKind::kConst:
        return node.value;
      case NodeKind::kName:
        return look_up(node);
      case NodeKind::kGetattr: {
        const Value object = evaluate(*node.children[0]);
        position_ = node.position;
        if (object.loop()) return loop_attribute(*object.loop(), node.text);
        return attribute_of(object, node.text);
      }
      case NodeKind::kGetitem: {
        const Value object = evaluate(*node.children[0]);
        const Value key = evaluate(*node.children[1]);
        position_ = node.position;
        if (object.loop() && key.text()) return loop_attribute(*object.loop(), key.text()->bytes());
        return item_of(object, key);
      }
      case NodeKind::kSlice:
        return slice(node);
      case NodeKind::kCall:
        return call(node, nullptr);
      case NodeKind::kFilter:
        return filtered(node, nullptr);
      case NodeKind::kTest: {
        const Value value = evaluate(*node.children[0]);
        const Arguments arguments = arguments_of(node);
        position_ = node.position;
        return Value::boolean(run_test(node.text, value, arguments));
      }
      case NodeKind::kNegative:
      case NodeKind::kPositive:
        return signed_number(node);
      case NodeKind::kBinary:
        return binary(node);
      case NodeKind::kCompare:
        return compare(node);
      case NodeKind::kConcat: {
        Text text;
        for (const NodePtr& part : node.children) write(text, to_text(evaluate(*part)));
        return Value::string(std::move(text));
      }
      case NodeKind::kAnd: {
        Value left = evaluate(*node.children[0]);
        return left.is_true() ? evaluate(*node.children[1]) : left;
      }
      case NodeKind::kOr: {
        Value left = evaluate(*node.children[0]);
        return left.is_true() ? left : evaluate(*node.children[1]);
      }
      case NodeKind::kNot:
        return Value::boolean(!evaluate(*node.children[0]).is_true());
      case NodeKind::kConditional:
        if (evaluate(*node.children[0]).is_true()) return evaluate(*node.children[1]);
        return node.children[2] ? evaluate(*node.children[2])
                                : Value::undefined("the inline if without else");
      case NodeKind::kList:
      case NodeKind::kTuple: {
        std::vector<Value> items;
        for (const NodePtr& item : node.children) {
          items.push_back(evaluate(*item));
          refuse_cycle(items.back());
        }
        return Value::list(std::move(items), node.kind == NodeKind::kTuple);
      }
      case NodeKind::kDict:
        return make_dict(node);
      default:
        break;
    }
    fail(ExitCode::kBug, "a statement stands where an expression should");
  }

  Value make_dict(const Node& node) {
    std::vector<std::pair<std::shared_ptr<const Text>, Value>> items;
    for (size_t i = 0; i < node.children.size(); i += 2) {
      const Value key = evaluate(*node.children[i]);
      Value value = evaluate(*node.children[i + 1]);
      refuse_cycle(value);
      position_ = node.position;
      need_text(key, "a key of a dict");
      const auto same = std::find_if(items.begin(), items.end(), [&](const auto& item) {
        return item.first->bytes() == key.text()->bytes();
      });
      if (same != items.end()) {
        same->second = std::move(value);
      } else {
        items.emplace_back(key.shared_text(), std::move(value));
      }
    }
    return Value::dict(std::move(items));
  }

  Value signed_number(const Node& node) {
    const Value value = evaluate(*node.children[0]);
    position_ = node.position;
    if (value.is_undefined()) fail_undefined(value);
    const int64_t sign = node.kind == NodeKind::kNegative ? -1 : 1;
    if (value.is_integer()) return Value::integer(sign * value.as_integer());
    if (!value.is_number())
      bad("bad operand type for a sign: '" + std::string(value.type_name()) + "'");
    return Value(Value::Data(static_cast<double>(sign) * value.as_double()));
  }

  Value slice(const Node& node) {
    const Value object = evaluate(*node.children[0]);
    const auto bound = [&](size_t child) -> std::optional<int64_t> {
      if (!node.children[child]) return std::nullopt;
      const Value value = evaluate(*node.children[child]);
      if (value.is_none()) return std::nullopt;
      if (value.is_undefined()) fail_undefined(value);
      if (!value.is_integer()) bad("slice indices must be integers");
      return value.as_integer();
    };
    const auto start = bound(1);
    const auto stop = bound(2);
    const int64_t step = bound(3).value_or(1);
    position_ = node.position;
    if (object.is_undefined()) fail_undefined(object);
    if (step == 0) bad("slice step cannot be zero");
    const Text* text = object.text();
    const List* list = object.list();
    if (!text && !list) bad("'" + std::string(object.type_name()) + "' object cannot be sliced");

    std::vector<size_t> bounds;  // byte offsets of the characters
    if (text) {
      budget_.charge_items(text->size() / 8);
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
      return budget_.string(
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
    if (text) return budget_.string(std::move(part));
    budget_.charge_items(items.size());
    return Value::list(std::move(items), list->is_tuple, object.tag());
  }

  Value compare(const Node& node) {
    Value left = evaluate(*node.children[0]);
    for (size_t i = 0; i < node.texts.size(); ++i) {
      Value right = evaluate(*node.children[i + 1]);
      position_ = node.position;
      const std::string& operation = node.texts[i];
      const bool holds = operation == "=="       ? equal(left, right)
                         : operation == "!="     ? !equal(left, right)
                         : operation == "in"     ? contains(right, left)
                         : operation == "not in" ? !contains(right, left)
                         : operation == "<"      ? less(left, right)
                         : operation == ">"      ? less(right, left)
                         : operation == "<="     ? !less(right, left)
                                                 : !less(left, right);
      if (!holds) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value binary(const Node& node) {
    Value left = evaluate(*node.children[0]);
    const Value right = evaluate(*node.children[1]);
    position_ = node.position;
    if (left.is_undefined()) fail_undefined(left);
    const char operation = node.text == "//" ? 'd' : node.text[0];
    if (operation == '%' && left.text()) bad("string formatting with % is not supported");
    if (right.is_undefined()) fail_undefined(right);
    if (left.is_number() && right.is_number()) return arithmetic(operation, left, right);
    if (operation == '+' && left.text() && right.text()) {
      Text text = take_text(std::move(left));
      budget_.charge_text(text.size());
      write(text, *right.text());
      return Value::string(std::move(text));
    }
    if (operation == '+' && left.list() && right.list() &&
        left.list()->is_tuple == right.list()->is_tuple) {
      std::vector<Value> items = left.list()->items;
      items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
      budget_.charge_items(items.size());
      return Value::list(std::move(items), left.list()->is_tuple);
    }
    if (operation == '*' && left.text() && right.is_integer()) return repeat(left, right);
    if (operation == '*' && right.text() && left.is_integer()) return repeat(right, left);
    bad("unsupported operand type(s) for " + node.text + ": '" + std::string(left.type_name()) +
        "' and '" + std::string(right.type_name()) + "'");
  }

  // The text of a string; that of a temporary one without a copy.
  static Text take_text(Value value) {
    std::shared_ptr<const Text> text = value.shared_text();
    value = Value();
    // Every Text is made as a Text: the const is the variant's.
    return text.use_count() == 1 ? std::move(const_cast<Text&>(*text)) : *text;
  }

  Value repeat(const Value& text, const Value& count) {
    const int64_t times = std::max<int64_t>(count.as_integer(), 0);
    const auto size = static_cast<int64_t>(text.text()->size());
    if (size > 0 && times > static_cast<int64_t>(kMaxTextBytes) / size) {
      budget_.charge_text(kMaxTextBytes + 1);
    }
    if (size == 0) return text;
    Text result;
    for (int64_t i = 0; i < times; ++i) result.append(*text.text());
    return budget_.string(std::move(result));
  }

  static Value arithmetic(char operation, const Value& left, const Value& right) {
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

  const Tree& tree_;
  const std::string& name_;
  const RunInput& input_;
  Budget budget_;
  std::vector<std::unique_ptr<Scope>> captured_;
  std::vector<std::unique_ptr<Scope>> free_;
  Scope* scope_ = nullptr;
  Text* output_ = nullptr;
  std::vector<ByteRange> generation_;
  Position position_;
  int32_t loop_name_;
  int32_t caller_name_;
  int calls_ = 0;
  int depth_ = 0;
  int64_t loop_depth_ = 0;
};

}  // namespace

RunResult run_template(const Tree& tree, const std::string& name, const RunInput& input) {
  return Evaluator(tree, name, input).run();
}

}  // namespace graft::data::jinja
