// The splitters' inner loop; see splitter.h.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "data/text/tokenizer/unicode.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace splitter {

enum Class : uint8_t { kOther, kLetter, kNumber, kSpace, kNewline };

constexpr std::array<uint8_t, 128> kAscii = [] {
  std::array<uint8_t, 128> classes{};
  for (size_t c = 0; c < 128; ++c) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool is_space = c == ' ' || (c >= 9 && c <= 13);
    classes[c] = c == '\n' || c == '\r'   ? kNewline
                 : is_letter              ? kLetter
                 : (c >= '0' && c <= '9') ? kNumber
                 : is_space               ? kSpace
                                          : kOther;
  }
  return classes;
}();

struct Cursor {
  const char* text;
  size_t end;
  FlagTable table;

  struct Character {
    uint8_t kind;
    uint8_t length;
  };
  Character at(size_t position) const {
    const auto byte = static_cast<unsigned char>(text[position]);
    if (byte < 0x80) return {kAscii[byte], 1};
    return wide(position);
  }
  Character wide(size_t position) const {
    const std::string_view view(text, end);
    const uint8_t flags = table.of(utf8_at(view, position));
    const uint8_t kind = (flags & kLetterFlag) != 0   ? kLetter
                         : (flags & kNumberFlag) != 0 ? kNumber
                         : (flags & kSpaceFlag) != 0  ? kSpace
                                                      : kOther;
    return {kind, static_cast<uint8_t>(utf8_length(text[position]))};
  }
  // The end of the run of characters of this kind.
  size_t run(size_t position, uint8_t kind) const {
    while (position < end) {
      const Character next = at(position);
      if (next.kind != kind) break;
      position += next.length;
    }
    return position;
  }
};

// The length of 's 't 're 've 'm 'll 'd at `position`, which is an apostrophe; 0 = none of them.
template <bool kAnyCase>
size_t contraction(const Cursor& cursor, size_t position) {
  const size_t left = cursor.end - position;
  if (left < 2) return 0;
  const auto letter = [&](size_t offset) {
    const char c = cursor.text[position + offset];
    return kAnyCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  };
  const char first = letter(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (left >= 3) {
    const char second = letter(2);
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
        (first == 'l' && second == 'l')) {
      return 3;
    }
    // U+017F, the long s, is an s in any case.
    if (kAnyCase && first == '\xC5' && second == '\xBF') return 3;
  }
  return 0;
}

// The end of the white space at `position`: \s+(?!\S)|\s+, and before it \s*[\r\n]+ of the newer
// patterns.
template <bool kNewlines>
size_t space_end(const Cursor& cursor, size_t position) {
  size_t at = position;
  size_t last = position;     // where the last character of the run begins
  size_t newline = position;  // behind the last newline
  while (at < cursor.end) {
    const Cursor::Character next = cursor.at(at);
    if (next.kind < kSpace) break;
    last = at;
    at += next.length;
    if (next.kind == kNewline) newline = at;
  }
  if (kNewlines && newline > position) return newline;
  if (at == cursor.end || last == position) return at;
  return last;
}

template <SplitterKind kKind>
size_t word_end(const Cursor& cursor, size_t begin) {
  constexpr bool kGpt = kKind == SplitterKind::kGpt2;
  const Cursor::Character first = cursor.at(begin);
  if (first.kind == kLetter) return cursor.run(begin + first.length, kLetter);
  const bool is_blank = cursor.text[begin] == ' ';
  size_t at = begin + first.length;
  if (at < cursor.end && (is_blank || first.kind <= kSpace) && first.kind != kNumber) {
    if (first.kind == kOther && cursor.text[begin] == '\'') {
      const size_t length = contraction<!kGpt>(cursor, begin);
      if (length > 0) return begin + length;
    }
    const Cursor::Character second = cursor.at(at);
    // One character may stand in front of letters: a space, and in the newer patterns anything
    // but a newline or a number.
    if (second.kind == kLetter && (is_blank || !kGpt)) {
      return cursor.run(at + second.length, kLetter);
    }
    if (kGpt && is_blank && second.kind == kNumber) {
      return cursor.run(at + second.length, kNumber);
    }
    if (is_blank && second.kind == kOther) {
      at = cursor.run(at + second.length, kOther);
      if constexpr (!kGpt) at = cursor.run(at, kNewline);
      return at;
    }
  }
  if (first.kind >= kSpace) return space_end<!kGpt>(cursor, begin);
  if (first.kind == kNumber) {
    if constexpr (kGpt) return cursor.run(at, kNumber);
    constexpr int kDigits = kKind == SplitterKind::kQwen2 ? 1 : 3;
    for (int digits = 1; digits < kDigits && at < cursor.end; ++digits) {
      const Cursor::Character next = cursor.at(at);
      if (next.kind != kNumber) break;
      at += next.length;
    }
    return at;
  }
  at = cursor.run(at, kOther);
  if constexpr (!kGpt) at = cursor.run(at, kNewline);
  return at;
}

// The length of the word at `at` when it is at most one ASCII character (kGpt2: a space) and then
// ASCII letters, and ends inside the next 15 bytes before another ASCII character; 0 = look at it
// with word_end. 16 bytes must be readable. No branch depends on the word's length.
template <SplitterKind kKind>
size_t short_word_end([[maybe_unused]] const char* at) {
#ifdef __SSE2__
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  const __m128i lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
  const __m128i is_letter = _mm_and_si128(_mm_cmpgt_epi8(lower, _mm_set1_epi8('a' - 1)),
                                          _mm_cmplt_epi8(lower, _mm_set1_epi8('z' + 1)));
  const auto letters = static_cast<unsigned>(_mm_movemask_epi8(is_letter));
  const auto wide = static_cast<unsigned>(_mm_movemask_epi8(bytes));
  const unsigned front = (letters & 1U) ^ 1U;
  const unsigned count = static_cast<unsigned>(std::countr_one(letters >> front));
  const unsigned end = front + count;
  if (count == 0 || end > 15 || (wide >> end & 1U) != 0) return 0;
  if (front == 0) return end;
  const auto first = static_cast<unsigned char>(at[0]);
  if constexpr (kKind == SplitterKind::kGpt2) return first == ' ' ? end : 0;
  // An apostrophe may begin a contraction.
  const bool joins =
      first < 0x80 && kAscii[first] != kNumber && kAscii[first] != kNewline && first != '\'';
  return joins ? end : 0;
#else
  return 0;
#endif
}

}  // namespace splitter

template <SplitterKind kKind, class Word>
void split_words(std::string_view text, size_t begin, size_t end, const Word& word) {
  const splitter::Cursor cursor = {text.data(), end, flag_table()};
  while (begin < end) {
    const size_t next = splitter::word_end<kKind>(cursor, begin);
    word(begin, next);
    begin = next;
  }
}

}  // namespace graft::data
