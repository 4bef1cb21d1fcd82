#include <algorithm>
#include <set>

#include <catch2/catch.hpp>

#include "core/hash.h"
#include "data/curate/dedup.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using namespace graft::data;

namespace {

Record alpaca_record(const std::string& prompt, const std::string& answer) {
  Record record;
  record.schema = Schema::kAlpaca;
  record.messages.resize(2);
  record.messages[0].role = "user";
  record.messages[0].content = prompt;
  record.messages[1].role = "assistant";
  record.messages[1].content = answer;
  return record;
}

// Texts in families: a random base and copies with some words replaced or cut off.
std::vector<Record> random_families(size_t families, size_t copies, uint64_t seed) {
  const Philox random(seed, 9);
  uint64_t draw = 0;
  const auto word = [&] {
    std::string text = "w";
    for (uint64_t n = random.below(draw++, 400); n > 0; n /= 26) {
      text += static_cast<char>('a' + n % 26);
    }
    return text;
  };
  std::vector<Record> records;
  for (size_t f = 0; f < families; ++f) {
    std::vector<std::string> base(20 + random.below(draw++, 40));
    std::generate(base.begin(), base.end(), word);
    for (size_t c = 0; c < copies; ++c) {
      std::vector<std::string> words = base;
      for (uint64_t edits = random.below(draw++, 4); edits > 0; --edits) {
        words[static_cast<size_t>(random.below(draw++, words.size()))] = word();
      }
      words.resize(words.size() - static_cast<size_t>(random.below(draw++, 5)));
      std::string text;
      for (const std::string& one : words) {
        text += one + " ";
      }
      records.push_back(alpaca_record("say", text));
    }
  }
  return records;
}

std::vector<Fingerprint> prints_of(const std::vector<Record>& records, View view = View::kAll) {
  std::vector<Fingerprint> prints;
  for (const Record& record : records) {
    prints.push_back(fingerprint(record, view));
  }
  return prints;
}

DedupResult dedup(const std::vector<Record>& records, DedupOptions options) {
  return deduplicate(prints_of(records, options.view), options, [&](int64_t i, int64_t j) {
    return folded_view(records[static_cast<size_t>(i)], options.view) ==
           folded_view(records[static_cast<size_t>(j)], options.view);
  });
}

DedupOptions plain(double threshold) {
  DedupOptions options;
  options.threshold = threshold;
  options.number_guard = false;
  return options;
}

// Word 5-grams as sets of strings: the definition, without hashes.
std::set<std::string> oracle_shingles(const Record& record) {
  std::vector<std::string> words;
  std::string word;
  const std::string text = record.messages[0].content + " " + record.messages[1].content + " ";
  for (const char c : text) {
    if (c == ' ') {
      if (!word.empty()) {
        words.push_back(word);
      }
      word.clear();
    } else {
      word += c;
    }
  }
  std::set<std::string> found;
  for (size_t i = 0; i + 5 <= words.size(); ++i) {
    std::string gram;
    for (size_t k = 0; k < 5; ++k) {
      gram += words[i + k] + " ";
    }
    found.insert(gram);
  }
  return found;
}

double oracle_jaccard(const std::set<std::string>& a, const std::set<std::string>& b) {
  size_t common = 0;
  for (const std::string& gram : a) {
    common += b.count(gram);
  }
  return static_cast<double>(common) / static_cast<double>(a.size() + b.size() - common);
}

}  // namespace

TEST_CASE("jaccard: counted by hand", "[data][dedup]") {
  const std::vector<uint64_t> a = {1, 2, 3, 4};
  const std::vector<uint64_t> b = {3, 4, 5};
  CHECK(jaccard(a, b) == 2.0 / 5.0);
  CHECK(jaccard(a, a) == 1.0);
  CHECK(jaccard(a, {}) == 0.0);
  CHECK(jaccard({}, {}) == 1.0);
}

TEST_CASE("shingles: seven words give three, four words give one", "[data][dedup]") {
  std::vector<uint64_t> words;
  append_word_hashes("The cat, sat on THE mat. Again", words);
  CHECK(words.size() == 7);
  CHECK(words[0] == words[4]);
  CHECK(shingles(words).size() == 3);
  CHECK(shingles(std::span(words).first(4)).size() == 1);
  CHECK(shingles({}).empty());
}

