#include "data/curate/normalize.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include <utf8proc.h>
#include <xxhash.h>

namespace graft::data {
namespace {

constexpr uint64_t kWordSeed = 0x9E3779B97F4A7C15ULL;
constexpr uint64_t kWordPrime = 0xD6E8FEB86659FD93ULL;

// The lower-case byte of an ASCII letter or digit, 0 for what separates words.
constexpr std::array<uint8_t, 128> make_ascii_words() {
  std::array<uint8_t, 128> table{};
  for (unsigned c = 0; c < 128; ++c) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool word = upper || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    table[c] = static_cast<uint8_t>(word ? (upper ? c + 32 : c) : 0);
  }
  return table;
}
constexpr std::array<uint8_t, 128> kAsciiWord = make_ascii_words();

uint64_t finish(uint64_t hash) {
  hash ^= hash >> 32;
  hash *= 0xFF51AFD7ED558CCDULL;
  return hash ^ (hash >> 29);
}

bool is_ascii(std::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080ULL;
  uint64_t any = 0;
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, text.data() + at, 8);
    any |= bytes;
  }
  for (; at < text.size(); ++at) {
    any |= static_cast<unsigned char>(text[at]);
  }
  return (any & kHighBits) == 0;
}

bool writes_without_spaces(utf8proc_int32_t c) {
  return (c >= 0x3040 && c <= 0x30FF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x20000 && c <= 0x3FFFF) || (c >= 0x0E00 && c <= 0x0EFF) ||
         (c >= 0x1000 && c <= 0x109F) || (c >= 0x1780 && c <= 0x17FF);
}

bool is_word_character(utf8proc_int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

// Whether the character never changes under NFC, whatever stands beside it, except by combining
// marks, which are in none of these blocks (Unicode Standard Annex 15: NFC_Quick_Check = Yes,
// combining class 0): Latin, Cyrillic letters, general punctuation, kana, Han, Hangul syllables.
bool is_composed(utf8proc_int32_t c) {
  return (c >= 0 && c < 0x300) || (c >= 0x400 && c <= 0x481) || (c >= 0x2010 && c <= 0x205F) ||
         (c >= 0x3041 && c <= 0x3096) || (c >= 0x30A1 && c <= 0x30FA) ||
         (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xAC00 && c <= 0xD7A3);
}

// Calls visit(code_point) for every character; -1 for a byte that is not UTF-8.
template <typename Visit>
void for_each_code_point(std::string_view text, Visit visit) {
  const auto* at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  auto left = static_cast<utf8proc_ssize_t>(text.size());
  while (left > 0) {
    if (*at < 0x80) {
      visit(utf8proc_int32_t{*at});
      ++at;
      --left;
      continue;
    }
    utf8proc_int32_t c = -1;
    const utf8proc_ssize_t used = std::max<utf8proc_ssize_t>(1, utf8proc_iterate(at, left, &c));
    visit(c);
    at += used;
    left -= used;
  }
}

// NFC of valid UTF-8; the text itself when it cannot be composed. `room` holds what is not a view
// of the text.
std::string_view compose(std::string_view text, std::string& room) {
  bool composed_already = true;
  for_each_code_point(
      text, [&](utf8proc_int32_t c) { composed_already = composed_already && is_composed(c); });
  if (composed_already) {
    return text;
  }
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  if (size < 0) {
    return text;
  }
  room.assign(reinterpret_cast<const char*>(composed), static_cast<size_t>(size));
  return room;
}

// Calls word(hash, has_digit) for every word and gap(code_point) for every separator.
template <typename Word, typename Gap>
void split_ascii(std::string_view text, Word word, Gap gap) {
  uint64_t hash = kWordSeed;
  bool inside = false;
  bool digit = false;
  for (const char byte : text) {
    const auto c = static_cast<unsigned char>(byte);
    const uint8_t lower = kAsciiWord[c & 0x7F];
    if (lower != 0) {
      hash = (hash ^ lower) * kWordPrime;
      digit = digit || lower <= '9';
      inside = true;
      continue;
    }
    if (inside) {
      word(finish(hash), digit);
      hash = kWordSeed;
      inside = false;
      digit = false;
    }
    gap(static_cast<utf8proc_int32_t>(c));
  }
  if (inside) {
    word(finish(hash), digit);
  }
}

template <typename Word, typename Gap>
void split_unicode(std::string_view text, Word word, Gap gap) {
  uint64_t hash = kWordSeed;
  bool inside = false;
  bool digit = false;
  const auto flush = [&] {
    if (inside) {
      word(finish(hash), digit);
      hash = kWordSeed;
      inside = false;
      digit = false;
    }
  };
  std::string room;
  for_each_code_point(compose(text, room), [&](utf8proc_int32_t c) {
    if (c >= 0 && c < 128) {
      const uint8_t lower = kAsciiWord[static_cast<size_t>(c)];
      if (lower == 0) {
        flush();
        gap(c);
        return;
      }
      hash = (hash ^ lower) * kWordPrime;
      digit = digit || lower <= '9';
      inside = true;
      return;
    }
    if (c >= 0 && is_word_character(c)) {
      const bool alone = writes_without_spaces(c);
      if (alone) {
        flush();
      }
      auto lower = static_cast<uint32_t>(utf8proc_tolower(c));
      digit = digit || utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
      // The bytes of the code point, so that ASCII words hash alike on both paths.
      do {
        hash = (hash ^ (lower & 0xFF)) * kWordPrime;
        lower >>= 8;
      } while (lower != 0);
      inside = true;
      if (alone) {
        flush();
      }
      return;
    }
    flush();
    gap(c);
  });
  flush();
}

template <typename Word, typename Gap>
void split_words(std::string_view text, Word word, Gap gap) {
  if (is_ascii(text)) {
    split_ascii(text, word, gap);
  } else {
    split_unicode(text, word, gap);
  }
}

// Writes the folded form of ASCII text to `to`, which has room for the text; returns its size.
size_t fold_ascii(std::string_view text, char* const first) {
  char* to = first;
  bool gap = true;  // nothing but blanks so far, or a blank was just written
  size_t at = 0;
  const auto fold_to = [&](size_t end) {
    for (; at < end; ++at) {
      const char c = text[at];
      const bool is_blank = c == ' ' || (c >= '\t' && c <= '\r');
      *to = is_blank ? ' ' : c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
      to += is_blank && gap ? 0 : 1;
      gap = is_blank;
    }
  };
#if defined(__SSE2__)
  // 16 bytes whose only blanks are single spaces keep their places.
  while (at + 16 <= text.size()) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text.data() + at));
    const auto spaces =
        static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' '))));
    const __m128i control = _mm_cmplt_epi8(bytes, _mm_set1_epi8(' '));
    if (_mm_movemask_epi8(control) != 0 || ((spaces << 1 | (gap ? 1U : 0U)) & spaces) != 0) {
      fold_to(at + 16);
      continue;
    }
    const __m128i upper = _mm_and_si128(_mm_cmpgt_epi8(bytes, _mm_set1_epi8('A' - 1)),
                                        _mm_cmplt_epi8(bytes, _mm_set1_epi8('Z' + 1)));
    const __m128i lower = _mm_add_epi8(bytes, _mm_and_si128(upper, _mm_set1_epi8(32)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), lower);
    to += 16;
    at += 16;
    gap = (spaces >> 15) != 0;
  }
