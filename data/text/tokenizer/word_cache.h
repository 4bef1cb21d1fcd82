// What each word became, so that it is merged once: a table without allocation per word, that grows
// up to a bound.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer/huge_pages.h"
#include "data/text/tokenizer/vocabulary.h"

namespace graft::data {

class WordCache {
 public:
  // Longer words are rare and not worth their place.
  static constexpr size_t kMaxWordBytes = 96;

  // Words of up to 15 bytes are their own key; longer ones are compared with a copy.
  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;
    uint64_t hash = 0;
  };
  // `end` bounds what may be read at word.data().
  static Key key_of(std::string_view word, const char* end) {
    Key key;
    if (word.size() > kInline) {
      key.low = hash_bytes(word);
      key.high = kLongMark | word.size();
    } else {
      if (end - word.data() >= 16) {
        std::memcpy(&key.low, word.data(), 8);
        std::memcpy(&key.high, word.data() + 8, 8);
        const size_t bits = word.size() * 8;
        key.low &= bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
        key.high &= bits <= 64 ? 0 : (uint64_t{1} << (bits - 64)) - 1;
      } else {
        char bytes[16] = {};
        std::memcpy(bytes, word.data(), word.size());
        std::memcpy(&key.low, bytes, 8);
        std::memcpy(&key.high, bytes + 8, 8);
      }
      key.high |= static_cast<uint64_t>(word.size()) << 56;
    }
    key.hash = hash_of(key.low, key.high);
    return key;
  }

  // The tokens of a known word; none = unknown.
  std::span<const int32_t> find(std::string_view word, const Key& key) const {
    for (size_t probe = 0; probe < kProbes; ++probe) {
      const Slot& slot = slots_[(key.hash + probe) & mask_];
      if (slot.count == 0) return {};
      if (slot.low != key.low || slot.high != key.high) continue;
      if (word.size() > kInline &&
          std::memcmp(words_.data() + slot.word, word.data(), word.size()) != 0) {
        continue;
      }
      const int32_t* ids = slot.count <= kInlineIds ? slot.ids : ids_.data() + slot.ids[0];
      return {ids, slot.count};
    }
    return {};
  }

  void store(std::string_view word, const Key& key, std::span<const int32_t> ids);

 private:
  static constexpr size_t kInline = 15;
  static constexpr size_t kInlineIds = 2;
  static constexpr size_t kProbes = 4;
  // 128 KiB at first and 4 MiB at most: twice the distinct words of 10 MB of instructions.
  static constexpr size_t kFirstSlots = size_t{1} << 12;
  static constexpr size_t kMaxSlots = size_t{1} << 17;
  static constexpr uint64_t kLongMark = uint64_t{0x80} << 56;
  static constexpr size_t kMaxArenaBytes = size_t{8} << 20;

  struct Slot {
    uint64_t low;
    uint64_t high;
    uint32_t word;   // place of a long word in words_
    uint32_t count;  // 0 = empty
    int32_t ids[kInlineIds];
  };
  static uint64_t hash_of(uint64_t low, uint64_t high) {
    const uint64_t mixed = (low ^ (high * 0xBF58476D1CE4E5B9ULL)) * 0x9E3779B97F4A7C15ULL;
    return mixed ^ mixed >> 32;
  }
  // The slot for a word that is not in the table; a taken one is given up.
  Slot& free_slot(uint64_t hash);
  void grow();

  using Slots = std::vector<Slot, HugePages<Slot>>;
  Slots slots_ = Slots(kFirstSlots);
  uint64_t mask_ = kFirstSlots - 1;
  size_t used_ = 0;
  std::string words_;
  std::vector<int32_t> ids_;
};

}  // namespace graft::data
