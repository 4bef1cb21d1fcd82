// The parser follows jinja2.parser (3.1).
#include <algorithm>
#include <array>
#include <initializer_list>

#include "core/error.h"
#include "data/text/template_ast.h"
#include "data/text/template_cursor.h"
#include "data/text/template_expression_parser.h"

namespace graft::data::jinja {
namespace {

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name)
      : at_(std::move(tokens), name), expressions_(at_, tree_) {}

  Tree run() {
    tree_.body = parse_body({});
    return std::move(tree_);
  }

 private:
  // Statements up to {% one of `ends` … (its name is the current token), or to the end of the
  // template when there are none.
  std::vector<NodePtr> parse_body(std::initializer_list<std::string_view> ends) {
    const TokenCursor::Deeper deeper(at_);
    std::vector<NodePtr> body;
    for (;;) {
      switch (at_.token().kind) {
        case TokenKind::kText: {
          NodePtr node = at_.make(NodeKind::kTemplateText);
          node->value = Value::string(at_.token().text);
          body.push_back(std::move(node));
          at_.advance();
          break;
        }
        case TokenKind::kVariableBegin: {
          NodePtr node = at_.make(NodeKind::kOutput);
          at_.advance();
          node->children.push_back(expressions_.parse_tuple());
          if (at_.token().kind != TokenKind::kVariableEnd)
            at_.error_here("the end of the expression");
          at_.advance();
          body.push_back(std::move(node));
          break;
        }
        case TokenKind::kBlockBegin:
          at_.advance();
          if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return at_.is_word(end); })) {
            return body;
          }
          body.push_back(parse_statement());
          break;
        default:
          if (ends.size() > 0) at_.error_here("{% " + std::string(*std::prev(ends.end())) + " %}");
          return body;
      }
    }
  }

  // The body of a block and its end tag.
  std::vector<NodePtr> parse_block(std::string_view end) {
    at_.expect_block_end();
    std::vector<NodePtr> body = parse_body({end});
    at_.advance();
    at_.expect_block_end();
    return body;
  }

  NodePtr parse_statement() {
    if (at_.token().kind != TokenKind::kName) at_.error_here("a statement");
    const Position position = at_.token().position;
    const std::string word = at_.token().text;
    at_.advance();
    if (word == "if") return parse_if(position);
    if (word == "for") return parse_for(position);
    if (word == "set") return parse_set(position);
    if (word == "macro") return parse_macro(position);
    if (word == "call") return parse_call_block(position);
    if (word == "filter") {
      NodePtr node = at_.make(NodeKind::kFilterBlock, position);
      node->children.push_back(expressions_.parse_filter_chain());
      node->body = parse_block("endfilter");
      return node;
    }
    if (word == "generation") {
      NodePtr node = at_.make(NodeKind::kGeneration, position);
      node->body = parse_block("endgeneration");
      tree_.has_generation = true;
      return node;
    }
    if (word == "with") return parse_with(position);
    if (word == "break" || word == "continue") {
      if (loops_ == 0) at_.error_at(position, "{% " + word + " %} outside of a loop");
      at_.expect_block_end();
      return at_.make(word == "break" ? NodeKind::kBreak : NodeKind::kContinue, position);
    }
    constexpr std::array<std::string_view, 20> kKnown = {
        "if",         "elif",          "else",     "endif",   "for",     "endfor",  "set",
        "endset",     "macro",         "endmacro", "call",    "endcall", "filter",  "endfilter",
        "generation", "endgeneration", "with",     "endwith", "break",   "continue"};
    at_.error_at(position, unknown_name("statement", word, kKnown));
  }

  NodePtr parse_if(Position position) {
    NodePtr node = at_.make(NodeKind::kIf, position);
    node->children.push_back(expressions_.parse_tuple(ExpressionParser::Conditional::kNo));
    at_.expect_block_end();
    node->body = parse_body({"elif", "else", "endif"});
    if (at_.is_word("elif")) {
      const Position next = at_.token().position;
      at_.advance();
      const TokenCursor::Deeper deeper(at_);
      node->other.push_back(parse_if(next));
      return node;
    }
    if (at_.skip_word("else")) {
      at_.expect_block_end();
      node->other = parse_body({"endif"});
    }
    at_.advance();
    at_.expect_block_end();
    return node;
  }

  NodePtr parse_for(Position position) {
    NodePtr node = at_.make(NodeKind::kFor, position);
    node->children.push_back(parse_target(Namespaces::kNo));
    at_.expect_word("in");
    node->children.push_back(expressions_.parse_tuple(ExpressionParser::Conditional::kNo));
    node->children.push_back(at_.skip_word("if") ? expressions_.parse_expression() : nullptr);
    node->recursive = at_.skip_word("recursive");
    if (node->recursive) at_.error_at(position, "recursive loops are not supported");
    at_.expect_block_end();
    ++loops_;
    node->body = parse_body({"else", "endfor"});
    --loops_;
    if (at_.skip_word("else")) {
      at_.expect_block_end();
      node->other = parse_body({"endfor"});
    }
    at_.advance();
    at_.expect_block_end();
    return node;
  }

  enum class Namespaces { kNo, kYes };
  // A name, several names, or `ns.attribute`.
  NodePtr parse_target(Namespaces namespaces) {
    const Position position = at_.token().position;
    const auto one = [&]() -> NodePtr {
      if (at_.skip_operator("(")) {
        NodePtr inner = parse_target(Namespaces::kNo);
        at_.expect_operator(")");
        return inner;
      }
      NodePtr node = at_.make(NodeKind::kName);
      node->text = at_.expect_name();
      constexpr std::array<std::string_view, 6> constants = {"true",  "True", "false",
                                                             "False", "none", "None"};
      if (std::find(constants.begin(), constants.end(), node->text) != constants.end() ||
          (node->text == "loop")) {
        at_.error_at(node->position, "cannot assign to \"" + node->text + "\"");
      }
      node->name = expressions_.intern(node->text);
      return node;
    };
    NodePtr first = one();
    if (namespaces == Namespaces::kYes && at_.skip_operator(".")) {
      NodePtr node = at_.make(NodeKind::kGetattr, position, std::move(first));
      node->text = at_.expect_name();
      return node;
    }
    if (!at_.is_operator(",")) return first;
    NodePtr tuple = at_.make(NodeKind::kTuple, position, std::move(first));
    while (at_.skip_operator(",")) {
      if (at_.is_word("in") || at_.is_operator("=") || at_.is_operator(")")) break;
      tuple->children.push_back(one());
    }
    return tuple;
  }

  NodePtr parse_set(Position position) {
    NodePtr target = parse_target(Namespaces::kYes);
    if (at_.skip_operator("=")) {
      NodePtr node =
          at_.make(NodeKind::kSet, position, std::move(target), expressions_.parse_tuple());
      at_.expect_block_end();
      return node;
    }
    NodePtr node = at_.make(NodeKind::kSetBlock, position, std::move(target));
    node->children.push_back(at_.is_operator("|") ? expressions_.parse_filters(nullptr) : nullptr);
    node->body = parse_block("endset");
    return node;
  }

  void parse_parameters(Node& node) {
    at_.expect_operator("(");
    while (!at_.is_operator(")")) {
      if (!node.parameters.empty()) at_.expect_operator(",");
      if (at_.is_operator("*") || at_.is_operator("**"))
        at_.error("starred parameters are not supported");
      node.parameters.push_back(expressions_.intern(at_.expect_name()));
      NodePtr fallback = at_.skip_operator("=") ? expressions_.parse_expression() : nullptr;
      node.keywords.emplace_back("", std::move(fallback));
    }
    at_.expect_operator(")");
  }

  NodePtr parse_macro(Position position) {
    NodePtr node = at_.make(NodeKind::kMacro, position);
    node->text = at_.expect_name();
    node->name = expressions_.intern(node->text);
    parse_parameters(*node);
    const int loops = std::exchange(loops_, 0);
    node->body = parse_block("endmacro");
    loops_ = loops;
    return node;
  }

  NodePtr parse_call_block(Position position) {
    NodePtr node = at_.make(NodeKind::kCallBlock, position);
    if (at_.is_operator("(")) parse_parameters(*node);
    node->children.push_back(expressions_.parse_expression());
    if (node->children[0]->kind != NodeKind::kCall) {
      at_.error_at(position, "{% call %} needs a call of a macro");
    }
    const int loops = std::exchange(loops_, 0);
    node->body = parse_block("endcall");
    loops_ = loops;
    return node;
  }

  NodePtr parse_with(Position position) {
    NodePtr node = at_.make(NodeKind::kWith, position);
    while (at_.token().kind != TokenKind::kBlockEnd) {
      if (!node->children.empty()) at_.expect_operator(",");
      node->children.push_back(parse_target(Namespaces::kNo));
      at_.expect_operator("=");
      node->children.push_back(expressions_.parse_expression());
    }
    node->body = parse_block("endwith");
    return node;
  }

  Tree tree_;
  TokenCursor at_;
  ExpressionParser expressions_;
  int loops_ = 0;
};

}  // namespace

Node::~Node() {
  std::vector<NodePtr> pending;
  const auto take = [&](Node& node) {
    for (std::vector<NodePtr>* part : {&node.children, &node.body, &node.other}) {
      for (NodePtr& child : *part) {
        if (child) pending.push_back(std::move(child));
      }
    }
    for (auto& keyword : node.keywords) {
      if (keyword.second) pending.push_back(std::move(keyword.second));
    }
  };
  take(*this);
  while (!pending.empty()) {
    const NodePtr node = std::move(pending.back());
    pending.pop_back();
    take(*node);
  }
}

int32_t Tree::number_of(std::string_view name) const {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? kNoName : static_cast<int32_t>(found - names.begin());
}

Tree parse_template(std::string_view source, const std::string& name) {
  return Parser(tokenize_template(source, name), name).run();
}

}  // namespace graft::data::jinja
