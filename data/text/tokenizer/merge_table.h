// Byte-pair merges: which pair of tokens becomes which token, and how early.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer/huge_pages.h"

namespace graft::data {

// A symbol of a word while it is merged.
struct Symbol {
  int32_t id;
  uint32_t length;  // bytes of the text
};

class MergeTable {
 public:
  static constexpr uint32_t kNoRank = ~uint32_t{0};
  // The largest real vocabulary has 514,906 merges.
  static constexpr size_t kMaxMerges = (size_t{1} << 20) - 1;

  void reserve(size_t merges);
  // Appends the merge of the next rank; a pair given twice counts with its last rank. Ids are at
  // most kMaxTokenId and there are at most kMaxMerges merges: the caller checks.
  void add(int32_t left, int32_t right, int32_t whole);
  // Starts to load what add() of this pair will look at.
  void prefetch(int32_t left, int32_t right) const {
    __builtin_prefetch(&slots_[slot_of(key(left, right))]);
  }
  size_t size() const { return results_.size(); }

  // kNoRank = no merge.
  uint32_t rank(int32_t left, int32_t right) const {
    const uint64_t pair = key(left, right);
    for (size_t slot = slot_of(pair);; slot = (slot + 1) & mask_) {
      const uint64_t entry = slots_[slot];
      if (entry >> kRankBits == pair) return static_cast<uint32_t>(entry & kRankMask);
      if (entry == kEmpty) return kNoRank;
    }
  }
  // Calls see(left, right, rank) for every pair, in no order: less than a look-up of each.
  template <class See>
  void for_each(const See& see) const {
    constexpr uint64_t kId = (uint64_t{1} << 22) - 1;
    for (const uint64_t entry : slots_) {
      if (entry == kEmpty) continue;
      const uint64_t pair = entry >> kRankBits;
      see(static_cast<int32_t>(pair >> 22), static_cast<int32_t>(pair & kId),
          static_cast<uint32_t>(entry & kRankMask));
    }
  }
  int32_t result(uint32_t rank) const { return results_[rank]; }

  // Merges symbols in place until no pair is known: the lowest rank first, then the leftmost.
  // O(n log n).
  class Scratch;
  void merge(std::vector<Symbol>& symbols, Scratch& scratch) const;

  class Scratch {
   public:
    std::vector<uint32_t> ranks;
    std::vector<int32_t> previous;
    std::vector<int32_t> next;
  };

 private:
  // A slot is one word: 22 bits for each id and 20 for the rank.
  static constexpr int kRankBits = 20;
  static constexpr uint64_t kRankMask = (uint64_t{1} << kRankBits) - 1;
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 22 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const {
    return static_cast<size_t>(pair * 0x9E3779B97F4A7C15ULL >> shift_);
  }
  void grow(int bits);
  void insert(uint64_t pair, uint32_t rank);
  void merge_short(std::vector<Symbol>& symbols, Scratch& scratch) const;
  void merge_long(std::vector<Symbol>& symbols, Scratch& scratch) const;

  using Slots = std::vector<uint64_t, HugePages<uint64_t>>;
  Slots slots_ = Slots(16, kEmpty);  // a power of two
  std::vector<int32_t> results_;     // by rank
  uint64_t mask_ = 15;
  int shift_ = 60;
};

}  // namespace graft::data
