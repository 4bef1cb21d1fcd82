#include "data/curate/dedup.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "core/error.h"
#include "data/curate/parallel.h"

namespace graft::data {
namespace {

constexpr int64_t kSketchBlock = 512;  // records a thread takes at once

uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xFF51AFD7ED558CCDULL;
  x ^= x >> 33;
  x *= 0xC4CEB9FE1A85EC53ULL;
  return x ^ (x >> 33);
}

bool in_view(const Message& message, size_t index, size_t last_answer, View view) {
  const bool answer = message.role == "assistant" || message.role == "text";
  switch (view) {
    case View::kAll:
      return true;
    case View::kPrompt:
      return index < last_answer;
    case View::kAnswer:
      return answer;
  }
  return false;
}

size_t last_answer_index(const Record& record) {
  for (size_t i = record.messages.size(); i-- > 0;) {
    if (record.messages[i].role == "assistant" || record.messages[i].role == "text") {
      return i;
    }
  }
  return record.messages.size();
}

// Folded text without blanks and sentence marks: "No ." and "no" are one label.
std::string bare_text(std::string_view text) {
  std::string bare = fold_text(text);
  std::erase_if(bare, [](char c) {
    return std::string_view(" .,;:!?\"'").find(c) != std::string_view::npos;
  });
  return bare;
}

bool ends_in_terminal_mark(std::string_view text) {
  const size_t end = text.find_last_not_of(" \t\r\n\"')]}*`");
  return end != std::string_view::npos &&
         std::string_view(".!?:;").find(text[end]) != std::string_view::npos;
}

// Least member of a set of linked indices; links may be added from several threads. Roots only
// ever point to lower indices, so the sets do not depend on the order of the links.
class UnionFind {
 public:
  explicit UnionFind(size_t count) : parent_(new std::atomic<uint32_t>[count]) {
    for (size_t i = 0; i < count; ++i) {
      parent_[i].store(static_cast<uint32_t>(i), std::memory_order_relaxed);
    }
  }
  uint32_t find(uint32_t i) {
    for (;;) {
      const uint32_t up = parent_[i].load(std::memory_order_relaxed);
      if (up == i) {
        return i;
      }
      const uint32_t above = parent_[up].load(std::memory_order_relaxed);
      if (above != up) {
        uint32_t expected = up;
        parent_[i].compare_exchange_weak(expected, above, std::memory_order_relaxed);
      }
      i = up;
    }
  }
  void link(uint32_t a, uint32_t b) {
    for (;;) {
      a = find(a);
      b = find(b);
      if (a == b) {
        return;
      }
      if (a < b) {
        std::swap(a, b);
      }
      uint32_t expected = a;
      if (parent_[a].compare_exchange_strong(expected, b, std::memory_order_relaxed)) {
        return;
      }
    }
  }

 private:
  std::unique_ptr<std::atomic<uint32_t>[]> parent_;
};

// Remembers pairs that were compared and found different, so that another shared band does not
// compare them again. Lossy: an entry may be overwritten, never wrong.
class RejectedPairs {
 public:
  RejectedPairs() : slots_(size_t{1} << 18) {}
  bool contains(uint64_t pair) const {
    return slots_[mix(pair) & (slots_.size() - 1)].load(std::memory_order_relaxed) == pair;
  }
  void add(uint64_t pair) {
    slots_[mix(pair) & (slots_.size() - 1)].store(pair, std::memory_order_relaxed);
  }

 private:
  std::vector<std::atomic<uint64_t>> slots_;
};

// Whether the guard lets `a` and `b` be duplicates.
bool guard_allows(const Fingerprint& a, const Fingerprint& b) {
  if (a.prompt_numbers != b.prompt_numbers) {
    return false;
  }
  if (a.answer_words <= kShortAnswerWords && b.answer_words <= kShortAnswerWords &&
      a.folded_answer != b.folded_answer) {
    return false;
  }
  return is_subset(a.answer_numbers, b.answer_numbers) ||
         is_subset(b.answer_numbers, a.answer_numbers);
}

bool sizes_allow(size_t a, size_t b, double threshold) {
  return static_cast<double>(std::min(a, b)) >= threshold * static_cast<double>(std::max(a, b));
}

bool skipped_by_view(const Fingerprint& record, View view) {
  return record.empty || (view == View::kAnswer && record.answer_words < kShingleWords);
}

std::vector<Sketch> make_sketches(std::span<const Fingerprint> records,
                                  uint64_t seed,
                                  int threads) {
  std::vector<Sketch> sketches(records.size());
  const SketchMaker maker(seed);
  const auto count = static_cast<int64_t>(records.size());
  parallel_for((count + kSketchBlock - 1) / kSketchBlock, threads, [&](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kSketchBlock);
    for (int64_t i = block * kSketchBlock; i < end; ++i) {
      maker.make(records[static_cast<size_t>(i)].shingles, sketches[static_cast<size_t>(i)]);
    }
  });
  return sketches;
}

