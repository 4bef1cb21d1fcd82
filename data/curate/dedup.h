// Exact and near duplicates whose every removal is verified, never estimated.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/curate/minhash.h"
#include "data/curate/normalize.h"
#include "data/records/record.h"

namespace graft::data {

enum class View { kAll, kPrompt, kAnswer };
View parse_view(std::string_view name);  // "all", "prompt", "answer". Errors: kUsage

inline constexpr size_t kShingleWords = 5;

// Hashes of all runs of `length` words, sorted, each once. Fewer words than that make one shingle
// of all of them; no words make none.
std::vector<uint64_t> shingles(std::span<const uint64_t> words, size_t length = kShingleWords);

// |a & b| / |a | b| of sorted sets; 1 when both are empty.
double jaccard(std::span<const uint64_t> a, std::span<const uint64_t> b);

// What one record looks like to the search, in one view.
struct Fingerprint {
  Hash128 folded;         // of folded_view()
  Hash128 folded_answer;  // of the last answer; a short one without blanks and sentence marks
  std::vector<uint64_t> shingles;        // sorted
  std::vector<uint64_t> prompt_numbers;  // number_hashes of everything but the answers
  std::vector<uint64_t> answer_numbers;
  uint32_t answer_words = 0;  // of the last answer
  uint32_t prompt_words = 0;  // of all that is no answer
  bool complete = false;      // the answer ends in a terminal mark
  bool empty = true;          // nothing in this view: never a duplicate
};

// The folded text by which two records are exact duplicates in a view: the roles and contents of
// all turns, of those before the last assistant turn, or of the assistant's.
std::string folded_view(const Record& record, View view);
Fingerprint fingerprint(const Record& record, View view);

struct DedupOptions {
  double threshold = 0.8;  // Jaccard similarity of word 5-grams, in (0, 1]
  View view = View::kAll;
  // Texts of enough similarity still are no duplicates when the numbers or operators of their
  // prompts differ, when each answer holds a number that the other lacks, or when both answers
  // have at most kShortAnswerWords words and differ.
  bool number_guard = true;
  bool near = true;   // false: exact duplicates only
  uint64_t seed = 0;  // of the MinHash permutations; verified results hardly depend on it
  int threads = 1;
};
inline constexpr uint32_t kShortAnswerWords = 4;

struct DedupResult {
  static constexpr int64_t kNone = -1;
  std::vector<int64_t> duplicate_of;  // index of the kept record, or kNone when kept
  std::vector<double> similarity;     // to duplicate_of: >= threshold; 0 when kept
  std::vector<bool> exact;            // removed with equal folded text
  std::vector<int64_t> cluster;       // least index among all records linked to this one
};

// Compares the folded texts of records i and j, byte for byte.
using SameText = std::function<bool(int64_t i, int64_t j)>;

// Every removed record is an exact duplicate of the kept one or has Jaccard >= threshold to it; no
// chain of likenesses is followed, so a cluster may keep several members and always keeps one.
// Kept is the longest complete answer, then the longest, then the lowest index. The result does
// not depend on the number of threads. In View::kAnswer, answers of fewer than kShingleWords words
// are left alone: short answers repeat.
DedupResult deduplicate(std::span<const Fingerprint> records,
                        const DedupOptions& options,
                        const SameText& same_text);

struct Overlap {
  int64_t record;   // index in `records`
  int64_t against;  // index in `against`
  double similarity;
  bool exact;  // equal folded text
};
// For each of `records` its likest one of `against`, when that is an exact duplicate or reaches the
// threshold; in the order of `records`. Ties go to the lower index.
std::vector<Overlap> find_overlaps(std::span<const Fingerprint> records,
                                   std::span<const Fingerprint> against,
                                   const DedupOptions& options);

}  // namespace graft::data