TEST_CASE("words: ASCII and Unicode agree, scripts without spaces split", "[data][dedup]") {
  std::vector<uint64_t> ascii;
  std::vector<uint64_t> mixed;
  append_word_hashes("plain words", ascii);
  append_word_hashes("plain words \xC3\x89t\xC3\xA9", mixed);
  CHECK(std::equal(ascii.begin(), ascii.end(), mixed.begin()));
  std::vector<uint64_t> composed;
  std::vector<uint64_t> decomposed;
  append_word_hashes("caf\xC3\xA9", composed);
  append_word_hashes("cafe\xCC\x81", decomposed);
  CHECK(composed == decomposed);
  CHECK(count_words("\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E") == 3);  // three Han characters
  CHECK(count_words("bad \xFF byte") == 2);
}

TEST_CASE("normalize: composed and decomposed spellings fold alike in every script",
          "[data][dedup]") {
  // Canonical pairs of UnicodeData.txt; the left side is NFC.
  const auto pair = GENERATE(
      std::pair<std::string, std::string>("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
      std::pair<std::string, std::string>("\u0439", "\u0438\u0306"),  // Cyrillic short i
      std::pair<std::string, std::string>("\u304c", "\u304b\u3099"),  // kana with a voice mark
      std::pair<std::string, std::string>("\ud55c", "\u1112\u1161\u11ab"),  // Hangul
      std::pair<std::string, std::string>("\u03ac", "\u03b1\u0301"),        // Greek
      std::pair<std::string, std::string>("\u00e5", "\u212b"),  // the sign is a capital letter
      std::pair<std::string, std::string>("a\u2002b", "a\u2000b"));
  const std::string around =
      GENERATE("", "plain words of sixteen bytes and more ", "\u201cx\u201d ");
  CHECK(fold_text(around + pair.first) == fold_text(around + pair.second));
  std::vector<uint64_t> first;
  std::vector<uint64_t> second;
  append_word_hashes(around + pair.first, first);
  append_word_hashes(around + pair.second, second);
  CHECK(first == second);
}

TEST_CASE("normalize: blanks fold to one space wherever they stand", "[data][dedup]") {
  for (size_t before = 0; before <= 34; ++before) {
    const std::string left(before, 'A');
    for (const std::string blank : {" ", "  ", "\n", " \t", "\r\n\r\n", " \n "}) {
      CAPTURE(before, blank);
      const std::string low(before, 'a');
      const std::string rest = "And Then A Longer Rest Of Words";
      const std::string folded = "and then a longer rest of words";
      CHECK(fold_text(left + blank + rest + blank) == low + (before > 0 ? " " : "") + folded);
      CHECK(fold_text(left + blank + rest + "@[`{" + blank + "\u00e9") ==
            low + (before > 0 ? " " : "") + folded + "@[`{ \u00e9");
    }
  }
}

TEST_CASE("sketch: equal slots estimate the similarity", "[data][dedup]") {
  // 1000 hashes each, 500 common: J = 500 / 1500. Binomial, 128 trials: deviation 0.042.
  std::vector<uint64_t> a;
  std::vector<uint64_t> b;
  const Philox random(3, 3);
  for (uint64_t i = 0; i < 1500; ++i) {
    const uint64_t hash = uint64_t{random.u32(2 * i)} << 32 | random.u32(2 * i + 1);
    if (i < 1000) {
      a.push_back(hash);
    }
    if (i >= 500) {
      b.push_back(hash);
    }
  }
  Sketch first;
  Sketch second;
  const SketchMaker maker(0);
  maker.make(a, first);
  maker.make(b, second);
  CHECK(equal_slots(first, second) / 128.0 == Approx(1.0 / 3.0).margin(5 * 0.042));
  CHECK(equal_slots(first, first) == 128);
}

TEST_CASE("dedup: finds what brute force finds", "[data][dedup]") {
  const double threshold = GENERATE(0.6, 0.7, 0.8);
  const std::vector<Record> records = random_families(90, 6, 11);
  std::vector<std::set<std::string>> grams;
  for (const Record& record : records) {
    grams.push_back(oracle_shingles(record));
  }
  const DedupResult found = dedup(records, plain(threshold));
  int64_t pairs = 0;
  int64_t linked = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    for (size_t j = i + 1; j < records.size(); ++j) {
      if (oracle_jaccard(grams[i], grams[j]) >= threshold) {
        ++pairs;
        linked += found.cluster[i] == found.cluster[j] ? 1 : 0;
      }
    }
  }
  REQUIRE(pairs > 80);
  // At J = 0.6 a pair shares a band with probability 1 - (1 - 0.6^4)^32 = 0.988.
  CHECK(linked >= static_cast<int64_t>(0.99 * static_cast<double>(pairs)));
  for (size_t i = 0; i < records.size(); ++i) {
    if (found.duplicate_of[i] >= 0) {
      const auto kept = static_cast<size_t>(found.duplicate_of[i]);
      CAPTURE(i, kept);
      CHECK(found.duplicate_of[kept] == DedupResult::kNone);
      const double exact = oracle_jaccard(grams[i], grams[kept]);
      CHECK(exact >= threshold);
      CHECK(found.similarity[i] == Approx(exact).margin(1e-12));
    }
  }
}