#endif
  fold_to(text.size());
  const auto size = static_cast<size_t>(to - first);
  return size - (size > 0 && gap ? 1 : 0);
}

bool is_operator(utf8proc_int32_t c) {
  switch (c) {
    case '+':
    case '*':
    case '/':
    case '=':
    case '<':
    case '>':
    case '^':
    case '%':
    case 0xD7:    // multiplication sign
    case 0xF7:    // division sign
    case 0x2212:  // minus sign
    case 0x221A:  // square root
      return true;
    default:
      return false;
  }
}

}  // namespace

void append_word_hashes(std::string_view text, std::vector<uint64_t>& words) {
  split_words(
      text, [&](uint64_t hash, bool) { words.push_back(hash); }, [](utf8proc_int32_t) {});
}

int64_t count_words(std::string_view text) {
  int64_t count = 0;
  split_words(
      text, [&](uint64_t, bool) { ++count; }, [](utf8proc_int32_t) {});
  return count;
}

std::string fold_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool blank = false;
  const auto put_blank = [&] { blank = !out.empty(); };
  const auto before_character = [&] {
    if (blank) {
      out += ' ';
      blank = false;
    }
  };
  if (is_ascii(text)) {
    out.resize(text.size());
    out.resize(fold_ascii(text, out.data()));
    return out;
  }
  std::string room;
  for_each_code_point(compose(text, room), [&](utf8proc_int32_t c) {
    if (c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 ||
        (c > 127 && (utf8proc_category(c) == UTF8PROC_CATEGORY_ZS || c == 0x2028 || c == 0x2029))) {
      put_blank();
      return;
    }
    before_character();
    if (c >= 0 && c < 128) {
      out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
      return;
    }
    std::array<utf8proc_uint8_t, 4> bytes{};
    const utf8proc_ssize_t size =
        utf8proc_encode_char(c < 0 ? 0xFFFD : utf8proc_tolower(c), bytes.data());
    out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(size));
  });
  return out;
}

bool is_utf8(std::string_view text) {
  const auto* at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  auto left = static_cast<utf8proc_ssize_t>(text.size());
  while (left > 0) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t used = utf8proc_iterate(at, left, &c);
    if (used <= 0) {
      return false;
    }
    at += used;
    left -= used;
  }
  return true;
}

Hash128 hash128(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}

void append_words_and_numbers(std::string_view text,
                              std::vector<uint64_t>& words,
                              std::vector<uint64_t>& numbers) {
  bool operand = false;      // the last word was a number or a closing bracket
  bool minus_waits = false;  // operand '-' and then, perhaps, another operand
  split_words(
      text,
      [&](uint64_t hash, bool digit) {
        words.push_back(hash);
        if (digit) {
          if (minus_waits) {
            numbers.push_back('-');
          }
          numbers.push_back(hash);
        }
        operand = digit;
        minus_waits = false;
      },
      [&](utf8proc_int32_t c) {
        if (c == ' ') {
          return;
        }
        if (is_operator(c)) {
          numbers.push_back(static_cast<uint64_t>(c));
        } else if (c == '-' && operand) {
          minus_waits = true;
        } else if (c != '(' && c != '$') {
          operand = c == ')';
          minus_waits = false;
        }
      });
}

std::vector<uint64_t> number_hashes(std::string_view text) {
  std::vector<uint64_t> words;
  std::vector<uint64_t> numbers;
  append_words_and_numbers(text, words, numbers);
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

bool is_subset(const std::vector<uint64_t>& small, const std::vector<uint64_t>& large) {
  return std::includes(large.begin(), large.end(), small.begin(), small.end());
}

}  // namespace graft::data
