// The interpreter of templates (internal to data/text): statements are in template_eval.cpp,
// expressions and calls in template_expressions.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/text/template_ast.h"
#include "data/text/template_eval.h"
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

class Evaluator {
 public:
  // All are borrowed for the life of the evaluator, which runs once.
  Evaluator(const Tree& tree, const std::string& name, const RunInput& input)
      : tree_(tree),
        name_(name),
        input_(input),
        loop_name_(tree.number_of("loop")),
        caller_name_(tree.number_of("caller")) {}

  RunResult run();

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  // Opens a scope inside `parent` and closes it at its own end.
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

  // Counts the nesting while it lives.
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

  // Statements.
  Flow execute(const std::vector<NodePtr>& body, Text& out);
  Flow execute(const Node& node, Text& out);
  Value capture_body(const Node& node, const Node* filters);
  void execute_with(const Node& node, Text& out);
  void execute_generation(const Node& node, Text& out);
  std::vector<ByteRange> generation_ranges(const Text& text) const;
  Flow execute_for(const Node& node, Text& out);
  void assign(const Node& target, Value value);
  void write(Text& out, const Text& text) { append_text(budget_, text, out); }

  // Expressions and calls.
  Value look_up(const Node& node);
  Value closure(const Node& node, Callable::Kind kind);
  Arguments arguments_of(const Node& node);
  Value call(const Node& node, const Value* caller);
  Value call_value(const Value& function, const Arguments& arguments, const Value* caller);
  Value call_macro(const Callable& macro, const Arguments& arguments, const Value* caller);
  Value filtered(const Node& node, const Value* block);
  Value evaluate(const Node& node);
  Value make_dict(const Node& node);
  Value signed_number(const Node& node);
  Value slice(const Node& node);
  Value compare_chain(const Node& node);
  Value binary(const Node& node);

  // Expressions and statements inside each other, calls included; each takes about a kilobyte of
  // the stack.
  static constexpr int kMaxDepth = 2000;

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

}  // namespace graft::data::jinja
