// The character map of SentencePiece models: a trie of strings and what each becomes. Every index
// of a file is checked where it is used: the map is not trusted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer/unicode.h"

namespace graft::data {

class CharacterMap {
 public:
  // `blob`: a darts double array with its size in front, then the texts, each with a zero byte
  // behind it. Errors: kData (damaged).
  CharacterMap(std::string blob, const std::string& where);

  struct Mapped {
    std::vector<NormalizedCharacter> characters;
    size_t removed = 0;    // characters that vanished at the very front
    bool changed = false;  // anything was found
  };
  // What `tokenizers` makes of the text: graphemes of fewer than 6 bytes are looked up as a whole,
  // else their characters one by one.
  Mapped map(std::string_view text) const;

  // What sentencepiece makes of the beginning of `text`: the longest known prefix. Its size, 0 =
  // none is known.
  size_t longest_prefix(std::string_view text, std::string_view& replacement) const;

 private:
  // Calls found(size, replacement) for the known prefixes of `text`, the shortest first, until it
  // says false.
  template <class Found>
  void walk(std::string_view text, const Found& found) const;
  // The text that the shortest known prefix of `key` stands for; false = none. (`tokenizers` takes
  // the first result of a prefix search, whatever its length.)
  bool find(std::string_view key, std::string_view& replacement) const;

  std::vector<uint32_t> units_;
  std::string texts_;
};

}  // namespace graft::data
