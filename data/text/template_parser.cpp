// The parser follows jinja2.parser (3.1).
#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>
#include <unordered_map>

#include "core/error.h"
#include "data/text/template_ast.h"

namespace graft::data::jinja {
namespace {

// Real templates nest less than 20 levels; this bounds the recursion here and in the evaluator.
constexpr int kMaxParseDepth = 200;

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name)
      : tokens_(std::move(tokens)), name_(name) {}

  Tree run() {
    tree_.body = parse_body({});
    return std::move(tree_);
  }

 private:
  // Counts the nesting while it lives.
  class Deeper {
   public:
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxParseDepth) parser_.error("the template is nested too deeply");
    }
    ~Deeper() { --parser_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Parser& parser_;
  };

  const Token& token() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void advance() {
    if (token().kind != TokenKind::kEnd) ++at_;
  }
  [[noreturn]] void error(const std::string& what, const std::string& fix = "") const {
    fail_at(name_, token().position, what, fix);
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

  int32_t intern(const std::string& name) {
    const auto [known, is_new] =
        numbers_.try_emplace(name, static_cast<int32_t>(tree_.names.size()));
    if (is_new) tree_.names.push_back(name);
    return known->second;
  }

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

  // ---- statements

  // Statements up to {% one of `ends` … (its name is the current token), or to the end of the
  // template when there are none.
  std::vector<NodePtr> parse_body(std::initializer_list<std::string_view> ends) {
    const Deeper deeper(*this);
    std::vector<NodePtr> body;
    for (;;) {
      switch (token().kind) {
        case TokenKind::kText: {
          NodePtr node = make(NodeKind::kTemplateText);
          node->value = Value::string(token().text);
          body.push_back(std::move(node));
          advance();
          break;
        }
        case TokenKind::kVariableBegin: {
          NodePtr node = make(NodeKind::kOutput);
          advance();
          node->children.push_back(parse_tuple());
          if (token().kind != TokenKind::kVariableEnd) error_here("the end of the expression");
          advance();
          body.push_back(std::move(node));
          break;
        }
        case TokenKind::kBlockBegin:
          advance();
          if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return is_word(end); })) {
            return body;
          }
          body.push_back(parse_statement());
          break;
        default:
          if (ends.size() > 0) error_here("{% " + std::string(*std::prev(ends.end())) + " %}");
          return body;
      }
    }
  }

  // The body of a block and its end tag.
  std::vector<NodePtr> parse_block(std::string_view end) {
    expect_block_end();
    std::vector<NodePtr> body = parse_body({end});
    advance();
    expect_block_end();
    return body;
  }

  NodePtr parse_statement() {
    if (token().kind != TokenKind::kName) error_here("a statement");
    const Position position = token().position;
    const std::string word = token().text;
    advance();
    if (word == "if") return parse_if(position);
    if (word == "for") return parse_for(position);
    if (word == "set") return parse_set(position);
    if (word == "macro") return parse_macro(position);
    if (word == "call") return parse_call_block(position);
    if (word == "filter") {
      NodePtr node = make(NodeKind::kFilterBlock, position);
      node->children.push_back(parse_filter_chain());
      node->body = parse_block("endfilter");
      return node;
    }
    if (word == "generation") {
      NodePtr node = make(NodeKind::kGeneration, position);
      node->body = parse_block("endgeneration");
      tree_.has_generation = true;
      return node;
    }
    if (word == "with") return parse_with(position);
    if (word == "break" || word == "continue") {
      if (loops_ == 0) fail_at(name_, position, "{% " + word + " %} outside of a loop");
      expect_block_end();
      return make(word == "break" ? NodeKind::kBreak : NodeKind::kContinue, position);
    }
    constexpr std::array<std::string_view, 20> kKnown = {
        "if",         "elif",          "else",     "endif",   "for",     "endfor",  "set",
        "endset",     "macro",         "endmacro", "call",    "endcall", "filter",  "endfilter",
        "generation", "endgeneration", "with",     "endwith", "break",   "continue"};
    fail_at(name_, position, unknown_name("statement", word, kKnown));
  }

  NodePtr parse_if(Position position) {
    NodePtr node = make(NodeKind::kIf, position);
    node->children.push_back(parse_tuple(Conditional::kNo));
    expect_block_end();
    node->body = parse_body({"elif", "else", "endif"});
    if (is_word("elif")) {
      const Position next = token().position;
      advance();
      const Deeper deeper(*this);
      node->other.push_back(parse_if(next));
      return node;
    }
    if (skip_word("else")) {
      expect_block_end();
      node->other = parse_body({"endif"});
    }
    advance();
    expect_block_end();
    return node;
  }

  NodePtr parse_for(Position position) {
    NodePtr node = make(NodeKind::kFor, position);
    node->children.push_back(parse_target(Namespaces::kNo));
    expect_word("in");
    node->children.push_back(parse_tuple(Conditional::kNo));
    node->children.push_back(skip_word("if") ? parse_expression() : nullptr);
    node->recursive = skip_word("recursive");
    if (node->recursive) fail_at(name_, position, "recursive loops are not supported");
    expect_block_end();
    ++loops_;
    node->body = parse_body({"else", "endfor"});
    --loops_;
    if (skip_word("else")) {
      expect_block_end();
      node->other = parse_body({"endfor"});
    }
    advance();
    expect_block_end();
    return node;
  }

  enum class Namespaces { kNo, kYes };
  // A name, several names, or `ns.attribute`.
  NodePtr parse_target(Namespaces namespaces) {
    const Position position = token().position;
    const auto one = [&]() -> NodePtr {
      if (skip_operator("(")) {
        NodePtr inner = parse_target(Namespaces::kNo);
        expect_operator(")");
        return inner;
      }
      NodePtr node = make(NodeKind::kName);
      node->text = expect_name();
      constexpr std::array<std::string_view, 6> constants = {"true",  "True", "false",
                                                             "False", "none", "None"};
      if (std::find(constants.begin(), constants.end(), node->text) != constants.end() ||
          (node->text == "loop")) {
        fail_at(name_, node->position, "cannot assign to \"" + node->text + "\"");
      }
      node->name = intern(node->text);
      return node;
    };
    NodePtr first = one();
    if (namespaces == Namespaces::kYes && skip_operator(".")) {
      NodePtr node = make(NodeKind::kGetattr, position, std::move(first));
      node->text = expect_name();
      return node;
    }
    if (!is_operator(",")) return first;
    NodePtr tuple = make(NodeKind::kTuple, position, std::move(first));
    while (skip_operator(",")) {
      if (is_word("in") || is_operator("=") || is_operator(")")) break;
      tuple->children.push_back(one());
    }
    return tuple;
  }

  NodePtr parse_set(Position position) {
    NodePtr target = parse_target(Namespaces::kYes);
    if (skip_operator("=")) {
      NodePtr node = make(NodeKind::kSet, position, std::move(target), parse_tuple());
      expect_block_end();
      return node;
    }
    NodePtr node = make(NodeKind::kSetBlock, position, std::move(target));
    node->children.push_back(is_operator("|") ? parse_filters(nullptr) : nullptr);
    node->body = parse_block("endset");
    return node;
  }

  void parse_parameters(Node& node) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!node.parameters.empty()) expect_operator(",");
      if (is_operator("*") || is_operator("**")) error("starred parameters are not supported");
      node.parameters.push_back(intern(expect_name()));
      NodePtr fallback = skip_operator("=") ? parse_expression() : nullptr;
      node.keywords.emplace_back("", std::move(fallback));
    }
    expect_operator(")");
  }

  NodePtr parse_macro(Position position) {
    NodePtr node = make(NodeKind::kMacro, position);
    node->text = expect_name();
    node->name = intern(node->text);
    parse_parameters(*node);
    const int loops = std::exchange(loops_, 0);
    node->body = parse_block("endmacro");
    loops_ = loops;
    return node;
  }

  NodePtr parse_call_block(Position position) {
    NodePtr node = make(NodeKind::kCallBlock, position);
    if (is_operator("(")) parse_parameters(*node);
    node->children.push_back(parse_expression());
    if (node->children[0]->kind != NodeKind::kCall) {
      fail_at(name_, position, "{% call %} needs a call of a macro");
    }
    const int loops = std::exchange(loops_, 0);
    node->body = parse_block("endcall");
    loops_ = loops;
    return node;
  }

  NodePtr parse_with(Position position) {
    NodePtr node = make(NodeKind::kWith, position);
    while (token().kind != TokenKind::kBlockEnd) {
      if (!node->children.empty()) expect_operator(",");
      node->children.push_back(parse_target(Namespaces::kNo));
      expect_operator("=");
      node->children.push_back(parse_expression());
    }
    node->body = parse_block("endwith");
    return node;
  }

  // ---- expressions

  enum class Conditional { kNo, kYes };

  // An expression, or several with commas (a tuple without parentheses).
  NodePtr parse_tuple(Conditional conditional = Conditional::kYes) {
    const Position position = token().position;
    const auto one = [&] {
      return conditional == Conditional::kYes ? parse_expression() : parse_or();
    };
    NodePtr first = one();
    if (!is_operator(",")) return first;
    NodePtr tuple = make(NodeKind::kTuple, position, std::move(first));
    while (skip_operator(",")) {
      if (is_tuple_end()) break;
      tuple->children.push_back(one());
    }
    return tuple;
  }

  bool is_tuple_end() const {
    return token().kind == TokenKind::kVariableEnd || token().kind == TokenKind::kBlockEnd ||
           is_operator(")") || is_word("if") || is_word("recursive");
  }

  NodePtr parse_expression() {
    const Deeper deeper(*this);
    const Position position = token().position;
    NodePtr value = parse_or();
    while (skip_word("if")) {
      NodePtr condition = parse_or();
      NodePtr node = make(NodeKind::kConditional, position, std::move(condition), std::move(value));
      node->children.push_back(skip_word("else") ? parse_expression() : nullptr);
      value = std::move(node);
    }
    return value;
  }

  NodePtr parse_or() {
    const Position position = token().position;
    NodePtr left = parse_and();
    while (skip_word("or")) {
      left = make(NodeKind::kOr, position, std::move(left), parse_and());
    }
    return left;
  }

  NodePtr parse_and() {
    const Position position = token().position;
    NodePtr left = parse_not();
    while (skip_word("and")) {
      left = make(NodeKind::kAnd, position, std::move(left), parse_not());
    }
    return left;
  }

  NodePtr parse_not() {
    const Position position = token().position;
    if (skip_word("not")) {
      const Deeper deeper(*this);
      return make(NodeKind::kNot, position, parse_not());
    }
    return parse_compare();
  }

  NodePtr parse_compare() {
    const Position position = token().position;
    NodePtr left = parse_sum();
    NodePtr node;
    for (;;) {
      std::string operation;
      constexpr std::array<std::string_view, 6> symbols = {"==", "!=", "<", "<=", ">", ">="};
      for (const std::string_view symbol : symbols) {
        if (is_operator(symbol)) operation = symbol;
      }
      if (!operation.empty()) {
        advance();
      } else if (skip_word("in")) {
        operation = "in";
      } else if (is_word("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
        advance();
        advance();
        operation = "not in";
      } else {
        break;
      }
      if (!node) node = make(NodeKind::kCompare, position, std::move(left));
      node->texts.push_back(operation);
      node->children.push_back(parse_sum());
    }
    return node ? std::move(node) : std::move(left);
  }

  NodePtr binary(Position position, std::string operation, NodePtr left, NodePtr right) {
    NodePtr node = make(NodeKind::kBinary, position, std::move(left), std::move(right));
    node->text = std::move(operation);
    return node;
  }

  NodePtr parse_sum() {
    NodePtr left = parse_concat();
    while (is_operator("+") || is_operator("-")) {
      const Token operation = token();
      advance();
      left = binary(operation.position, operation.text, std::move(left), parse_concat());
    }
    return left;
  }

  NodePtr parse_concat() {
    const Position position = token().position;
    NodePtr left = parse_product();
    if (!is_operator("~")) return left;
    NodePtr node = make(NodeKind::kConcat, position, std::move(left));
    while (skip_operator("~")) node->children.push_back(parse_product());
    return node;
  }

  NodePtr parse_product() {
    NodePtr left = parse_power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const Token operation = token();
      advance();
      left = binary(operation.position, operation.text, std::move(left), parse_power());
    }
    return left;
  }

  NodePtr parse_power() {
    NodePtr left = parse_unary(Filters::kYes);
    if (is_operator("**")) error("the operator ** is not supported");
    return left;
  }

  enum class Filters { kNo, kYes };
  NodePtr parse_unary(Filters filters) {
    const Deeper deeper(*this);
    const Position position = token().position;
    NodePtr node;
    if (skip_operator("-")) {
      node = make(NodeKind::kNegative, position, parse_unary(Filters::kNo));
    } else if (skip_operator("+")) {
      node = make(NodeKind::kPositive, position, parse_unary(Filters::kNo));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    return filters == Filters::kYes ? parse_filters_and_tests(std::move(node)) : std::move(node);
  }

  NodePtr constant(Value value) {
    NodePtr node = make(NodeKind::kConst);
    node->value = std::move(value);
    advance();
    return node;
  }

  NodePtr parse_primary() {
    const Token& first = token();
    switch (first.kind) {
      case TokenKind::kName: {
        if (first.text == "true" || first.text == "True") return constant(Value::boolean(true));
        if (first.text == "false" || first.text == "False") return constant(Value::boolean(false));
        if (first.text == "none" || first.text == "None") return constant(Value::none());
        NodePtr node = make(NodeKind::kName);
        node->text = first.text;
        node->name = intern(first.text);
        advance();
        return node;
      }
      case TokenKind::kString: {
        NodePtr node = make(NodeKind::kConst);
        std::string text;
        while (token().kind == TokenKind::kString) {
          text += token().text;
          advance();
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
    error_here("an expression");
  }

  NodePtr parse_parentheses() {
    const Position position = token().position;
    advance();
    if (skip_operator(")")) return make(NodeKind::kTuple, position);
    NodePtr inner = parse_tuple();
    expect_operator(")");
    return inner;
  }

  NodePtr parse_list() {
    NodePtr node = make(NodeKind::kList);
    advance();
    while (!is_operator("]")) {
      if (!node->children.empty()) expect_operator(",");
      if (is_operator("]")) break;
      node->children.push_back(parse_expression());
    }
    advance();
    return node;
  }

  NodePtr parse_dict() {
    NodePtr node = make(NodeKind::kDict);
    advance();
    while (!is_operator("}")) {
      if (!node->children.empty()) expect_operator(",");
      if (is_operator("}")) break;
      node->children.push_back(parse_expression());
      expect_operator(":");
      node->children.push_back(parse_expression());
    }
    advance();
    return node;
  }

  NodePtr parse_postfix(NodePtr node) {
    for (;;) {
      const Position position = token().position;
      if (skip_operator(".")) {
        node = make(NodeKind::kGetattr, position, std::move(node));
        if (token().kind == TokenKind::kInteger) error("attributes by number are not supported");
        node->text = expect_name();
      } else if (is_operator("[")) {
        node = parse_subscript(std::move(node));
      } else if (is_operator("(")) {
        NodePtr call = make(NodeKind::kCall, position, std::move(node));
        parse_arguments(*call);
        node = std::move(call);
      } else {
        return node;
      }
    }
  }

  NodePtr parse_subscript(NodePtr object) {
    const Position position = token().position;
    advance();
    const auto part = [&]() -> NodePtr {
      return is_operator(":") || is_operator("]") ? nullptr : parse_expression();
    };
    NodePtr start = part();
    if (!is_operator(":")) {
      if (!start) error_here("an index");
      expect_operator("]");
      return make(NodeKind::kGetitem, position, std::move(object), std::move(start));
    }
    NodePtr node = make(NodeKind::kSlice, position, std::move(object));
    advance();
    node->children.push_back(std::move(start));
    node->children.push_back(part());
    node->children.push_back(skip_operator(":") ? part() : nullptr);
    expect_operator("]");
    return node;
  }

  void parse_arguments(Node& call) {
    expect_operator("(");
    bool first = true;
    while (!is_operator(")")) {
      if (!first) expect_operator(",");
      first = false;
      if (is_operator(")")) break;
      if (is_operator("*") || is_operator("**")) error("starred arguments are not supported");
      if (token().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator &&
          ahead().text == "=") {
        std::string keyword = expect_name();
        advance();
        call.keywords.emplace_back(std::move(keyword), parse_expression());
      } else {
        if (!call.keywords.empty()) error("an argument without a name follows one with a name");
        call.children.push_back(parse_expression());
      }
    }
    expect_operator(")");
  }

  NodePtr parse_filters_and_tests(NodePtr node) {
    for (;;) {
      if (is_operator("|")) {
        node = parse_filters(std::move(node));
      } else if (is_word("is")) {
        node = parse_test(std::move(node));
      } else if (is_operator("(")) {
        NodePtr call = make(NodeKind::kCall, token().position, std::move(node));
        parse_arguments(*call);
        node = std::move(call);
      } else {
        return node;
      }
    }
  }

  // {% filter name | name %}: the first without "|".
  NodePtr parse_filter_chain() {
    NodePtr node = parse_one_filter(nullptr);
    return is_operator("|") ? parse_filters(std::move(node)) : std::move(node);
  }

  NodePtr parse_one_filter(NodePtr input) {
    NodePtr node = make(NodeKind::kFilter);
    node->text = expect_name();
    if (is_operator(".")) error("filter names with a dot are not supported");
    node->children.push_back(std::move(input));
    if (is_operator("(")) parse_arguments(*node);
    return node;
  }

  NodePtr parse_filters(NodePtr node) {
    while (skip_operator("|")) node = parse_one_filter(std::move(node));
    return node;
  }

  NodePtr parse_test(NodePtr input) {
    const Position position = token().position;
    advance();
    const bool negated = skip_word("not");
    NodePtr node = make(NodeKind::kTest, position, std::move(input));
    node->text = expect_name();
    const TokenKind kind = token().kind;
    if (is_operator("(")) {
      parse_arguments(*node);
    } else if (kind == TokenKind::kString || kind == TokenKind::kInteger ||
               kind == TokenKind::kFloat || is_operator("[") || is_operator("{") ||
               (kind == TokenKind::kName && !is_word("else") && !is_word("or") && !is_word("and") &&
                !is_word("not") && !is_word("if") && !is_word("in"))) {
      if (is_word("is")) error("tests cannot be chained with is");
      node->children.push_back(parse_postfix(parse_primary()));
    }
    return negated ? make(NodeKind::kNot, position, std::move(node)) : std::move(node);
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  Tree tree_;
  std::unordered_map<std::string, int32_t> numbers_;
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
