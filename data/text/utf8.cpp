#include "data/text/utf8.h"

#include <cstdint>
#include <cstring>

#include <simdjson.h>

namespace graft::data {

bool is_valid_utf8(std::string_view bytes) {
  return simdjson::validate_utf8(bytes.data(), bytes.size());
}

char32_t utf8_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t offset) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[at + offset]));
  };
  switch (utf8_length(text[at])) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1FU) << 6 | (byte(1) & 0x3FU);
    case 3:
      return (byte(0) & 0x0FU) << 12 | (byte(1) & 0x3FU) << 6 | (byte(2) & 0x3FU);
    default:
      return (byte(0) & 0x07U) << 18 | (byte(1) & 0x3FU) << 12 | (byte(2) & 0x3FU) << 6 |
             (byte(3) & 0x3FU);
  }
}

void append_utf8(std::string& out, char32_t character) {
  const auto push = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    push(character);
  } else if (character < 0x800) {
    push(0xC0U | character >> 6);
    push(0x80U | (character & 0x3FU));
  } else if (character < 0x10000) {
    push(0xE0U | character >> 12);
    push(0x80U | (character >> 6 & 0x3FU));
    push(0x80U | (character & 0x3FU));
  } else {
    push(0xF0U | character >> 18);
    push(0x80U | (character >> 12 & 0x3FU));
    push(0x80U | (character >> 6 & 0x3FU));
    push(0x80U | (character & 0x3FU));
  }
}

size_t utf8_count(std::string_view text) {
  size_t count = text.size();
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, text.data() + at, 8);
    // The lowest bit of each byte 10xxxxxx, then their sum in the highest byte.
    constexpr uint64_t kLowest = 0x0101010101010101ULL;
    count -= ((bytes >> 7 & ~bytes >> 6 & kLowest) * kLowest) >> 56;
  }
  for (; at < text.size(); ++at) count -= is_utf8_continuation(text[at]) ? 1 : 0;
  return count;
}

bool is_space(char32_t character) {
  if (character < 0x80) {
    return (character >= 9 && character <= 13) || (character >= 0x1C && character <= 0x20);
  }
  return character == 0x85 || character == 0xA0 || character == 0x1680 ||
         (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
         character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && is_space(utf8_at(text, at))) at += utf8_length(text[at]);
  return at;
}

size_t end_without_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && is_utf8_continuation(text[begin])) --begin;
    if (!is_space(utf8_at(text, begin))) break;
    end = begin;
  }
  return end;
}

}  // namespace graft::data