TEST_CASE("dedup: every cluster keeps at least one record", "[data][dedup]") {
  const std::vector<Record> records = random_families(40, 8, 5);
  const DedupResult found = dedup(records, plain(0.5));
  std::set<int64_t> clusters(found.cluster.begin(), found.cluster.end());
  std::set<int64_t> with_kept;
  for (size_t i = 0; i < records.size(); ++i) {
    if (found.duplicate_of[i] < 0) {
      with_kept.insert(found.cluster[i]);
    }
  }
  CHECK(clusters == with_kept);
}

TEST_CASE("dedup: the same result for any number of threads", "[data][dedup]") {
  const std::vector<Record> records = random_families(80, 6, 21);
  DedupOptions one = plain(0.6);
  DedupOptions many = one;
  many.threads = GENERATE(2, 4);
  const DedupResult a = dedup(records, one);
  const DedupResult b = dedup(records, many);
  CHECK(a.duplicate_of == b.duplicate_of);
  CHECK(a.cluster == b.cluster);
  CHECK(a.similarity == b.similarity);
}

TEST_CASE("dedup: a chain of likenesses does not remove its ends", "[data][dedup]") {
  // Text k is a window of 60 words moved by 6: neighbours share 50 of 62 5-grams (J = 0.806), ends
  // of a chain of ten share none.
  std::vector<Record> records;
  for (size_t k = 0; k < 10; ++k) {
    std::string text;
    for (size_t w = 0; w < 60; ++w) {
      text += "word" + std::string(1, static_cast<char>('a' + (w + 6 * k) / 26)) +
              std::string(1, static_cast<char>('a' + (w + 6 * k) % 26)) + " ";
    }
    records.push_back(alpaca_record("", text));
  }
  const DedupResult found = dedup(records, plain(0.75));
  const auto kept =
      std::count(found.duplicate_of.begin(), found.duplicate_of.end(), DedupResult::kNone);
  CHECK(kept >= 4);
  CHECK(std::set<int64_t>(found.cluster.begin(), found.cluster.end()).size() == 1);
}

TEST_CASE("dedup: many copies leave one, quickly", "[data][dedup]") {
  std::vector<Record> records;
  for (int i = 0; i < 20000; ++i) {
    records.push_back(alpaca_record("same question asked by everybody all the time",
                                    i % 2 == 0
                                        ? "The same answer that was given all the time before."
                                        : "the same answer, that was given all the time before"));
  }
  const DedupResult found = dedup(records, plain(0.8));
  CHECK(std::count(found.duplicate_of.begin(), found.duplicate_of.end(), DedupResult::kNone) == 1);
  CHECK(found.duplicate_of[0] == DedupResult::kNone);
}

