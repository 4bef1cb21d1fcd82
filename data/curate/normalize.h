// The one normal form in which texts are compared: words for near duplicates, folded text for
// exact ones.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace graft::data {

// Appends one 64-bit hash per word of `text`. A word is a run of Unicode letters, numbers and
// marks after NFC and simple lower-casing; every character of a script that writes no spaces
// (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) is a word of its own. Everything else
// separates. Invalid UTF-8 bytes separate.
void append_word_hashes(std::string_view text, std::vector<uint64_t>& words);

// The same, and also appends number_hashes(text), unsorted, in one pass.
void append_words_and_numbers(std::string_view text,
                              std::vector<uint64_t>& words,
                              std::vector<uint64_t>& numbers);

// Number of words as above.
int64_t count_words(std::string_view text);

// NFC, lower case, white space runs as one blank and none at the ends; punctuation is kept.
std::string fold_text(std::string_view text);

// Whether the bytes are valid UTF-8.
bool is_utf8(std::string_view text);

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
  friend auto operator<=>(const Hash128&, const Hash128&) = default;
};
Hash128 hash128(std::string_view bytes);

// Hashes of the numbers of `text`, sorted: each word that holds a decimal digit, and each
// arithmetic operator ('+' '*' '/' '=' '<' '>' '^' '%', and '-' between operands), because texts
// that differ only in those ask for different things.
std::vector<uint64_t> number_hashes(std::string_view text);

// True when `small` is a sub-multiset of `large`; both sorted.
bool is_subset(const std::vector<uint64_t>& small, const std::vector<uint64_t>& large);

}  // namespace graft::data