// Best first: what a cluster would keep.
bool better(const Fingerprint& a, int64_t a_index, const Fingerprint& b, int64_t b_index) {
  if (a.complete != b.complete) {
    return a.complete;
  }
  if (a.answer_words != b.answer_words) {
    return a.answer_words > b.answer_words;
  }
  return a_index < b_index;
}

class Deduplicator {
 public:
  Deduplicator(std::span<const Fingerprint> records,
               const DedupOptions& options,
               const SameText& same_text)
      : records_(records), options_(options), same_text_(same_text), links_(records.size()) {
    result_.duplicate_of.assign(records.size(), DedupResult::kNone);
    result_.similarity.assign(records.size(), 0.0);
    result_.exact.assign(records.size(), false);
    result_.cluster.resize(records.size());
  }

  DedupResult run() {
    remove_exact();
    if (options_.near) {
      link_near();
      remove_near();
    }
    for (size_t i = 0; i < records_.size(); ++i) {
      result_.cluster[i] = links_.find(static_cast<uint32_t>(i));
    }
    return std::move(result_);
  }

 private:
  bool removed(size_t i) const { return result_.duplicate_of[i] != DedupResult::kNone; }

  void remove(int64_t i, int64_t kept, double similarity, bool exact) {
    const auto at = static_cast<size_t>(i);
    result_.duplicate_of[at] = kept;
    result_.similarity[at] = similarity;
    result_.exact[at] = exact;
    links_.link(static_cast<uint32_t>(i), static_cast<uint32_t>(kept));
  }

  std::vector<int64_t> indices_best_first() const {
    std::vector<int64_t> order(records_.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return comes_first(a, b); });
    return order;
  }

  bool comes_first(int64_t a, int64_t b) const {
    return better(records_[static_cast<size_t>(a)], a, records_[static_cast<size_t>(b)], b);
  }

  void remove_exact() {
    std::vector<int64_t> order(records_.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const auto& first = records_[static_cast<size_t>(a)].folded;
      const auto& second = records_[static_cast<size_t>(b)].folded;
      return first == second ? comes_first(a, b) : first < second;
    });
    for (size_t i = 1; i < order.size(); ++i) {
      const int64_t here = order[i];
      const int64_t before = order[i - 1];
      const Fingerprint& record = records_[static_cast<size_t>(here)];
      if (record.folded != records_[static_cast<size_t>(before)].folded ||
          skipped_by_view(record, options_.view)) {
        continue;
      }
      const int64_t of = result_.duplicate_of[static_cast<size_t>(before)];
      const int64_t kept = of == DedupResult::kNone ? before : of;
      if (same_text_(kept, here)) {
        remove(here, kept, 1.0, true);
      }
    }
  }

  bool is_near(const Fingerprint& a, const Fingerprint& b, double& similarity) const {
    if (!sizes_allow(a.shingles.size(), b.shingles.size(), options_.threshold) ||
        (options_.number_guard && !guard_allows(a, b))) {
      return false;
    }
    similarity = jaccard(a.shingles, b.shingles);
    return similarity >= options_.threshold;
  }

  void link_near() {
    sketches_ = make_sketches(records_, options_.seed, options_.threads);
    std::vector<uint32_t> sizes(records_.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      const bool out = removed(i) || skipped_by_view(records_[i], options_.view);
      sizes[i] = out ? 0 : static_cast<uint32_t>(records_[i].shingles.size());
    }
    RejectedPairs rejected;
    visit_candidates(
        {sketches_, sizes, options_.threshold, options_.threads},
        [&](uint32_t a, uint32_t b) { return links_.find(a) == links_.find(b); },
        [&](uint32_t a, uint32_t b) {
          const uint64_t pair = uint64_t{a} << 32 | b;
          if (rejected.contains(pair)) {
            return;
          }
          double similarity = 0;
          if (is_near(records_[a], records_[b], similarity)) {
            links_.link(a, b);
          } else {
            rejected.add(pair);
          }
        });
  }

  // Within each set of linked records, best first: a record close enough to a kept one goes.
  void remove_near() {
    const int least_equal = least_equal_slots();
    std::unordered_map<uint32_t, std::vector<int64_t>> kept_of;
    for (const int64_t i : indices_best_first()) {
      const auto at = static_cast<size_t>(i);
      if (removed(at)) {
        continue;
      }
      std::vector<int64_t>& kept = kept_of[links_.find(static_cast<uint32_t>(i))];
      int64_t likest = DedupResult::kNone;
      double best = 0;
      for (const int64_t candidate : kept) {
        const auto other = static_cast<size_t>(candidate);
        double similarity = 0;
        if (equal_slots(sketches_[at], sketches_[other]) >= least_equal &&
            is_near(records_[at], records_[other], similarity) && similarity > best) {
          best = similarity;
          likest = candidate;
        }
      }
      if (likest == DedupResult::kNone) {
        kept.push_back(i);
      } else {
        remove(i, likest, best, false);
      }
    }
    point_exact_at_kept();
  }

  // An exact duplicate of a record that near-duplicate search removed belongs to what that one
  // belongs to: equal text, equal similarity.
  void point_exact_at_kept() {
    for (size_t i = 0; i < records_.size(); ++i) {
      if (!result_.exact[i]) {
        continue;
      }
      const auto middle = static_cast<size_t>(result_.duplicate_of[i]);
      if (removed(middle)) {
        result_.duplicate_of[i] = result_.duplicate_of[middle];
        result_.similarity[i] = result_.similarity[middle];
        result_.exact[i] = false;
      }
    }
  }

  int least_equal_slots() const {
    const double t = options_.threshold;
    return static_cast<int>(
        std::floor(t * kSketchSlots - 5.2 * std::sqrt(t * (1 - t) * kSketchSlots)));
  }

  std::span<const Fingerprint> records_;
  const DedupOptions& options_;
  const SameText& same_text_;
  UnionFind links_;
  std::vector<Sketch> sketches_;
  DedupResult result_;
};

}  // namespace

