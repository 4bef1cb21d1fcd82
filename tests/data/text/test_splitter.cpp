// The hand-written splitters against the regular expressions that they stand for.
#include <array>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/hash.h"
#include "data/text/tokenizer/bpe_workspace.h"
#include "data/text/tokenizer/pattern.h"
#include "data/text/tokenizer/splitter.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// Mostly ASCII, as text is; else any character that UTF-8 can hold.
std::string random_text(uint64_t seed) {
  const Philox random(seed, 11);
  uint64_t draw = 0;
  constexpr std::array<std::string_view, 18> parts = {
      " ",   "  ",  "\n",   "\r\n",   "\t",     "'s", "'LL",     "'\u017F", "it's",
      "The", "end", "1234", "\u00E9", "\u0301", "!?", "\u2028x", "\u00BD",  "\U0001D7D9"};
  std::string text;
  for (uint64_t left = 1 + random.below(draw++, 14); left > 0; --left) {
    const uint64_t kind = random.below(draw++, 8);
    if (kind < 5) {
      text += parts[random.below(draw++, parts.size())];
    } else if (kind < 7) {
      text += static_cast<char>(random.below(draw++, 128));
    } else {
      const uint64_t point = random.below(draw++, 0x110000 - 0x800);
      append_utf8(text, static_cast<char32_t>(point < 0xD800 ? point : point + 0x800));
    }
  }
  return text;
}

template <SplitterKind kKind>
std::vector<ByteRange> words_of(const std::string& text) {
  std::vector<ByteRange> words;
  split_words<kKind>(text, 0, text.size(), [&](size_t begin, size_t end) {
    words.push_back({static_cast<int64_t>(begin), static_cast<int64_t>(end)});
  });
  return words;
}

// 20,000 texts, whole and with 16 bytes behind them, which lets short_word_end look at each place.
template <SplitterKind kKind>
void compare() {
  const Pattern pattern(splitter_pattern(kKind), "test");
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    const std::string text = random_text(seed);
    CAPTURE(seed, text);
    std::vector<ByteRange> expected;
    pattern.find_all(text, 0, text.size(), expected);
    const std::vector<ByteRange> words = words_of<kKind>(text);
    REQUIRE(words == expected);
    const std::string padded = text + std::string(16, '\n');
    for (const ByteRange& word : words) {
      // A word that ends the text may go on behind it.
      if (word.end == static_cast<int64_t>(text.size())) continue;
      const size_t size = splitter::short_word_end<kKind>(padded.data() + word.begin);
      if (size != 0) REQUIRE(static_cast<int64_t>(size) == word.end - word.begin);
    }
  }
}

}  // namespace

TEST_CASE("splitter: each cuts random Unicode as its regular expression does",
          "[data][tokenizer]") {
  SECTION("GPT-2") {
    compare<SplitterKind::kGpt2>();
  }
  SECTION("Llama 3") {
    compare<SplitterKind::kLlama3>();
  }
  SECTION("Qwen 2") {
    compare<SplitterKind::kQwen2>();
  }
}

TEST_CASE("splitter: short words of letters are found without looking at each byte",
          "[data][tokenizer]") {
  const std::string behind(16, ' ');
  CHECK(splitter::short_word_end<SplitterKind::kLlama3>((" word." + behind).data()) ==
        splitter::short_word_end<SplitterKind::kGpt2>((" word." + behind).data()));
  const auto llama3 = [&](const std::string& text) {
    return splitter::short_word_end<SplitterKind::kLlama3>((text + behind).data());
  };
#ifdef __SSE2__
  CHECK(llama3(" word.") == 5);
  CHECK(llama3("(word") == 5);
  CHECK(splitter::short_word_end<SplitterKind::kGpt2>(("(word" + behind).data()) == 0);
#endif
  CHECK(llama3("'sword") == 0);     // a contraction
  CHECK(llama3("1word") == 0);      // a number stands alone
  CHECK(llama3("\nword") == 0);     // a newline too
  CHECK(llama3("caf\u00E9") == 0);  // a letter outside ASCII goes on with the word
  CHECK(llama3("abcdefghijklmnopqrstuvw") == 0);
}

TEST_CASE("splitter: short words with zero bytes are not confused", "[data][tokenizer]") {
  const char text[] = "a\0\0b\0\0\0\0\0\0\0";
  CHECK(ShortWords::key_of(text, 1) == 'a');
  CHECK(ShortWords::key_of(text, 2) == 0);
  CHECK(ShortWords::key_of(text, 4) != ShortWords::key_of(text, 1));
  CHECK(ShortWords::key_of(text, 8) == 0);
}

}  // namespace graft::data
