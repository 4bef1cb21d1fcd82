// What a thread needs while it encodes; internal to BpeModel.
#pragma once

#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "data/text/tokenizer/bpe.h"
#include "data/text/tokenizer/word_cache.h"

namespace graft::data {

// In front of the word cache: the short words that are one token, nine of ten in English text. It
// stays in the second-level cache of the processor, which the word cache is too large for.
class ShortWords {
 public:
  static constexpr size_t kMaxBytes = 8;

  // The word as a number; its bytes and seven more must be readable. 0 = it cannot be told apart
  // (a last byte of zero).
  static uint64_t key_of(const char* word, size_t size) {
    uint64_t key;
    std::memcpy(&key, word, 8);
    if (size < 8) key &= (uint64_t{1} << (8 * size)) - 1;
    return word[size - 1] == '\0' ? 0 : key;
  }
  // -1 = unknown.
  int32_t find(uint64_t key) const {
    const Slot& slot = slots_[place_of(key)];
    return slot.key == key ? slot.id : -1;
  }
  void store(uint64_t key, int32_t id) { slots_[place_of(key)] = {key, id}; }

 private:
  static_assert(std::endian::native == std::endian::little);
  struct Slot {
    uint64_t key = 0;
    int32_t id = -1;
  };
  // 128 KiB; 90 % of the words of instructions are among the 4,000 most frequent ones.
  static constexpr int kBits = 13;
  static size_t place_of(uint64_t key) {
    return static_cast<size_t>(key * 0x9E3779B97F4A7C15ULL >> (64 - kBits));
  }
  std::vector<Slot> slots_ = std::vector<Slot>(size_t{1} << kBits);
};

class BpeModel::Workspace {
 public:
  ShortWords short_words;
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<int32_t> ids;
  std::string word;  // in the byte alphabet
  MergeTable::Scratch scratch;
};

}  // namespace graft::data