View parse_view(std::string_view name) {
  constexpr std::array<std::string_view, 3> kNames = {"all", "prompt", "answer"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) {
      return static_cast<View>(i);
    }
  }
  fail(ExitCode::kUsage, unknown_name("view", name, kNames), "--view");
}

namespace {

// Hashes are spread evenly: by their upper bits most stand in a bucket of their own.
void sort_hashes(std::vector<uint64_t>& hashes) {
  constexpr size_t kFewest = 16;  // below, std::sort is an insertion sort
  constexpr int kMostBits = 12;   // 16 KiB of counters
  if (hashes.size() < kFewest) {
    std::sort(hashes.begin(), hashes.end());
    return;
  }
  int bits = 4;
  while (bits < kMostBits && (size_t{1} << bits) < hashes.size()) {
    ++bits;
  }
  const int shift = 64 - bits;
  thread_local std::vector<uint32_t> next;
  thread_local std::vector<uint64_t> spread;
  next.assign((size_t{1} << bits) + 1, 0);
  spread.resize(hashes.size());
  for (const uint64_t hash : hashes) {
    ++next[(hash >> shift) + 1];
  }
  for (size_t b = 1; b < next.size(); ++b) {
    next[b] += next[b - 1];
  }
  for (const uint64_t hash : hashes) {
    spread[next[hash >> shift]++] = hash;
  }
  // Now next[b] is where bucket b ends.
  uint32_t begin = 0;
  for (size_t b = 0; b + 1 < next.size(); ++b) {
    if (next[b] > begin + 1) {
      std::sort(spread.begin() + begin, spread.begin() + next[b]);
    }
    begin = next[b];
  }
  hashes.assign(spread.begin(), spread.end());
}

}  // namespace

std::vector<uint64_t> shingles(std::span<const uint64_t> words, size_t length) {
  constexpr std::array<uint64_t, 8> kPlace = {
      0x9E3779B97F4A7C15ULL, 0xC2B2AE3D27D4EB4FULL, 0x165667B19E3779F9ULL, 0x27D4EB2F165667C5ULL,
      0x85EBCA77C2B2AE63ULL, 0xD6E8FEB86659FD93ULL, 0xA0761D6478BD642FULL, 0xE7037ED1A0B428DBULL};
  if (length < 1 || length > kPlace.size()) {
    fail(ExitCode::kBug, "a shingle holds 1..8 words, got " + std::to_string(length));
  }
  std::vector<uint64_t> found;
  if (words.empty()) {
    return found;
  }
  if (words.size() < length) {
    uint64_t hash = words.size();
    for (const uint64_t word : words) {
      hash = mix(hash * kPlace[0] + word);
    }
    found.push_back(hash);
    return found;
  }
  found.reserve(words.size() - length + 1);
  for (size_t i = 0; i + length <= words.size(); ++i) {
    uint64_t hash = 0;
    for (size_t k = 0; k < length; ++k) {
      hash += words[i + k] * kPlace[k];
    }
    found.push_back(mix(hash));
  }
  sort_hashes(found);
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

double jaccard(std::span<const uint64_t> a, std::span<const uint64_t> b) {
  if (a.empty() && b.empty()) {
    return 1.0;
  }
  size_t common = 0;
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() && j < b.size()) {
    const uint64_t x = a[i];
    const uint64_t y = b[j];
    common += x == y ? 1 : 0;
    i += x <= y ? 1 : 0;
    j += y <= x ? 1 : 0;
  }
  return static_cast<double>(common) / static_cast<double>(a.size() + b.size() - common);
}

