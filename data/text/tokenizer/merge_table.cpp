#include "data/text/tokenizer/merge_table.h"

#include <algorithm>
#include <functional>
#include <queue>

namespace graft::data {
namespace {

// A scan for the best pair beats a heap up to here (measured on English words: 8 to 64 are equal).
constexpr size_t kShortWord = 32;

}  // namespace

void MergeTable::grow(int bits) {
  const Slots old = std::move(slots_);
  slots_.assign(size_t{1} << bits, kEmpty);
  mask_ = slots_.size() - 1;
  shift_ = 64 - bits;
  for (const uint64_t entry : old) {
    if (entry != kEmpty) insert(entry >> kRankBits, static_cast<uint32_t>(entry & kRankMask));
  }
}

void MergeTable::reserve(size_t merges) {
  int bits = 4;
  // At most 70 % full.
  while ((size_t{7} << bits) < merges * 10) ++bits;
  results_.reserve(merges);
  if ((size_t{1} << bits) > slots_.size()) grow(bits);
}

void MergeTable::insert(uint64_t pair, uint32_t rank) {
  size_t slot = slot_of(pair);
  while (slots_[slot] != kEmpty && slots_[slot] >> kRankBits != pair) slot = (slot + 1) & mask_;
  slots_[slot] = pair << kRankBits | rank;
}

void MergeTable::add(int32_t left, int32_t right, int32_t whole) {
  if (results_.size() * 10 >= slots_.size() * 7) grow(64 - shift_ + 1);
  insert(key(left, right), static_cast<uint32_t>(results_.size()));
  results_.push_back(whole);
}

void MergeTable::merge(std::vector<Symbol>& symbols, Scratch& scratch) const {
  if (symbols.size() <= kShortWord) {
    merge_short(symbols, scratch);
  } else {
    merge_long(symbols, scratch);
  }
}

void MergeTable::merge_short(std::vector<Symbol>& symbols, Scratch& scratch) const {
  size_t count = symbols.size();
  if (count < 2) return;
  scratch.ranks.resize(kShortWord);
  uint32_t* ranks = scratch.ranks.data();
  const auto look_up = [&](size_t at) {
    ranks[at] = at + 1 < count ? rank(symbols[at].id, symbols[at + 1].id) : kNoRank;
  };
  for (size_t at = 0; at < count; ++at) look_up(at);
  for (;;) {
    size_t best = 0;
    for (size_t at = 1; at + 1 < count; ++at) {
      if (ranks[at] < ranks[best]) best = at;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = {result(ranks[best]), symbols[best].length + symbols[best + 1].length};
    for (size_t at = best + 1; at + 1 < count; ++at) {
      symbols[at] = symbols[at + 1];
      ranks[at] = ranks[at + 1];
    }
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols.resize(count);
}

void MergeTable::merge_long(std::vector<Symbol>& symbols, Scratch& scratch) const {
  struct Candidate {
    uint32_t rank;
    int32_t at;
    bool operator<(const Candidate& other) const {  // the queue gives the greatest first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t>& previous = scratch.previous;
  std::vector<int32_t>& next = scratch.next;
  previous.resize(symbols.size());
  next.resize(symbols.size());
  std::vector<Candidate> candidates;
  candidates.reserve(symbols.size());
  for (int32_t at = 0; at < count; ++at) {
    const auto index = static_cast<size_t>(at);
    previous[index] = at - 1;
    next[index] = at + 1;
    if (at + 1 == count) break;
    const uint32_t found = rank(symbols[index].id, symbols[index + 1].id);
    if (found != kNoRank) candidates.push_back({found, at});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(candidates));
  const auto look_up = [&](int32_t at) {
    const int32_t right = next[static_cast<size_t>(at)];
    if (right >= count) return;
    const uint32_t found =
        rank(symbols[static_cast<size_t>(at)].id, symbols[static_cast<size_t>(right)].id);
    if (found != kNoRank) queue.push({found, at});
  };
  constexpr int32_t kGone = -1;  // id of a symbol that was merged into its left neighbour
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    const int32_t right_at = next[static_cast<size_t>(best.at)];
    if (left.id == kGone || right_at >= count) continue;
    Symbol& right = symbols[static_cast<size_t>(right_at)];
    if (rank(left.id, right.id) != best.rank) continue;  // the pair changed since it was queued
    left = {result(best.rank), left.length + right.length};
    right.id = kGone;
    const int32_t after = next[static_cast<size_t>(right_at)];
    next[static_cast<size_t>(best.at)] = after;
    if (after < count) previous[static_cast<size_t>(after)] = best.at;
    const int32_t before = previous[static_cast<size_t>(best.at)];
    if (before >= 0) look_up(before);
    look_up(best.at);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.id == kGone; });
}

}  // namespace graft::data
