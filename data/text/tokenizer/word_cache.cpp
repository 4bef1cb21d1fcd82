#include "data/text/tokenizer/word_cache.h"

#include <algorithm>

namespace graft::data {

void WordCache::store(std::string_view word, const Key& key, std::span<const int32_t> ids) {
  if (ids.empty()) return;
  if (words_.size() + ids_.size() * sizeof(int32_t) > kMaxArenaBytes) {
    std::fill(slots_.begin(), slots_.end(), Slot{});
    words_.clear();
    ids_.clear();
  }
  for (size_t probe = 0; probe < kProbes; ++probe) {
    Slot& slot = slots_[(key.hash + probe) & kMask];
    if (slot.count != 0 && probe + 1 < kProbes) continue;
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
    return;
  }
}

}  // namespace graft::data
