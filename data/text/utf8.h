// The few UTF-8 operations that tokenizers and templates share. All inputs are valid UTF-8 unless
// the name says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace graft::data {

bool is_valid_utf8(std::string_view bytes);

// Bytes of the character that starts with `lead`.
inline size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
inline bool is_utf8_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U;
}
// The character at `at`, which is the first byte of one.
char32_t utf8_at(std::string_view text, size_t at);
void append_utf8(std::string& out, char32_t character);
size_t utf8_count(std::string_view text);  // characters

// Python's str.isspace() and str.strip() white space.
bool is_space(char32_t character);
// Bytes of leading white space, and the end of the text without its trailing white space.
size_t leading_space(std::string_view text);
size_t end_without_space(std::string_view text);

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace graft::data
