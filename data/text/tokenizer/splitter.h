// Hand-written equivalents of the regular expressions that byte-level tokenizers cut words with.
//
// Chosen by the exact text of the pattern; any other pattern runs on PCRE2 (pattern.h). A test
// compares both on random Unicode.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace graft::data {

enum class SplitterKind {
  kGpt2,    // ByteLevel(use_regex)
  kLlama3,  // words with one character in front, numbers of up to three digits (cl100k, OLMo 2)
  kQwen2,   // the same, every digit alone
};

// The splitter of this pattern, or nothing.
std::optional<SplitterKind> known_splitter(std::string_view pattern);
// The pattern that a splitter stands for.
std::string_view splitter_pattern(SplitterKind kind);

// Calls word(begin, end) for the words of text[begin, end), which is valid UTF-8 and cut at
// characters; together they are the whole range. Nothing outside the range is looked at.
template <SplitterKind kKind, class Word>
void split_words(std::string_view text, size_t begin, size_t end, const Word& word);

}  // namespace graft::data

#include "data/text/tokenizer/splitter_inl.h"
