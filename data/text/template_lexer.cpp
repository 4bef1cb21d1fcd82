// The lexer follows jinja2.lexer (3.1) with trim_blocks, lstrip_blocks and without the trailing
// newline.
#include <array>

#include "core/error.h"
#include "data/text/template_ast.h"
#include "data/text/utf8.h"

namespace graft::data::jinja {

void fail_at(const std::string& name, Position position, std::string what, std::string fix) {
  fail(ExitCode::kData, std::move(what),
       name + ":" + std::to_string(position.line) + ":" + std::to_string(position.column),
       std::move(fix));
}

namespace {

std::string normal_newlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text.push_back(source[i]);
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name)
      : source_(normal_newlines(source)), name_(name) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(const std::string& what) { fail_at(name_, position_of(at_), what); }

  Position position_of(size_t offset) {
    for (; counted_ < offset; ++counted_) {
      if (source_[counted_] == '\n') {
        ++position_.line;
        position_.column = 1;
      } else {
        ++position_.column;
      }
    }
    return position_;
  }

  void add(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), position_of(token_begin_)});
  }

  bool looking_at(std::string_view text) const {
    return source_.compare(at_, text.size(), text) == 0;
  }

  // Plain text up to the next tag, with the tag's white space control applied; then the tag.
  void read_text() {
    const size_t begin = at_;
    size_t open = begin;
    for (;; ++open) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        open = source_.size();
        break;
      }
      const char next = source_[open + 1];
      if (next == '%' || next == '{' || next == '#') break;
    }
    std::string_view text = std::string_view(source_).substr(begin, open - begin);
    const bool is_last = open == source_.size();
    const char sign = !is_last && open + 2 < source_.size() ? source_[open + 2] : ' ';
    const char kind = is_last ? ' ' : source_[open + 1];
    if (!is_last && sign == '-') {
      text = text.substr(0, end_without_space(text));
    } else if (!is_last && kind != '{' && sign != '+') {
      const size_t line = text.rfind('\n') + 1;  // 0 when there is none
      const std::string_view last_line = text.substr(line);
      if ((line > 0 || line_starting_) && end_without_space(last_line) == 0) {
        text = text.substr(0, line);
      }
    }
    token_begin_ = begin;
    if (!text.empty()) add(TokenKind::kText, std::string(text));
    at_ = open;
    if (is_last) return;
    token_begin_ = open;
    at_ += 2;
    if (at_ < source_.size() && (source_[at_] == '-' || (source_[at_] == '+' && kind != '{')))
      ++at_;
    if (kind == '#') {
      read_comment();
    } else if (kind == '%' && read_raw()) {
      return;
    } else {
      read_code(kind == '%');
    }
  }

  // Behind a tag's end: what "-" and trim_blocks swallow.
  void after_tag(char sign, bool trims_newline) {
    if (sign == '-') {
      at_ += leading_space(std::string_view(source_).substr(at_));
    } else if (sign != '+' && trims_newline && looking_at("\n")) {
      ++at_;
    }
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) error("a comment has no end \"#}\"");
    const char sign = end > at_ ? source_[end - 1] : ' ';
    at_ = end + 2;
    after_tag(sign, true);
  }

  // {% raw %} … {% endraw %}
  bool read_raw() {
    size_t at = at_ + leading_space(std::string_view(source_).substr(at_));
    if (source_.compare(at, 3, "raw") != 0) return false;
    at += 3;
    at += leading_space(std::string_view(source_).substr(at));
    if (source_.compare(at, 2, "%}") != 0 && source_.compare(at, 3, "-%}") != 0 &&
        source_.compare(at, 3, "+%}") != 0) {
      return false;
    }
    error("{% raw %} blocks are not supported");
  }

  void read_code(bool is_block) {
    add(is_block ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    const std::string end = is_block ? "%}" : "}}";
    int depth = 0;
    for (;;) {
      at_ += leading_space(std::string_view(source_).substr(at_));
      token_begin_ = at_;
      if (at_ >= source_.size()) error("the tag has no end \"" + end + "\"");
      if (depth == 0) {
        const bool signed_end = (source_[at_] == '-' || (source_[at_] == '+' && is_block)) &&
                                source_.compare(at_ + 1, 2, end) == 0;
        if (signed_end || looking_at(end)) {
          const char sign = signed_end ? source_[at_] : ' ';
          add(is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
          at_ += signed_end ? 3 : 2;
          after_tag(sign, is_block);
          return;
        }
      }
      read_token(depth);
    }
  }

  void read_token(int& depth) {
    const char c = source_[at_];
    if (is_name_start(c)) {
      const size_t begin = at_;
      while (at_ < source_.size() && (is_name_start(source_[at_]) || is_digit(source_[at_]))) ++at_;
      add(TokenKind::kName, source_.substr(begin, at_ - begin));
    } else if (is_digit(c)) {
      read_number();
    } else if (c == '\'' || c == '"') {
      read_string(c);
    } else {
      read_operator(depth);
    }
  }

  void read_number() {
    const size_t begin = at_;
    const auto digits = [&] {
      while (at_ < source_.size() && (is_digit(source_[at_]) || source_[at_] == '_')) ++at_;
    };
    digits();
    TokenKind kind = TokenKind::kInteger;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && is_digit(source_[at_ + 1])) {
      kind = TokenKind::kFloat;
      ++at_;
      digits();
    }
    if (at_ < source_.size() && (source_[at_] == 'e' || source_[at_] == 'E')) {
      kind = TokenKind::kFloat;
      ++at_;
      if (at_ < source_.size() && (source_[at_] == '+' || source_[at_] == '-')) ++at_;
      digits();
    } else if (at_ < source_.size() && is_name_start(source_[at_])) {
      error("numbers of this form are not supported");
    }
    std::string text = source_.substr(begin, at_ - begin);
    std::erase(text, '_');
    if (text.size() > 18) error("the number is too long");
    add(kind, std::move(text));
  }

  char32_t read_hex(size_t digits) {
    char32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = at_ < source_.size() ? source_[at_] : ' ';
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) error("a hexadecimal escape needs " + std::to_string(digits) + " digits");
      value = value * 16 + static_cast<char32_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      error("the escape is no character");
    return value;
  }

  // Behind a backslash in a string; Python's "unicode-escape".
  void read_escape(std::string& text) {
    if (at_ >= source_.size()) error("the string has no end");
    const char c = source_[at_++];
    constexpr std::string_view simple = "\\'\"abfnrtv";
    constexpr std::string_view meaning = "\\'\"\a\b\f\n\r\t\v";
    const size_t known = simple.find(c);
    if (known != std::string_view::npos) {
      text.push_back(meaning[known]);
    } else if (c == 'x') {
      append_utf8(text, read_hex(2));
    } else if (c == 'u') {
      append_utf8(text, read_hex(4));
    } else if (c == 'U') {
      append_utf8(text, read_hex(8));
    } else if (c == '\n') {
      return;  // a continued line
    } else if ((c >= '0' && c <= '7') || c == 'N') {
      error(std::string("the escape \\") + c + " is not supported");
    } else {
      text.push_back('\\');
      text.push_back(c);
    }
  }

  void read_string(char quote) {
    ++at_;
    std::string text;
    for (;;) {
      if (at_ >= source_.size()) error("the string has no end");
      const char c = source_[at_++];
      if (c == quote) break;
      if (c == '\\') {
        read_escape(text);
      } else {
        text.push_back(c);
      }
    }
    add(TokenKind::kString, std::move(text));
  }

  void read_operator(int& depth) {
    constexpr std::array<std::string_view, 6> two = {"==", "!=", "<=", ">=", "//", "**"};
    for (const std::string_view text : two) {
      if (looking_at(text)) {
        add(TokenKind::kOperator, std::string(text));
        at_ += 2;
        return;
      }
    }
    const char c = source_[at_];
    constexpr std::string_view one = "+-*/%~<>=.:|,()[]{}";
    if (one.find(c) == std::string_view::npos)
      error("unexpected character '" + source_.substr(at_, utf8_length(c)) + "'");
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') {
      if (depth == 0) error(std::string("unexpected '") + c + "'");
      --depth;
    }
    add(TokenKind::kOperator, std::string(1, c));
    ++at_;
  }

  std::string source_;
  const std::string& name_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  size_t token_begin_ = 0;
  size_t counted_ = 0;
  Position position_;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source, const std::string& name) {
  if (!is_valid_utf8(source)) fail(ExitCode::kData, "the template is not UTF-8", name);
  return Lexer(source, name).run();
}

}  // namespace graft::data::jinja