namespace {

void append_folded(std::string& to, const Message& message) {
  to += message.role;
  to += '\x1f';
  to += fold_text(message.content);
  to += '\x1e';
}

}  // namespace

std::string folded_view(const Record& record, View view) {
  const size_t last = last_answer_index(record);
  std::string text;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    if (in_view(record.messages[i], i, last, view)) {
      append_folded(text, record.messages[i]);
    }
  }
  return text;
}

Fingerprint fingerprint(const Record& record, View view) {
  Fingerprint print;
  const size_t last = last_answer_index(record);
  thread_local std::vector<uint64_t> words;  // kept for its memory only
  words.clear();
  std::string folded;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const Message& message = record.messages[i];
    if (!in_view(message, i, last, view)) {
      continue;
    }
    const bool answer = message.role == "assistant" || message.role == "text";
    const size_t words_before = words.size();
    const size_t folded_before = folded.size();
    append_words_and_numbers(message.content, words,
                             answer ? print.answer_numbers : print.prompt_numbers);
    append_folded(folded, message);
    print.prompt_words += answer ? 0 : static_cast<uint32_t>(words.size() - words_before);
    if (i == last) {
      print.answer_words = static_cast<uint32_t>(words.size() - words_before);
      print.complete = ends_in_terminal_mark(message.content);
      print.folded_answer = print.answer_words <= kShortAnswerWords
                                ? hash128(bare_text(message.content))
                                : hash128(std::string_view(folded).substr(folded_before));
    }
  }
  std::sort(print.prompt_numbers.begin(), print.prompt_numbers.end());
  std::sort(print.answer_numbers.begin(), print.answer_numbers.end());
  print.shingles = shingles(words);
  print.empty = folded.empty();
  print.folded = hash128(folded);
  return print;
}

DedupResult deduplicate(std::span<const Fingerprint> records,
                        const DedupOptions& options,
                        const SameText& same_text) {
  if (records.size() >= ~uint32_t{0}) {
    fail(ExitCode::kData, "one run takes at most 4,294,967,294 records", "", "split the input");
  }
  return Deduplicator(records, options, same_text).run();
}

std::vector<Overlap> find_overlaps(std::span<const Fingerprint> records,
                                   std::span<const Fingerprint> against,
                                   const DedupOptions& options) {
  std::vector<Fingerprint> all(against.begin(), against.end());
  all.insert(all.end(), records.begin(), records.end());
  const size_t split = against.size();
  std::vector<Overlap> best(records.size(), {-1, -1, 0.0, false});
  std::mutex mutex;
  const auto offer = [&](size_t record, size_t other, double similarity, bool exact) {
    const std::lock_guard<std::mutex> lock(mutex);
    Overlap& now = best[record];
    const bool likelier = similarity > now.similarity || (exact && !now.exact);
    const bool tie = similarity == now.similarity && exact == now.exact;
    if (now.record < 0 || likelier || (tie && static_cast<int64_t>(other) < now.against)) {
      now = {static_cast<int64_t>(record), static_cast<int64_t>(other), similarity, exact};
    }
  };
  std::vector<char> is_exact(records.size(), 0);
  std::vector<std::pair<Hash128, size_t>> known;
  for (size_t i = 0; i < split; ++i) {
    if (!against[i].empty) {
      known.emplace_back(against[i].folded, i);
    }
  }
  std::sort(known.begin(), known.end());
  for (size_t r = 0; r < records.size(); ++r) {
    const auto hit =
        std::lower_bound(known.begin(), known.end(), std::make_pair(records[r].folded, size_t{0}));
    if (!records[r].empty && hit != known.end() && hit->first == records[r].folded) {
      is_exact[r] = 1;
      offer(r, hit->second, 1.0, true);
    }
  }
  const std::vector<Sketch> sketches = make_sketches(all, options.seed, options.threads);
  std::vector<uint32_t> sizes(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    sizes[i] = static_cast<uint32_t>(all[i].shingles.size());
  }
  visit_candidates(
      {sketches, sizes, options.threshold, options.threads},
      [&](uint32_t a, uint32_t b) { return a >= split || b < split || is_exact[b - split] != 0; },
      [&](uint32_t a, uint32_t b) {
        if (!sizes_allow(sizes[a], sizes[b], options.threshold) ||
            (options.number_guard && !guard_allows(all[a], all[b]))) {
          return;
        }
        const double similarity = jaccard(all[a].shingles, all[b].shingles);
        if (similarity >= options.threshold) {
          offer(b - split, a, similarity, false);
        }
      });
  std::erase_if(best, [](const Overlap& overlap) { return overlap.record < 0; });
  return best;
}

}  // namespace graft::data
