// The tokens and the syntax tree of a template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/text/template_value.h"

namespace graft::data::jinja {

struct Position {
  int32_t line = 1;
  int32_t column = 1;  // in bytes
};

// Throws kData at `name:line:column`.
[[noreturn]] void fail_at(const std::string& name,
                          Position position,
                          std::string what,
                          std::string fix = "");

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // of strings: with escapes resolved
  Position position;
};

// Cuts a template with trim_blocks and lstrip_blocks. Errors: kData with the position.
std::vector<Token> tokenize_template(std::string_view source, const std::string& name);

enum class NodeKind : uint8_t {
  // expressions
  kConst,     // value
  kName,      // name
  kGetattr,   // [0].text
  kGetitem,   // [0][[1]]
  kSlice,     // [0][[1]:[2]:[3]], absent parts are nullptr
  kCall,      // [0](children 1.., keywords)
  kFilter,    // [0] | text(children 1.., keywords); [0] is nullptr in a filter block
  kTest,      // [0] is text(children 1..)
  kNegative,  // -[0]
  kPositive,  // +[0]
  kBinary,    // [0] text [1]
  kCompare,   // [0] texts[i] [i + 1] ...
  kConcat,    // [0] ~ [1] ~ ...
  kAnd,
  kOr,
  kNot,
  kConditional,  // [1] if [0] else [2] (nullptr = undefined)
  kList,
  kTuple,
  kDict,  // children: key, value, key, value, ...
  // statements
  kTemplateText,  // value
  kOutput,        // [0]
  kIf,            // [0] condition; body; other
  kFor,           // [0] target, [1] iterable, [2] filter or nullptr; body; other
  kSet,           // [0] target, [1] value
  kSetBlock,      // [0] target, [1] filter chain or nullptr; body
  kMacro,         // name, parameters, children = defaults (nullptr = none); body
  kCallBlock,     // [0] call, parameters of the caller; body
  kFilterBlock,   // [0] filter chain; body
  kGeneration,    // body
  kWith,          // children: target, value, ...; body
  kBreak,
  kContinue,
};

struct Node;
using NodePtr = std::unique_ptr<Node>;

struct Node {
  Node() = default;
  ~Node();  // without recursion: chains of filters may be long
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  NodeKind kind = NodeKind::kConst;
  Position position;
  std::vector<NodePtr> children;
  std::vector<std::pair<std::string, NodePtr>> keywords;
  std::vector<NodePtr> body;
  std::vector<NodePtr> other;
  std::string text;
  std::vector<std::string> texts;
  int32_t name = -1;                // interned
  std::vector<int32_t> parameters;  // interned
  Value value;
  bool recursive = false;
};

struct Tree {
  std::vector<NodePtr> body;
  std::vector<std::string> names;  // by interned number
  bool has_generation = false;
  // The number of a name; kNoName when the template does not know it.
  int32_t number_of(std::string_view name) const;
};
constexpr int32_t kNoName = -1;

// Errors: kData with the position of what is wrong or unknown.
Tree parse_template(std::string_view source, const std::string& name);

}  // namespace graft::data::jinja
