// Equal prompts with different answers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/curate/normalize.h"
#include "data/records/record.h"

namespace graft::data {

struct PromptAnswer {
  int64_t item;
  Hash128 prompt;
  Hash128 answer;
  uint32_t answer_words;
  bool alive;  // may still be quarantined; exact copies that left already only count as votes
};

struct PromptDecision {
  int64_t item;
  bool conflict;    // leaves; otherwise the prompt merely repeats
  int64_t answers;  // different answers of the prompt
  std::string detail;
};

// Answers of at most this many words are labels and facts, of which at most one is right.
inline constexpr uint32_t kFactWords = 25;

// Decisions for every prompt with at least `min_answers` different answers, in the order of items.
//   - Short answers (kFactWords at most, and the prompt asks for no invention): an answer with a
//     strict majority of the rows stays, all others leave; without a majority all leave.
//   - Else an answer that shares no word of four letters or more with its prompt leaves when
//     another one does share some; the rest merely repeat.
std::vector<PromptDecision> find_conflicts(std::vector<PromptAnswer> rows,
                                           double min_answers,
                                           const std::function<Record(int64_t)>& record_of);

}  // namespace graft::data
