// Rules on answers that stop too early, or do not stop.
#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

#include "core/hash.h"
#include "data/curate/match.h"
#include "data/curate/normalize.h"
#include "data/curate/rule_functions.h"

namespace graft::data {
namespace {

// Below this an answer is a phrase. From here on, three public sets (15,619 rows) show no false
// finding, and lowering it further finds nothing more in them.
constexpr size_t kShortestProse = 40;
constexpr std::string_view kBlank = " \t\r\n";

Finding at_end(const Subject& subject, size_t from, std::string detail) {
  const auto size = static_cast<int64_t>(subject.answer().size());
  return {static_cast<double>(size),
          {subject.answer_message(), static_cast<int64_t>(from), size},
          std::move(detail)};
}

size_t count_of(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// JSON that begins but does not end: an open bracket or string at the end of the text.
bool is_cut_json(std::string_view text) {
  static const re2::RE2 kBegins(R"(^(?:\{\s*(?:"|$)|\[\s*(?:\{|"|\[|-?\d+\s*(?:,|$))))");
  if (!matches(kBegins, text)) {
    return false;
  }
  int64_t depth = 0;
  bool inside = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (inside) {
      i += c == '\\' ? 1 : 0;
      inside = c != '"';
    } else if (c == '"') {
      inside = true;
    } else {
      depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
    }
  }
  return inside || depth > 0;
}

// A word that cannot end a sentence.
bool ends_in_open_word(std::string_view text, size_t word_count) {
  size_t begin = text.size();
  while (begin > 0 && is_ascii_letter(text[begin - 1])) {
    --begin;
  }
  if (begin == 0 || begin == text.size() || text[begin - 1] != ' ') {
    return false;
  }
  const std::string_view word = text.substr(begin);
  constexpr std::array<std::string_view, 12> kNever = {
      "and", "or", "but", "the", "an", "of", "their", "your", "because", "than", "its", "whose"};
  constexpr std::array<std::string_view, 24> kSeldom = {
      "a",    "is",  "are",   "was",   "were", "has",  "have", "which",
      "into", "to",  "by",    "from",  "in",   "as",   "with", "that",
      "when", "who", "where", "while", "if",   "such", "both", "between"};
  static const re2::RE2 kItem(R"(^\s*(?:[-*•#|>+]|\(?\d{1,3}[.):]))");
  const size_t newline = text.rfind('\n');
  const std::string_view line = newline == text.npos ? text : text.substr(newline + 1);
  if (std::find(kNever.begin(), kNever.end(), word) != kNever.end()) {
    return word_count >= 4;
  }
  // "…to connect with", "log in", "18 sq in" end items of lists and short labels.
  return word_count >= 7 && text.front() >= 'A' && text.front() <= 'Z' &&
         text.find('=') == text.npos && !matches(kItem, line) &&
         std::find(kSeldom.begin(), kSeldom.end(), word) != kSeldom.end();
}

// What may stand behind the last end mark without one of its own: a greeting and a name, hash tags,
// a link, the result of a calculation.
bool is_closing(std::string_view fragment) {
  static const re2::RE2 kClosing(
      R"((?i)\b(?:sincerely|regards|yours|love|cheers|truly|respectfully|faithfully|thanks|thank you|wishes|respect|hope|luck|signed|ps|source|author)\b|#\w|https?:|www\.|[=@:]|[-–—~] ?[A-Z][\w.]*(?: [A-Z][\w.]*)*$)");
  return matches(kClosing, fragment);
}

// Prose whose last line runs on without an end mark, after at least one finished sentence.
bool is_unfinished_prose(std::string_view text) {
  if (!is_ascii_letter(text.back())) {
    return false;
  }
  const size_t newline = text.rfind('\n');
  const std::string_view line = newline == std::string_view::npos ? text : text.substr(newline + 1);
  static const re2::RE2 kListItem(
      R"(^\s*(?:[-*•#|>+]|\(?\d{1,3}[.):]|\(?[A-Za-z][.):]\s|[A-Za-z ]{1,40}:))");
  // Several lines: a poem, a letter or a list may end without a mark; a long line of prose may not.
  if (matches(kListItem, line) || (newline != std::string_view::npos && line.size() < 80)) {
    return false;
  }
  static const re2::RE2 kSentenceEnd(R"([a-z0-9"')][.!?]["')]?\s+["'(]?[A-Z0-9])");
  static const re2::RE2 kTitle(
      R"(\b(?:Dr|Mr|Mrs|Ms|St|Prof|Jr|Sr|vs|etc|e\.g|i\.e|No|Inc|[A-Z])\.\s+$)");
  size_t last = std::string_view::npos;
  for (Match hit = find_match(kSentenceEnd, line); hit;
       hit = find_match(kSentenceEnd, line, hit.end - 1)) {
    last = matches(kTitle, line.substr(0, hit.end - 1)) ? last : hit.end - 1;
  }
  if (last == std::string_view::npos) {
    return false;
  }
  const std::string_view fragment = line.substr(last);
  return std::count(fragment.begin(), fragment.end(), ' ') >= 1 && !is_closing(fragment);
}

}  // namespace

std::optional<Finding> check_truncated(const Subject& subject, double) {
  if (subject.record().schema == Schema::kText) {
    return std::nullopt;
  }
  const std::string_view whole = subject.answer();
  const size_t last = whole.find_last_not_of(kBlank);
  if (last == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view text = whole.substr(0, last + 1);
  const size_t tail = text.size() > 40 ? text.size() - 40 : 0;
  if (count_of(text, "```") % 2 == 1) {
    return at_end(subject, text.rfind("```"), "a code fence stays open");
  }
  if (is_cut_json(text.substr(text.find_first_not_of(kBlank)))) {
    return at_end(subject, tail, "brackets or quotes of the JSON stay open");
  }
  static const re2::RE2 kCutEscape(R"((?:^|[^\\])(?:\\\\)*\\(?:u[0-9a-fA-F]{0,3})?$)");
  if (text.back() == '\\' && !subject.answer_is_code() && matches(kCutEscape, text)) {
    return at_end(subject, text.size() - 1, "ends inside an escape");
  }
  if (subject.has('<') && text.find("<html") != std::string_view::npos &&
      text.find("</html") == std::string_view::npos &&
      text.find("</body") == std::string_view::npos) {
    return at_end(subject, tail, "the HTML page stays open");
  }
  if (subject.answer_is_code()) {
    return std::nullopt;
  }
  const auto words = static_cast<size_t>(count_words(text));
  const size_t newline = text.rfind('\n');
  const std::string_view line = newline == std::string_view::npos ? text : text.substr(newline + 1);
  static const re2::RE2 kSalutation(R"((?i)^\s*(?:dear|hi|hello|hey|good)\b)");
  if (text.back() == ',' && std::count(line.begin(), line.end(), ' ') >= 3 &&
      !matches(kSalutation, line)) {
    return at_end(subject, text.size() - 1, "ends in a comma");
  }
  if (ends_in_open_word(text, words)) {
    return at_end(subject, tail, "ends in a word that needs another");
  }
  if (text.size() >= kShortestProse && is_unfinished_prose(text)) {
    return at_end(subject, tail, "prose without an end mark");
  }
  return std::nullopt;
}

namespace {

struct Token {
  uint64_t hash;
  size_t begin;
  size_t end;
  bool letters;
};

std::vector<Token> tokenize(std::string_view text) {
  std::vector<Token> tokens;
  for (size_t at = text.find_first_not_of(kBlank); at != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kBlank, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    const bool letters = std::any_of(word.begin(), word.end(), [](char c) {
      return is_ascii_letter(c) || static_cast<unsigned char>(c) >= 0x80;
    });
    tokens.push_back({xxh3_64(word), at, end, letters});
    at = text.find_first_not_of(kBlank, end);
  }
  return tokens;
}

struct Loop {
  size_t first = 0;  // token
  size_t words = 0;
  size_t repeats = 0;
  size_t period = 0;
};

// Long enough to be no figure of speech: "no, no, no" and a refrain sung three times are text.
bool is_loop(const Loop& loop) {
  if (loop.period == 1) {
    return loop.repeats >= 8;
  }
  if (loop.period < 5) {
    return loop.repeats >= 5;
  }
  return loop.repeats >= 3;
}

Loop longest_loop(const std::vector<Token>& tokens) {
  constexpr size_t kLongestPeriod = 40;
  Loop best;
  for (size_t period = 1; period <= kLongestPeriod && period * 3 <= tokens.size(); ++period) {
    size_t run = 0;
    for (size_t i = 0; i + period <= tokens.size(); ++i) {
      const bool same = i + period < tokens.size() && tokens[i].hash == tokens[i + period].hash;
      if (same) {
        ++run;
        continue;
      }
      const Loop loop{i - run, run + period, (run + period) / period, period};
      if (run > 0 && is_loop(loop) && loop.words > best.words) {
        best = loop;
      }
      run = 0;
    }
  }
  return best;
}

}  // namespace

std::optional<Finding> check_repetition(const Subject& subject, double threshold) {
  const std::string_view answer = subject.answer();
  if (answer.size() < 24 || subject.answer_is_code()) {
    return std::nullopt;
  }
  static const re2::RE2 kWanted(
      R"((?i)\b(?:repeat\w*|repetit\w+|times|song|lyrics|chant|mantra|refrain|chorus|rhyme|sound|pattern|table|matrix|grid|ascii)\b)");
  // A loop that does not stop is still there at the end; this bounds the memory.
  constexpr size_t kWindowBytes = size_t{1} << 20;
  const size_t window = answer.size() - std::min(answer.size(), kWindowBytes);
  const std::vector<Token> tokens = tokenize(answer.substr(window));
  const Loop loop = longest_loop(tokens);
  if (loop.words < 8) {
    return std::nullopt;
  }
  const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(loop.first);
  const bool letters = std::any_of(first, first + static_cast<std::ptrdiff_t>(loop.period),
                                   [](const Token& token) { return token.letters; });
  const double share = static_cast<double>(loop.words) / static_cast<double>(tokens.size());
  if (!letters || share < threshold || matches(kWanted, subject.prompt())) {
    return std::nullopt;
  }
  return Finding{share,
                 {subject.answer_message(), static_cast<int64_t>(window + first->begin),
                  static_cast<int64_t>(window + tokens[loop.first + loop.words - 1].end)},
                 std::to_string(loop.repeats) + " times"};
}

}  // namespace graft::data
