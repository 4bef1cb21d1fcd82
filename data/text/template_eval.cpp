#include "data/text/template_eval.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/template_evaluator.h"
#include "data/text/template_globals.h"

namespace graft::data::jinja {

RunResult Evaluator::run() {
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

Evaluator::Flow Evaluator::execute(const std::vector<NodePtr>& body, Text& out) {
  for (const NodePtr& node : body) {
    const Flow flow = execute(*node, out);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::execute(const Node& node, Text& out) {
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

Value Evaluator::capture_body(const Node& node, const Node* filters) {
  Text text;
  {
    const Frame frame(*this, scope_);
    execute(node.body, text);
  }
  Value value = budget_.string(std::move(text));
  return filters ? filtered(*filters, &value) : value;
}

void Evaluator::execute_with(const Node& node, Text& out) {
  std::vector<Value> values;
  for (size_t i = 1; i < node.children.size(); i += 2)
    values.push_back(evaluate(*node.children[i]));
  const Frame frame(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) assign(*node.children[2 * i], std::move(values[i]));
  execute(node.body, out);
}

void Evaluator::execute_generation(const Node& node, Text& out) {
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
std::vector<ByteRange> Evaluator::generation_ranges(const Text& text) const {
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

Evaluator::Flow Evaluator::execute_for(const Node& node, Text& out) {
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

void Evaluator::assign(const Node& target, Value value) {
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

RunResult run_template(const Tree& tree, const std::string& name, const RunInput& input) {
  return Evaluator(tree, name, input).run();
}

}  // namespace graft::data::jinja
