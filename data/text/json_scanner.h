// A pull parser for JSON that is too large for a tree: nothing is allocated for a value.
//
// Strict, as core/json.h is. The text must be UTF-8 already. Every error is kData with name:line:
// column.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace graft::data {

class JsonScanner {
 public:
  // Both must outlive the scanner.
  JsonScanner(std::string_view text, std::string_view name) : text_(text), name_(name) {}
  JsonScanner(std::string_view text, std::string&& name) = delete;

  // The first character of the next value; 0 at the end.
  char peek() {
    skip_space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  // Objects: enter('{'), then next_key() until it says no. Arrays: enter('['), next_item().
  void enter(char bracket) {
    expect(bracket);
    is_first_ = true;
  }
  bool next_key(std::string_view& key, std::string& buffer) {
    if (!next('}')) return false;
    key = string(buffer);
    expect(':');
    return true;
  }
  bool next_item() { return next(']'); }

  // A string; in `buffer` if it has escapes, else in the text.
  std::string_view string(std::string& buffer) {
    expect('"');
    const size_t begin = at_;
    skip_plain();
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') return text_.substr(begin, at_++ - begin);
      if (c == '\\' || static_cast<unsigned char>(c) < 0x20) break;
      ++at_;
    }
    return unescape(begin, buffer);
  }
  int64_t integer() {
    skip_space();
    constexpr size_t kMaxDigits = 18;
    size_t at = at_;
    int64_t value = 0;
    while (at < text_.size() && at < at_ + kMaxDigits && text_[at] >= '0' && text_[at] <= '9') {
      value = value * 10 + (text_[at++] - '0');
    }
    const char behind = at < text_.size() ? text_[at] : '\0';
    if (at == at_ || !(behind == ',' || behind == '}' || behind == '\n')) return any_integer();
    at_ = at;
    return value;
  }
  double number();
  // Any value as it stands, at most 256 levels deep; its inside is checked only for brackets and
  // strings.
  std::string_view raw_value();
  // Nothing but white space may be left.
  void end();

  // For reading an array in two halves at once. What is not read yet; a scanner that ends `bytes`
  // from here; and to go on there, which must be in front of the comma behind an item.
  std::string_view rest() const { return text_.substr(at_); }
  JsonScanner until(size_t bytes) const {
    JsonScanner part = *this;
    part.text_ = text_.substr(0, at_ + bytes);
    return part;
  }
  void skip_to_comma(size_t bytes) {
    at_ += bytes;
    is_first_ = false;
  }

  [[noreturn]] void refuse(const std::string& what) const;

 private:
  void skip_space() {
    skip_blanks();
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }
  // The two loops that reading a large file is made of, 16 bytes at a time; both may stop early.
  // White space; a file with an indent is half of it.
  void skip_blanks() {
#ifdef __SSE2__
    while (at_ + 16 <= text_.size() && text_[at_] <= ' ') {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text_.data() + at_));
      const auto is = [&](char c) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)); };
      const __m128i blank =
          _mm_or_si128(_mm_or_si128(is(' '), is('\n')), _mm_or_si128(is('\r'), is('\t')));
      const int count = std::countr_one(static_cast<uint16_t>(_mm_movemask_epi8(blank)));
      at_ += static_cast<size_t>(count);
      if (count < 16) return;
    }
#endif
  }
  // Bytes of a string that stand for themselves.
  void skip_plain() {
#ifdef __SSE2__
    while (at_ + 16 <= text_.size()) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text_.data() + at_));
      const __m128i quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('"'));
      const __m128i escape = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'));
      const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1F)), bytes);
      const __m128i stop = _mm_or_si128(_mm_or_si128(quote, escape), control);
      const int count = std::countr_zero(static_cast<uint16_t>(_mm_movemask_epi8(stop)));
      at_ += static_cast<size_t>(count);
      if (count < 16) return;
    }
#endif
  }
  void expect(char wanted) {
    if (peek() != wanted) refuse_instead_of(wanted);
    ++at_;
  }
  bool next(char closing) {
    const bool was_first = is_first_;
    is_first_ = false;
    if (peek() == closing) {
      ++at_;
      return false;
    }
    if (!was_first) expect(',');
    return true;
  }
  [[noreturn]] void refuse_instead_of(char wanted) const;
  // The rest of a string that began at `begin`, from an escape on.
  std::string_view unescape(size_t begin, std::string& out);
  uint32_t hex4();
  std::string_view number_text();
  int64_t any_integer();

  std::string_view text_;
  std::string_view name_;
  size_t at_ = 0;
  bool is_first_ = false;  // no item of the current object or array was read yet
};

}  // namespace graft::data
