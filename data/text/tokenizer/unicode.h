// What Hugging Face `tokenizers` knows about characters: classes, normal forms, stand-ins.
//
// Its regular expressions, its Rust standard library and its normalizer each carry a Unicode
// version of their own; the tables (unicode_tables.inc) were made by asking it about every
// character, so nothing here depends on the Unicode version of a system library.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace graft::data {

enum CharacterFlag : uint8_t {
  kLetterFlag = 1,    // \p{L}
  kNumberFlag = 2,    // \p{N}
  kSpaceFlag = 4,     // \s
  kWordFlag = 8,      // \w of added tokens with single_word
  kNumericFlag = 16,  // the pre-tokenizer Digits
  kUnstableFlag = 32  // NFC may change it or what stands before it
};

// The flags of a character; 0 for what is no code point.
uint8_t character_flags(char32_t character);

// The table behind character_flags, for loops: flags[blocks[c >> 8] << 8 | (c & 255)].
struct FlagTable {
  const uint8_t* flags;
  const uint16_t* blocks;
  uint8_t of(char32_t character) const {
    return flags[static_cast<size_t>(blocks[character >> 8]) << 8 | (character & 0xFFU)];
  }
};
const FlagTable& flag_table();

// The character that a regular expression of Unicode 14 should see instead: the same class and
// length in UTF-8. 0 = itself.
char32_t unicode14_stand_in(char32_t character);

uint8_t combining_class(char32_t character);

enum class NormalForm { kC, kD, kKc, kKd };

// A character of normalized text and how it came about, as `tokenizers` counts it: 0 = it replaces
// the next character, -n = the same and the n behind it are gone, 1 = it is new.
struct NormalizedCharacter {
  char32_t character;
  int64_t change;
};
std::vector<NormalizedCharacter> normalize(std::string_view text, NormalForm form);

}  // namespace graft::data
