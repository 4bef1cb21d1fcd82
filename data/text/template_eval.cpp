#include "data/text/template_eval.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "data/text/template_globals.h"
#include "data/text/template_library.h"
#include "data/text/template_operators.h"

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
    if (std::optional<Value> function = global_function(node.text)) return std::move(*function);
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

  void write(Text& out, const Text& text) { append_text(budget_, text, out); }

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
        return call_global(budget_, callable->name, arguments, input_.now);
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
        return compare_chain(node);
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
    return with_sign(value, node.kind == NodeKind::kNegative ? -1 : 1);
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
    return slice_of(budget_, object, start, stop, step);
  }

  Value compare_chain(const Node& node) {
    Value left = evaluate(*node.children[0]);
    for (size_t i = 0; i < node.texts.size(); ++i) {
      Value right = evaluate(*node.children[i + 1]);
      position_ = node.position;
      const bool holds = compare(node.texts[i], left, right);
      if (!holds) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value binary(const Node& node) {
    Value left = evaluate(*node.children[0]);
    const Value right = evaluate(*node.children[1]);
    position_ = node.position;
    return binary_operation(budget_, node.text, std::move(left), right);
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
