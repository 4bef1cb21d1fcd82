#include "data/curate/conflicts.h"

#include <algorithm>
#include <map>
#include <set>

#include "data/curate/match.h"

namespace graft::data {
namespace {

bool asks_for_invention(const std::string& prompt) {
  static const re2::RE2 kInvents(
      R"((?i)\b(?:write|compose|create|generate|suggest|brainstorm|imagine|tell|come up|invent|make up|give (?:me )?(?:an?|some|three|\d)|name (?:an?|one|some)|draft|design|describe|example|random|poem|story|joke|tweet|slogan|title|caption|haiku|rewrite|rephrase|paraphrase)\b)");
  return matches(kInvents, prompt);
}

// Folded words of at least four bytes.
std::set<std::string> long_words(std::string_view text) {
  const std::string folded = fold_text(text);
  std::set<std::string> words;
  std::string word;
  for (size_t i = 0; i <= folded.size(); ++i) {
    const char c = i < folded.size() ? folded[i] : ' ';
    const bool inside = (c >= 'a' && c <= 'z') || static_cast<unsigned char>(c) >= 0x80;
    if (inside) {
      word += c;
      continue;
    }
    if (word.size() >= 4) {
      // Singular and plural, tense and person differ behind the stem.
      words.insert(word.substr(0, 6));
    }
    word.clear();
  }
  return words;
}

bool shares_word(const std::set<std::string>& prompt, std::string_view answer) {
  const std::set<std::string> words = long_words(answer);
  return std::any_of(words.begin(), words.end(),
                     [&](const std::string& word) { return prompt.count(word) > 0; });
}

using Group = std::vector<PromptAnswer>;

void decide_short(const Group& group,
                  const std::map<Hash128, int64_t>& votes,
                  std::vector<PromptDecision>& out) {
  const auto total = static_cast<int64_t>(group.size());
  const auto answers = static_cast<int64_t>(votes.size());
  const auto top = std::max_element(
      votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const bool majority = 2 * top->second > total;
  for (const PromptAnswer& row : group) {
    if (!row.alive || (majority && row.answer == top->first)) {
      continue;
    }
    out.push_back({row.item, true, answers,
                   std::to_string(answers) + " answers in " + std::to_string(total) + " rows; " +
                       (majority ? std::to_string(top->second) + " rows agree on another one"
                                 : "none has a majority, so all leave")});
  }
}

void decide_long(const Group& group,
                 int64_t answers,
                 const std::string& prompt,
                 const std::function<Record(int64_t)>& record_of,
                 std::vector<PromptDecision>& out) {
  const std::set<std::string> asked = long_words(prompt);
  std::vector<bool> fits;
  for (const PromptAnswer& row : group) {
    fits.push_back(shares_word(asked, record_of(row.item).answer()));
  }
  const bool any_fits = std::find(fits.begin(), fits.end(), true) != fits.end();
  for (size_t i = 0; i < group.size(); ++i) {
    const bool leaves = any_fits && !fits[i];
    if (group[i].alive) {
      out.push_back({group[i].item, leaves, answers,
                     leaves ? "shares no word with its prompt, as another answer does"
                            : std::to_string(answers) + " answers, all kept"});
    }
  }
}

}  // namespace

std::vector<PromptDecision> find_conflicts(std::vector<PromptAnswer> rows,
                                           double min_answers,
                                           const std::function<Record(int64_t)>& record_of) {
  std::sort(rows.begin(), rows.end(), [](const PromptAnswer& a, const PromptAnswer& b) {
    return a.prompt == b.prompt ? a.item < b.item : a.prompt < b.prompt;
  });
  std::vector<PromptDecision> decisions;
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin + 1;
    while (end < rows.size() && rows[end].prompt == rows[begin].prompt) {
      ++end;
    }
    if (end - begin > 1) {
      const Group group(rows.begin() + static_cast<std::ptrdiff_t>(begin),
                        rows.begin() + static_cast<std::ptrdiff_t>(end));
      std::map<Hash128, int64_t> votes;
      uint32_t longest = 0;
      for (const PromptAnswer& row : group) {
        ++votes[row.answer];
        longest = std::max(longest, row.answer_words);
      }
      if (votes.size() >= 2 && static_cast<double>(votes.size()) >= min_answers) {
        const std::string prompt = record_of(group.front().item).prompt();
        if (longest <= kFactWords && !asks_for_invention(prompt)) {
          decide_short(group, votes, decisions);
        } else {
          decide_long(group, static_cast<int64_t>(votes.size()), prompt, record_of, decisions);
        }
      }
    }
    begin = end;
  }
  std::sort(decisions.begin(), decisions.end(),
            [](const PromptDecision& a, const PromptDecision& b) { return a.item < b.item; });
  return decisions;
}

}  // namespace graft::data
