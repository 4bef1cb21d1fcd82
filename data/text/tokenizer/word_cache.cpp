#include "data/text/tokenizer/word_cache.h"

#include <algorithm>

namespace graft::data {

WordCache::Slot& WordCache::free_slot(uint64_t hash) {
  for (size_t probe = 0; probe + 1 < kProbes; ++probe) {
    Slot& slot = slots_[(hash + probe) & mask_];
    if (slot.count == 0) return slot;
  }
  return slots_[(hash + kProbes - 1) & mask_];
}

void WordCache::grow() {
  const Slots old = std::move(slots_);
  slots_.assign(old.size() * 2, Slot{});
  mask_ = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.count != 0) free_slot(hash_of(slot.low, slot.high)) = slot;
  }
}

void WordCache::store(std::string_view word, const Key& key, std::span<const int32_t> ids) {
  if (ids.empty()) return;
  if (words_.size() + ids_.size() * sizeof(int32_t) > kMaxArenaBytes) {
    std::fill(slots_.begin(), slots_.end(), Slot{});
    words_.clear();
    ids_.clear();
    used_ = 0;
  }
  if (++used_ * 2 > slots_.size() && slots_.size() < kMaxSlots) grow();
  Slot& slot = free_slot(key.hash);
  slot = {key.low,
          key.high,
          static_cast<uint32_t>(words_.size()),
          static_cast<uint32_t>(ids.size()),
          {}};
  if (word.size() > kInline) words_.append(word);
  if (ids.size() <= kInlineIds) {
    std::copy(ids.begin(), ids.end(), slot.ids);
  } else {
    slot.ids[0] = static_cast<int32_t>(ids_.size());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
}

}  // namespace graft::data