TEST_CASE("dedup: the number guard keeps texts that ask for other things", "[data][dedup]") {
  const std::string stem =
      "If a farmer has many fields and every one of them is as large as the other, how much is ";
  const std::string tail = " in the end, when nothing else of what was said before happens to him?";
  DedupOptions guarded;
  guarded.threshold = 0.5;
  const auto removed = [&](const Record& a, const Record& b, bool guard) {
    DedupOptions options = guarded;
    options.number_guard = guard;
    const DedupResult found = dedup({a, b}, options);
    return std::count(found.duplicate_of.begin(), found.duplicate_of.end(), DedupResult::kNone) ==
           1;
  };
  SECTION("another number in the prompt") {
    const Record a = alpaca_record(stem + "12 and 5" + tail, "It is what he owns.");
    const Record b = alpaca_record(stem + "12 and 6" + tail, "It is what he owns.");
    CHECK_FALSE(removed(a, b, true));
    CHECK(removed(a, b, false));
  }
  SECTION("another operator in the prompt") {
    const Record a = alpaca_record(stem + "12 + 5" + tail, "It is what he owns.");
    const Record b = alpaca_record(stem + "12 - 5" + tail, "It is what he owns.");
    CHECK_FALSE(removed(a, b, true));
    CHECK(removed(a, b, false));
  }
  SECTION("another short answer") {
    const Record a = alpaca_record(stem + "it" + tail, "Yes");
    const Record b = alpaca_record(stem + "it" + tail, "No");
    CHECK_FALSE(removed(a, b, true));
    CHECK(removed(a, b, false));
  }
  SECTION("the same numbers are no reason") {
    const Record a = alpaca_record(stem + "12 and 5" + tail, "It is what he owns.");
    const Record b = alpaca_record("Please: " + stem + "12 and 5" + tail, "It is what he owns.");
    CHECK(removed(a, b, true));
  }
}

TEST_CASE("dedup: keeps the longest complete answer", "[data][dedup]") {
  const std::string body =
      "one two three four five six seven eight nine ten eleven twelve thirteen";
  const std::vector<Record> records = {
      alpaca_record("count as far as you like", body + " fourteen fifteen and"),
      alpaca_record("count as far as you like", body + "."),
      alpaca_record("count as far as you like", body + " fourteen."),
  };
  const DedupResult found = dedup(records, plain(0.6));
  CHECK(found.duplicate_of == std::vector<int64_t>{2, 2, DedupResult::kNone});
}

TEST_CASE("dedup: exact duplicates ignore case and white space only", "[data][dedup]") {
  DedupOptions options;
  options.near = false;
  const DedupResult found =
      dedup({alpaca_record("Say A", "Yes."), alpaca_record("say  a ", "yes.\n"),
             alpaca_record("Say A", "Yes!"), alpaca_record("Say B", "Yes.")},
            options);
  CHECK(found.duplicate_of == std::vector<int64_t>{-1, 0, -1, -1});
  CHECK(found.exact[1]);
}

TEST_CASE("dedup: views compare what they name", "[data][dedup]") {
  const std::string question = "which of the many rivers of this country is the longest one";
  const std::string answer = "the longest river of this country is the one in the north";
  DedupOptions options = plain(0.8);
  const auto kept = [&](const std::vector<Record>& records) {
    const DedupResult found = dedup(records, options);
    return std::count(found.duplicate_of.begin(), found.duplicate_of.end(), DedupResult::kNone);
  };
  const std::vector<Record> same_prompt = {alpaca_record(question, "a b c d e f"),
                                           alpaca_record(question, "g h i j k l")};
  const std::vector<Record> same_answer = {alpaca_record("a b c d e f", answer),
                                           alpaca_record("g h i j k l", answer)};
  const std::vector<Record> short_answer = {alpaca_record("a b c d e f", "Yes"),
                                            alpaca_record("g h i j k l", "Yes")};
  options.view = View::kPrompt;
  CHECK(kept(same_prompt) == 1);
  CHECK(kept(same_answer) == 2);
  options.view = View::kAnswer;
  CHECK(kept(same_prompt) == 2);
  CHECK(kept(same_answer) == 1);
  CHECK(kept(short_answer) == 2);
}

TEST_CASE("overlaps: exact and near prompts of another set", "[data][dedup]") {
  const std::vector<Record> train = {
      alpaca_record("What is the capital of the country called France today?", "Paris"),
      alpaca_record("Name a colour.", "Red")};
  const std::vector<Record> test = {
      alpaca_record("what is the capital of the country called France  today?", "x"),
      alpaca_record("Please: what is the capital of the country called France today?", "x"),
      alpaca_record("Name a fruit.", "x")};
  DedupOptions options;
  options.threshold = 0.7;
  const std::vector<Overlap> found =
      find_overlaps(prints_of(test, View::kPrompt), prints_of(train, View::kPrompt), options);
  // 10 words give 6 5-grams, 11 words 7 of which 6 are shared: J = 6/7.
  REQUIRE(found.size() == 2);
  CHECK(found[0].record == 0);
  CHECK(found[0].exact);
  CHECK(found[1].record == 1);
  CHECK(found[1].against == 0);
  CHECK(found[1].similarity == Approx(6.0 / 7.0));
}
