// Where a parser of templates stands: the tokens, what it expects of the next one, and how deep it
// is (internal to data/text).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/text/template_ast.h"

namespace graft::data::jinja {

class TokenCursor {
 public:
  TokenCursor(std::vector<Token> tokens, const std::string& name)
      : tokens_(std::move(tokens)), name_(name) {}

  const Token& token() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void advance() {
    if (token().kind != TokenKind::kEnd) ++at_;
  }
  [[noreturn]] void error(const std::string& what, const std::string& fix = "") const {
    fail_at(name_, token().position, what, fix);
  }
  [[noreturn]] void error_at(Position position, const std::string& what) const {
    fail_at(name_, position, what);
  }
  [[noreturn]] void error_here(const std::string& expected) const {
    const Token& found = token();
    error("expected " + expected + ", got " +
          (found.kind == TokenKind::kEnd           ? "the end of the template"
           : found.kind == TokenKind::kBlockEnd    ? "the end of the block"
           : found.kind == TokenKind::kVariableEnd ? "the end of the expression"
                                                   : "\"" + found.text + "\""));
  }

  bool is_operator(std::string_view text) const {
    return token().kind == TokenKind::kOperator && token().text == text;
  }
  bool is_word(std::string_view text) const {
    return token().kind == TokenKind::kName && token().text == text;
  }
  bool skip_operator(std::string_view text) {
    if (!is_operator(text)) return false;
    advance();
    return true;
  }
  bool skip_word(std::string_view text) {
    if (!is_word(text)) return false;
    advance();
    return true;
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) error_here("\"" + std::string(text) + "\"");
  }
  void expect_word(std::string_view text) {
    if (!skip_word(text)) error_here("\"" + std::string(text) + "\"");
  }
  void expect_block_end() {
    if (token().kind != TokenKind::kBlockEnd) error_here("the end of the block");
    advance();
  }
  std::string expect_name() {
    if (token().kind != TokenKind::kName) error_here("a name");
    std::string text = token().text;
    advance();
    return text;
  }

  // A node at the current token.
  NodePtr make(NodeKind kind) const { return make(kind, token().position); }
  static NodePtr make(NodeKind kind, Position position) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->position = position;
    return node;
  }
  static NodePtr make(NodeKind kind, Position position, NodePtr first, NodePtr second = nullptr) {
    NodePtr node = make(kind, position);
    node->children.push_back(std::move(first));
    if (second) node->children.push_back(std::move(second));
    return node;
  }

  // Counts the nesting while it lives.
  class Deeper {
   public:
    explicit Deeper(TokenCursor& cursor) : cursor_(cursor) {
      if (++cursor_.depth_ > kMaxParseDepth) cursor_.error("the template is nested too deeply");
    }
    ~Deeper() { --cursor_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    TokenCursor& cursor_;
  };

 private:
  // Real templates nest less than 20 levels; this bounds the recursion here and in the evaluator.
  static constexpr int kMaxParseDepth = 200;

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace graft::data::jinja
