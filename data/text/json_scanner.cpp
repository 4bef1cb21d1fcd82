#include "data/text/json_scanner.h"

#include <algorithm>
#include <charconv>

#include "core/error.h"
#include "core/json.h"
#include "data/text/utf8.h"

namespace graft::data {

void JsonScanner::refuse(const std::string& what) const {
  const std::string_view before = text_.substr(0, at_);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t start = before.rfind('\n');
  const size_t column = start == std::string_view::npos ? at_ + 1 : at_ - start;
  fail(ExitCode::kData, what,
       std::string(name_) + ":" + std::to_string(line) + ":" + std::to_string(column));
}

void JsonScanner::refuse_instead_of(char wanted) const {
  refuse(std::string("expected '") + wanted + "', found " +
         (at_ < text_.size() ? std::string("'") + text_[at_] + "'" : "the end"));
}

std::string_view JsonScanner::unescape(size_t begin, std::string& out) {
  out.assign(text_.substr(begin, at_ - begin));
  while (at_ < text_.size()) {
    const char c = text_[at_++];
    if (c == '"') return out;
    if (static_cast<unsigned char>(c) < 0x20) refuse("a control character in a string");
    if (c != '\\') {
      const size_t plain = at_ - 1;
      skip_plain();
      out.append(text_.substr(plain, at_ - plain));
      continue;
    }
    const char escape = at_ < text_.size() ? text_[at_++] : '\0';
    constexpr std::string_view kLetters = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (const size_t known = kLetters.find(escape); known != std::string_view::npos) {
      out.push_back(kMeanings[known]);
      continue;
    }
    if (escape != 'u') refuse("an unknown escape in a string");
    char32_t character = hex4();
    if (character >= 0xD800 && character < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const char32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) refuse("half of a surrogate pair");
      character = 0x10000 + ((character - 0xD800) << 10) + (low - 0xDC00);
    } else if (character >= 0xD800 && character < 0xE000) {
      refuse("half of a surrogate pair");
    }
    append_utf8(out, character);
  }
  refuse("a string without an end");
}

uint32_t JsonScanner::hex4() {
  uint32_t value = 0;
  const std::string_view digits = text_.substr(at_, 4);
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (digits.size() != 4 || result.ptr != digits.data() + 4) refuse("\\u needs four hex digits");
  at_ += 4;
  return value;
}

std::string_view JsonScanner::number_text() {
  skip_space();
  const size_t begin = at_;
  const auto is_part = [](char c) {
    return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
  };
  while (at_ < text_.size() && is_part(text_[at_])) ++at_;
  return text_.substr(begin, at_ - begin);
}

int64_t JsonScanner::any_integer() {
  const std::string_view digits = number_text();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) {
    refuse("expected an integer");
  }
  return value;
}

double JsonScanner::number() {
  const std::string_view digits = number_text();
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) {
    refuse("expected a number");
  }
  return value;
}

std::string_view JsonScanner::raw_value() {
  skip_space();
  const size_t begin = at_;
  int depth = 0;
  do {
    const char c = peek();
    if (c == '"') {
      ++at_;
      while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
      if (at_ >= text_.size()) {
        at_ = text_.size();
        refuse("a string without an end");
      }
      ++at_;
    } else if (c == '{' || c == '[') {
      ++at_;
      if (++depth > Json::kMaxDepth) {
        refuse("more than " + std::to_string(Json::kMaxDepth) + " levels");
      }
    } else if (c == '}' || c == ']') {
      if (depth-- == 0) refuse("expected a value");
      ++at_;
    } else if (c == ',' || c == ':') {
      if (depth == 0) refuse("expected a value");
      ++at_;
    } else {
      const size_t word = at_;
      while (at_ < text_.size() &&
             std::string_view(" \t\r\n,:{}[]\"").find(text_[at_]) == std::string_view::npos) {
        ++at_;
      }
      if (at_ == word) refuse("expected a value");
    }
  } while (depth > 0);
  return text_.substr(begin, at_ - begin);
}

void JsonScanner::end() {
  if (peek() != '\0' || at_ < text_.size()) refuse("text stands behind the end");
}

}  // namespace graft::data
