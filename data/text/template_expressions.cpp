#include <algorithm>
#include <optional>

#include "core/error.h"
#include "data/text/template_evaluator.h"
#include "data/text/template_globals.h"

namespace graft::data::jinja {
namespace {

constexpr int kMaxCalls = 200;

}  // namespace

Value Evaluator::look_up(const Node& node) {
  for (Scope* scope = scope_; scope; scope = scope->parent) {
    if (const Value* value = scope->find(node.name)) return *value;
  }
  if (std::optional<Value> function = global_function(node.text)) return std::move(*function);
  return Value::undefined(node.text);
}

Value Evaluator::closure(const Node& node, Callable::Kind kind) {
  capture_scope();
  auto callable = std::make_shared<Callable>();
  callable->kind = kind;
  callable->name = kind == Callable::Kind::kMacro ? node.text : "caller";
  callable->node = &node;
  callable->scope = scope_;
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

Arguments Evaluator::arguments_of(const Node& node) {
  Arguments arguments;
  for (size_t i = 1; i < node.children.size(); ++i) {
    arguments.positional.push_back(evaluate(*node.children[i]));
  }
  for (const auto& [name, value] : node.keywords) {
    arguments.keywords.emplace_back(name, evaluate(*value));
  }
  return arguments;
}

Value Evaluator::call(const Node& node, const Value* caller) {
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

Value Evaluator::call_value(const Value& function,
                            const Arguments& arguments,
                            const Value* caller) {
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

Value Evaluator::call_macro(const Callable& macro,
                            const Arguments& arguments,
                            const Value* caller) {
  const Node& node = *macro.node;
  if (++calls_ > kMaxCalls) {
    bad("more than " + std::to_string(kMaxCalls) + " calls inside each other");
  }
  if (arguments.positional.size() > node.parameters.size()) {
    bad("macro '" + macro.name + "' takes not more than " + std::to_string(node.parameters.size()) +
        " argument(s)");
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

Value Evaluator::filtered(const Node& node, const Value* block) {
  const Deeper deeper(*this);
  const Node* input = node.children[0].get();
  const Value value = !input                                      ? *block
                      : block && input->kind == NodeKind::kFilter ? filtered(*input, block)
                                                                  : evaluate(*input);
  const Arguments arguments = arguments_of(node);
  position_ = node.position;
  return run_filter(budget_, node.text, value, arguments);
}

Value Evaluator::evaluate(const Node& node) {
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

Value Evaluator::make_dict(const Node& node) {
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

Value Evaluator::signed_number(const Node& node) {
  const Value value = evaluate(*node.children[0]);
  position_ = node.position;
  return with_sign(value, node.kind == NodeKind::kNegative ? -1 : 1);
}

Value Evaluator::slice(const Node& node) {
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

Value Evaluator::compare_chain(const Node& node) {
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

Value Evaluator::binary(const Node& node) {
  Value left = evaluate(*node.children[0]);
  const Value right = evaluate(*node.children[1]);
  position_ = node.position;
  return binary_operation(budget_, node.text, std::move(left), right);
}

}  // namespace graft::data::jinja
