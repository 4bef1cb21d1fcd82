#include "data/text/template_expression_parser.h"

#include <array>
#include <charconv>

namespace graft::data::jinja {

int32_t ExpressionParser::intern(const std::string& name) {
  const auto [known, is_new] = numbers_.try_emplace(name, static_cast<int32_t>(tree_.names.size()));
  if (is_new) tree_.names.push_back(name);
  return known->second;
}

NodePtr ExpressionParser::parse_tuple(Conditional conditional) {
  const Position position = at_.token().position;
  const auto one = [&] {
    return conditional == Conditional::kYes ? parse_expression() : parse_or();
  };
  NodePtr first = one();
  if (!at_.is_operator(",")) return first;
  NodePtr tuple = at_.make(NodeKind::kTuple, position, std::move(first));
  while (at_.skip_operator(",")) {
    if (is_tuple_end()) break;
    tuple->children.push_back(one());
  }
  return tuple;
}

bool ExpressionParser::is_tuple_end() const {
  return at_.token().kind == TokenKind::kVariableEnd || at_.token().kind == TokenKind::kBlockEnd ||
         at_.is_operator(")") || at_.is_word("if") || at_.is_word("recursive");
}

NodePtr ExpressionParser::parse_expression() {
  const TokenCursor::Deeper deeper(at_);
  const Position position = at_.token().position;
  NodePtr value = parse_or();
  while (at_.skip_word("if")) {
    NodePtr condition = parse_or();
    NodePtr node =
        at_.make(NodeKind::kConditional, position, std::move(condition), std::move(value));
    node->children.push_back(at_.skip_word("else") ? parse_expression() : nullptr);
    value = std::move(node);
  }
  return value;
}

NodePtr ExpressionParser::parse_or() {
  const Position position = at_.token().position;
  NodePtr left = parse_and();
  while (at_.skip_word("or")) {
    left = at_.make(NodeKind::kOr, position, std::move(left), parse_and());
  }
  return left;
}

NodePtr ExpressionParser::parse_and() {
  const Position position = at_.token().position;
  NodePtr left = parse_not();
  while (at_.skip_word("and")) {
    left = at_.make(NodeKind::kAnd, position, std::move(left), parse_not());
  }
  return left;
}

NodePtr ExpressionParser::parse_not() {
  const Position position = at_.token().position;
  if (at_.skip_word("not")) {
    const TokenCursor::Deeper deeper(at_);
    return at_.make(NodeKind::kNot, position, parse_not());
  }
  return parse_compare();
}

NodePtr ExpressionParser::parse_compare() {
  const Position position = at_.token().position;
  NodePtr left = parse_sum();
  NodePtr node;
  for (;;) {
    std::string operation;
    constexpr std::array<std::string_view, 6> symbols = {"==", "!=", "<", "<=", ">", ">="};
    for (const std::string_view symbol : symbols) {
      if (at_.is_operator(symbol)) operation = symbol;
    }
    if (!operation.empty()) {
      at_.advance();
    } else if (at_.skip_word("in")) {
      operation = "in";
    } else if (at_.is_word("not") && at_.ahead().kind == TokenKind::kName &&
               at_.ahead().text == "in") {
      at_.advance();
      at_.advance();
      operation = "not in";
    } else {
      break;
    }
    if (!node) node = at_.make(NodeKind::kCompare, position, std::move(left));
    node->texts.push_back(operation);
    node->children.push_back(parse_sum());
  }
  return node ? std::move(node) : std::move(left);
}

NodePtr ExpressionParser::binary(Position position,
                                 std::string operation,
                                 NodePtr left,
                                 NodePtr right) {
  NodePtr node = at_.make(NodeKind::kBinary, position, std::move(left), std::move(right));
  node->text = std::move(operation);
  return node;
}

NodePtr ExpressionParser::parse_sum() {
  NodePtr left = parse_concat();
  while (at_.is_operator("+") || at_.is_operator("-")) {
    const Token operation = at_.token();
    at_.advance();
    left = binary(operation.position, operation.text, std::move(left), parse_concat());
  }
  return left;
}

NodePtr ExpressionParser::parse_concat() {
  const Position position = at_.token().position;
  NodePtr left = parse_product();
  if (!at_.is_operator("~")) return left;
  NodePtr node = at_.make(NodeKind::kConcat, position, std::move(left));
  while (at_.skip_operator("~")) node->children.push_back(parse_product());
  return node;
}

NodePtr ExpressionParser::parse_product() {
  NodePtr left = parse_power();
  while (at_.is_operator("*") || at_.is_operator("/") || at_.is_operator("//") ||
         at_.is_operator("%")) {
    const Token operation = at_.token();
    at_.advance();
    left = binary(operation.position, operation.text, std::move(left), parse_power());
  }
  return left;
}

NodePtr ExpressionParser::parse_power() {
  NodePtr left = parse_unary(Filters::kYes);
  if (at_.is_operator("**")) at_.error("the operator ** is not supported");
  return left;
}

NodePtr ExpressionParser::parse_unary(Filters filters) {
  const TokenCursor::Deeper deeper(at_);
  const Position position = at_.token().position;
  NodePtr node;
  if (at_.skip_operator("-")) {
    node = at_.make(NodeKind::kNegative, position, parse_unary(Filters::kNo));
  } else if (at_.skip_operator("+")) {
    node = at_.make(NodeKind::kPositive, position, parse_unary(Filters::kNo));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return filters == Filters::kYes ? parse_filters_and_tests(std::move(node)) : std::move(node);
}

NodePtr ExpressionParser::constant(Value value) {
  NodePtr node = at_.make(NodeKind::kConst);
  node->value = std::move(value);
  at_.advance();
  return node;
}

NodePtr ExpressionParser::parse_primary() {
  const Token& first = at_.token();
  switch (first.kind) {
    case TokenKind::kName: {
      if (first.text == "true" || first.text == "True") return constant(Value::boolean(true));
      if (first.text == "false" || first.text == "False") return constant(Value::boolean(false));
      if (first.text == "none" || first.text == "None") return constant(Value::none());
      NodePtr node = at_.make(NodeKind::kName);
      node->text = first.text;
      node->name = intern(first.text);
      at_.advance();
      return node;
    }
    case TokenKind::kString: {
      NodePtr node = at_.make(NodeKind::kConst);
      std::string text;
      while (at_.token().kind == TokenKind::kString) {
        text += at_.token().text;
        at_.advance();
      }
      node->value = Value::string(std::move(text));
      return node;
    }
    case TokenKind::kInteger:
      return constant(Value::integer(std::stoll(first.text)));
    case TokenKind::kFloat: {
      double value = 0;
      std::from_chars(first.text.data(), first.text.data() + first.text.size(), value);
      return constant(Value(Value::Data(value)));
    }
    case TokenKind::kOperator:
      if (first.text == "(") return parse_parentheses();
      if (first.text == "[") return parse_list();
      if (first.text == "{") return parse_dict();
      break;
    default:
      break;
  }
  at_.error_here("an expression");
}

NodePtr ExpressionParser::parse_parentheses() {
  const Position position = at_.token().position;
  at_.advance();
  if (at_.skip_operator(")")) return at_.make(NodeKind::kTuple, position);
  NodePtr inner = parse_tuple();
  at_.expect_operator(")");
  return inner;
}

NodePtr ExpressionParser::parse_list() {
  NodePtr node = at_.make(NodeKind::kList);
  at_.advance();
  while (!at_.is_operator("]")) {
    if (!node->children.empty()) at_.expect_operator(",");
    if (at_.is_operator("]")) break;
    node->children.push_back(parse_expression());
  }
  at_.advance();
  return node;
}

NodePtr ExpressionParser::parse_dict() {
  NodePtr node = at_.make(NodeKind::kDict);
  at_.advance();
  while (!at_.is_operator("}")) {
    if (!node->children.empty()) at_.expect_operator(",");
    if (at_.is_operator("}")) break;
    node->children.push_back(parse_expression());
    at_.expect_operator(":");
    node->children.push_back(parse_expression());
  }
  at_.advance();
  return node;
}

NodePtr ExpressionParser::parse_postfix(NodePtr node) {
  for (;;) {
    const Position position = at_.token().position;
    if (at_.skip_operator(".")) {
      node = at_.make(NodeKind::kGetattr, position, std::move(node));
      if (at_.token().kind == TokenKind::kInteger)
        at_.error("attributes by number are not supported");
      node->text = at_.expect_name();
    } else if (at_.is_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_.is_operator("(")) {
      NodePtr call = at_.make(NodeKind::kCall, position, std::move(node));
      parse_arguments(*call);
      node = std::move(call);
    } else {
      return node;
    }
  }
}

NodePtr ExpressionParser::parse_subscript(NodePtr object) {
  const Position position = at_.token().position;
  at_.advance();
  const auto part = [&]() -> NodePtr {
    return at_.is_operator(":") || at_.is_operator("]") ? nullptr : parse_expression();
  };
  NodePtr start = part();
  if (!at_.is_operator(":")) {
    if (!start) at_.error_here("an index");
    at_.expect_operator("]");
    return at_.make(NodeKind::kGetitem, position, std::move(object), std::move(start));
  }
  NodePtr node = at_.make(NodeKind::kSlice, position, std::move(object));
  at_.advance();
  node->children.push_back(std::move(start));
  node->children.push_back(part());
  node->children.push_back(at_.skip_operator(":") ? part() : nullptr);
  at_.expect_operator("]");
  return node;
}

void ExpressionParser::parse_arguments(Node& call) {
  at_.expect_operator("(");
  bool first = true;
  while (!at_.is_operator(")")) {
    if (!first) at_.expect_operator(",");
    first = false;
    if (at_.is_operator(")")) break;
    if (at_.is_operator("*") || at_.is_operator("**"))
      at_.error("starred arguments are not supported");
    if (at_.token().kind == TokenKind::kName && at_.ahead().kind == TokenKind::kOperator &&
        at_.ahead().text == "=") {
      std::string keyword = at_.expect_name();
      at_.advance();
      call.keywords.emplace_back(std::move(keyword), parse_expression());
    } else {
      if (!call.keywords.empty()) at_.error("an argument without a name follows one with a name");
      call.children.push_back(parse_expression());
    }
  }
  at_.expect_operator(")");
}

NodePtr ExpressionParser::parse_filters_and_tests(NodePtr node) {
  for (;;) {
    if (at_.is_operator("|")) {
      node = parse_filters(std::move(node));
    } else if (at_.is_word("is")) {
      node = parse_test(std::move(node));
    } else if (at_.is_operator("(")) {
      NodePtr call = at_.make(NodeKind::kCall, at_.token().position, std::move(node));
      parse_arguments(*call);
      node = std::move(call);
    } else {
      return node;
    }
  }
}

NodePtr ExpressionParser::parse_filter_chain() {
  NodePtr node = parse_one_filter(nullptr);
  return at_.is_operator("|") ? parse_filters(std::move(node)) : std::move(node);
}

NodePtr ExpressionParser::parse_one_filter(NodePtr input) {
  NodePtr node = at_.make(NodeKind::kFilter);
  node->text = at_.expect_name();
  if (at_.is_operator(".")) at_.error("filter names with a dot are not supported");
  node->children.push_back(std::move(input));
  if (at_.is_operator("(")) parse_arguments(*node);
  return node;
}

NodePtr ExpressionParser::parse_filters(NodePtr node) {
  while (at_.skip_operator("|")) node = parse_one_filter(std::move(node));
  return node;
}

NodePtr ExpressionParser::parse_test(NodePtr input) {
  const Position position = at_.token().position;
  at_.advance();
  const bool negated = at_.skip_word("not");
  NodePtr node = at_.make(NodeKind::kTest, position, std::move(input));
  node->text = at_.expect_name();
  const TokenKind kind = at_.token().kind;
  if (at_.is_operator("(")) {
    parse_arguments(*node);
  } else if (kind == TokenKind::kString || kind == TokenKind::kInteger ||
             kind == TokenKind::kFloat || at_.is_operator("[") || at_.is_operator("{") ||
             (kind == TokenKind::kName && !at_.is_word("else") && !at_.is_word("or") &&
              !at_.is_word("and") && !at_.is_word("not") && !at_.is_word("if") &&
              !at_.is_word("in"))) {
    if (at_.is_word("is")) at_.error("tests cannot be chained with is");
    node->children.push_back(parse_postfix(parse_primary()));
  }
  return negated ? at_.make(NodeKind::kNot, position, std::move(node)) : std::move(node);
}

}  // namespace graft::data::jinja
