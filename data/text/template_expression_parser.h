// Expressions of templates, from the tokens to the tree (internal to data/text).
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "data/text/template_cursor.h"

namespace graft::data::jinja {

// Errors of all: kData with the position.
class ExpressionParser {
 public:
  // Names are interned in `tree`; both outlive the parser.
  ExpressionParser(TokenCursor& at, Tree& tree) : at_(at), tree_(tree) {}

  // The number of a name.
  int32_t intern(const std::string& name);
  enum class Conditional { kNo, kYes };  // whether `a if b else c` is one expression
  // An expression, or several with commas (a tuple without parentheses).
  NodePtr parse_tuple(Conditional conditional = Conditional::kYes);
  NodePtr parse_expression();
  // {% filter name | name %}: the first without "|".
  NodePtr parse_filter_chain();
  NodePtr parse_filters(NodePtr node);

 private:
  enum class Filters { kNo, kYes };
  bool is_tuple_end() const;
  NodePtr parse_or();
  NodePtr parse_and();
  NodePtr parse_not();
  NodePtr parse_compare();
  NodePtr binary(Position position, std::string operation, NodePtr left, NodePtr right);
  NodePtr parse_sum();
  NodePtr parse_concat();
  NodePtr parse_product();
  NodePtr parse_power();
  NodePtr parse_unary(Filters filters);
  NodePtr constant(Value value);
  NodePtr parse_primary();
  NodePtr parse_parentheses();
  NodePtr parse_list();
  NodePtr parse_dict();
  NodePtr parse_postfix(NodePtr node);
  NodePtr parse_subscript(NodePtr object);
  void parse_arguments(Node& call);
  NodePtr parse_filters_and_tests(NodePtr node);
  NodePtr parse_one_filter(NodePtr input);
  NodePtr parse_test(NodePtr input);

  TokenCursor& at_;
  Tree& tree_;
  std::unordered_map<std::string, int32_t> numbers_;
};

}  // namespace graft::data::jinja
