#include "data/records/scan.h"

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace graft::data {
namespace {

// First quote or backslash at or after `at`, or text.size().
size_t find_quote_or_escape(std::string_view text, size_t at) {
#if defined(__SSE2__)
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i escape = _mm_set1_epi8('\\');
  for (; at + 16 <= text.size(); at += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text.data() + at));
    const __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, escape));
    const auto mask = static_cast<unsigned>(_mm_movemask_epi8(hit));
    if (mask != 0) {
      return at + static_cast<size_t>(__builtin_ctz(mask));
    }
  }
#endif
  while (at < text.size() && text[at] != '"' && text[at] != '\\') {
    ++at;
  }
  return at;
}

}  // namespace

size_t skip_json_space(std::string_view text, size_t at) {
  while (at < text.size() && is_json_space(text[at])) {
    ++at;
  }
  return at;
}

size_t json_string_end(std::string_view text, size_t at) {
  for (++at; at < text.size();) {
    at = find_quote_or_escape(text, at);
    if (at >= text.size()) {
      break;
    }
    if (text[at] == '"') {
      return at + 1;
    }
    at += 2;
  }
  return std::string_view::npos;
}

size_t json_value_end(std::string_view text, size_t at) {
  if (at >= text.size()) {
    return std::string_view::npos;
  }
  if (text[at] == '"') {
    return json_string_end(text, at);
  }
  if (text[at] != '{' && text[at] != '[') {
    while (at < text.size() && !is_json_space(text[at]) && text[at] != ',' && text[at] != ']' &&
           text[at] != '}') {
      ++at;
    }
    return at;
  }
  int64_t depth = 0;
  while (at < text.size()) {
    switch (text[at]) {
      case '"':
        at = json_string_end(text, at);
        if (at == std::string_view::npos) {
          return at;
        }
        continue;
      case '{':
      case '[':
        ++depth;
        break;
      case '}':
      case ']':
        if (--depth == 0) {
          return at + 1;
        }
        break;
      default:
        break;
    }
    ++at;
  }
  return std::string_view::npos;
}

std::string_view json_member(std::string_view text, std::string_view key) {
  size_t at = skip_json_space(text, 0) + 1;
  while (at < text.size()) {
    at = skip_json_space(text, at);
    if (at >= text.size() || text[at] != '"') {
      break;
    }
    const size_t key_end = json_string_end(text, at);
    if (key_end == std::string_view::npos) {
      break;
    }
    const std::string_view name = text.substr(at + 1, key_end - at - 2);
    const size_t colon = skip_json_space(text, key_end);
    const size_t value = skip_json_space(text, colon + 1);
    const size_t value_end = json_value_end(text, value);
    if (value_end == std::string_view::npos) {
      break;
    }
    if (name == key) {
      return text.substr(value, value_end - value);
    }
    at = skip_json_space(text, value_end) + 1;
  }
  return {};
}

}  // namespace graft::data
