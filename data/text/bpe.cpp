#include "data/text/bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>
#include <tuple>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

struct Symbol {
  int32_t id;
  uint32_t length;  // bytes of the text
};

// A scan for the best pair beats a heap up to here (measured on English words: 8 to 64 are equal).
constexpr size_t kShortWord = 32;
// Longer words are rare and not worth their place in the cache.
constexpr size_t kMaxCachedBytes = 64;
constexpr size_t kCacheSlots = size_t{1} << 16;
constexpr size_t kCacheArenaBytes = size_t{4} << 20;

uint64_t hash_word(std::string_view word) {
  // Multiply-xorshift over 8 bytes at a time; the cache compares the bytes as well.
  uint64_t hash = 0x9E3779B97F4A7C15ULL ^ word.size();
  size_t at = 0;
  for (; at + 8 <= word.size(); at += 8) {
    uint64_t block;
    std::memcpy(&block, word.data() + at, 8);
    hash = (hash ^ block) * 0xBF58476D1CE4E5B9ULL;
    hash ^= hash >> 32;
  }
  uint64_t tail = 0;
  std::memcpy(&tail, word.data() + at, word.size() - at);
  hash = (hash ^ tail) * 0x94D049BB133111EBULL;
  return hash ^ hash >> 29;
}

}  // namespace

class BpeModel::Workspace {
 public:
  Workspace() : slots_(kCacheSlots) {}

  std::vector<Symbol> symbols;
  std::vector<uint32_t> ranks;    // merge_short: rank of the pair that starts at each symbol
  std::vector<int32_t> results;   // and the id it becomes
  std::vector<int32_t> previous;  // merge_long: linked list over symbols
  std::vector<int32_t> next;

  // The symbols of a cached word, or {nullptr, 0}.
  std::pair<const Symbol*, size_t> find(std::string_view word, uint64_t hash) const {
    for (size_t probe = 0; probe < kProbes; ++probe) {
      const Slot& slot = slots_[(hash + probe) & (kCacheSlots - 1)];
      if (slot.count == 0) return {nullptr, 0};
      if (slot.hash == hash && slot.key_length == word.size() &&
          std::memcmp(keys_.data() + slot.key, word.data(), word.size()) == 0) {
        return {values_.data() + slot.value, slot.count};
      }
    }
    return {nullptr, 0};
  }

  void store(std::string_view word, uint64_t hash) {
    if (keys_.size() + values_.size() * sizeof(Symbol) > kCacheArenaBytes) {
      std::fill(slots_.begin(), slots_.end(), Slot{});
      keys_.clear();
      values_.clear();
    }
    for (size_t probe = 0; probe < kProbes; ++probe) {
      Slot& slot = slots_[(hash + probe) & (kCacheSlots - 1)];
      if (slot.count != 0 && probe + 1 < kProbes) continue;
      slot = {hash, static_cast<uint32_t>(keys_.size()), static_cast<uint32_t>(values_.size()),
              static_cast<uint16_t>(word.size()), static_cast<uint16_t>(symbols.size())};
      keys_.append(word);
      values_.insert(values_.end(), symbols.begin(), symbols.end());
      return;
    }
  }

 private:
  static constexpr size_t kProbes = 4;
  struct Slot {
    uint64_t hash = 0;
    uint32_t key = 0;
    uint32_t value = 0;
    uint16_t key_length = 0;
    uint16_t count = 0;  // 0 = empty
  };
  std::vector<Slot> slots_;
  std::string keys_;
  std::vector<Symbol> values_;
};

BpeModel::Lease::Lease(const BpeModel& model) : model_(model) {
  {
    const std::lock_guard lock(model_.pool_mutex_);
    if (!model_.pool_.empty()) {
      workspace_ = std::move(model_.pool_.back());
      model_.pool_.pop_back();
    }
  }
  if (!workspace_) workspace_ = std::make_unique<Workspace>();
}

BpeModel::Lease::~Lease() {
  const std::lock_guard lock(model_.pool_mutex_);
  model_.pool_.push_back(std::move(workspace_));
}

BpeModel::~BpeModel() = default;

BpeModel::BpeModel(const std::unordered_map<std::string, int32_t>& vocabulary,
                   const std::vector<std::pair<std::string, std::string>>& merges,
                   BpeRules rules,
                   const std::string& name)
    : rules_(rules) {
  basic_plane_.assign(0x10000, -1);
  for (const auto& [token, id] : vocabulary) {
    if (token.empty() || utf8_length(token[0]) != token.size()) continue;
    const char32_t character = utf8_at(token, 0);
    if (character < 0x10000) {
      basic_plane_[character] = id;
    } else {
      other_planes_[character] = id;
    }
  }
  mark_id_ = basic_plane_[0x2581];
  for (size_t byte = 0; byte < 256; ++byte) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    const std::string token = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15U], '>'};
    const auto found = vocabulary.find(token);
    byte_ids_[byte] = found == vocabulary.end() ? -1 : found->second;
    if (rules_.byte_fallback && byte_ids_[byte] < 0) {
      fail(ExitCode::kData, "byte_fallback needs all 256 byte tokens, " + token + " is missing",
           name);
    }
  }
  if (!rules_.byte_fallback && rules_.unk < 0) {
    fail(
        ExitCode::kData,
        "the model has neither byte fallback nor an unknown token: unknown characters would vanish",
        name, "set model.unk_token");
  }

  size_t capacity = 16;
  while (capacity < merges.size() * 2 + 1) capacity *= 2;
  merges_.resize(capacity);
  merge_mask_ = capacity - 1;
  words_are_exact_ = mark_id_ >= 0;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const std::string whole = left + right;
    const auto left_id = vocabulary.find(left);
    const auto right_id = vocabulary.find(right);
    const auto whole_id = vocabulary.find(whole);
    if (left.empty() || right.empty() || left_id == vocabulary.end() ||
        right_id == vocabulary.end() || whole_id == vocabulary.end()) {
      fail(ExitCode::kData,
           "merge " + std::to_string(rank) + " (\"" + left + "\", \"" + right +
               "\") has a part or a result that is not in the vocabulary",
           name);
    }
    const uint64_t pair = static_cast<uint64_t>(static_cast<uint32_t>(left_id->second)) << 32 |
                          static_cast<uint32_t>(right_id->second);
    size_t slot = (pair * 0x9E3779B97F4A7C15ULL >> 32) & merge_mask_;
    while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) {
      slot = (slot + 1) & merge_mask_;
    }
    merges_[slot] = {pair, static_cast<uint32_t>(rank), whole_id->second};
    size_t at = 0;
    while (whole.compare(at, kWordMark.size(), kWordMark) == 0) at += kWordMark.size();
    if (whole.find(kWordMark, at) != std::string::npos) words_are_exact_ = false;
  }
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  size_t slot = (pair * 0x9E3779B97F4A7C15ULL >> 32) & merge_mask_;
  while (merges_[slot].pair != pair) {
    if (merges_[slot].pair == kNoPair) return nullptr;
    slot = (slot + 1) & merge_mask_;
  }
  return &merges_[slot];
}

int32_t BpeModel::character_id(std::string_view character) const {
  if (character.size() < 4) return basic_plane_[utf8_at(character, 0)];
  const auto found = other_planes_.find(utf8_at(character, 0));
  return found == other_planes_.end() ? -1 : found->second;
}

void BpeModel::add_symbols(std::string_view word, Prefix prefix, Workspace& workspace) const {
  std::vector<Symbol>& symbols = workspace.symbols;
  symbols.clear();
  bool in_unknown = false;  // the last symbol is an unknown that the next one may join
  const auto add_unknown = [&](std::string_view bytes, uint32_t length) {
    if (rules_.byte_fallback) {
      for (size_t at = 0; at < bytes.size(); ++at) {
        // A mark that stands for a space (or for nothing) has fewer text bytes than byte tokens.
        const uint32_t own = length == bytes.size() ? 1 : at == 0 ? length : 0;
        symbols.push_back({byte_ids_[static_cast<unsigned char>(bytes[at])], own});
      }
      in_unknown = false;
    } else if (in_unknown && rules_.fuse_unk) {
      symbols.back().length += length;
    } else {
      symbols.push_back({rules_.unk, length});
      in_unknown = true;
    }
  };
  const auto add_mark = [&](uint32_t length) {
    if (mark_id_ < 0) {
      add_unknown(kWordMark, length);
      return;
    }
    symbols.push_back({mark_id_, length});
    in_unknown = false;
  };
  if (prefix == Prefix::kYes) add_mark(0);
  for (size_t at = 0; at < word.size();) {
    if (word[at] == ' ' && rules_.space_is_mark) {
      add_mark(1);
      ++at;
      continue;
    }
    const std::string_view character = word.substr(at, utf8_length(word[at]));
    const int32_t id = character_id(character);
    if (id >= 0) {
      symbols.push_back({id, static_cast<uint32_t>(character.size())});
      in_unknown = false;
    } else {
      add_unknown(character, static_cast<uint32_t>(character.size()));
    }
    at += character.size();
  }
}

void BpeModel::merge_short(Workspace& workspace) const {
  std::vector<Symbol>& symbols = workspace.symbols;
  size_t count = symbols.size();
  workspace.ranks.assign(count, kNoRank);
  workspace.results.resize(count);
  uint32_t* ranks = workspace.ranks.data();
  int32_t* results = workspace.results.data();
  const auto look_up = [&](size_t at) {
    const Merge* merge = at + 1 < count ? find_merge(symbols[at].id, symbols[at + 1].id) : nullptr;
    ranks[at] = merge ? merge->rank : kNoRank;
    if (merge) results[at] = merge->id;
  };
  for (size_t at = 0; at + 1 < count; ++at) look_up(at);
  for (;;) {
    size_t best = 0;
    for (size_t at = 1; at + 1 < count; ++at) {
      if (ranks[at] < ranks[best]) best = at;
    }
    if (count < 2 || ranks[best] == kNoRank) break;
    symbols[best] = {results[best], symbols[best].length + symbols[best + 1].length};
    for (size_t at = best + 1; at + 1 < count; ++at) {
      symbols[at] = symbols[at + 1];
      ranks[at] = ranks[at + 1];
      results[at] = results[at + 1];
    }
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols.resize(count);
}

void BpeModel::merge_long(Workspace& workspace) const {
  struct Candidate {
    uint32_t rank;
    int32_t at;
    int32_t id;
    bool operator<(const Candidate& other) const {  // the queue gives the greatest first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  std::vector<Symbol>& symbols = workspace.symbols;
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t>& previous = workspace.previous;
  std::vector<int32_t>& next = workspace.next;
  previous.resize(symbols.size());
  next.resize(symbols.size());
  std::priority_queue<Candidate> queue;
  const auto look_up = [&](int32_t at) {
    const int32_t right = next[static_cast<size_t>(at)];
    if (right >= count) return;
    const Merge* merge =
        find_merge(symbols[static_cast<size_t>(at)].id, symbols[static_cast<size_t>(right)].id);
    if (merge) queue.push({merge->rank, at, merge->id});
  };
  for (int32_t at = 0; at < count; ++at) {
    previous[static_cast<size_t>(at)] = at - 1;
    next[static_cast<size_t>(at)] = at + 1;
  }
  for (int32_t at = 0; at + 1 < count; ++at) look_up(at);
  constexpr int32_t kGone = -1;  // id of a symbol that was merged into its left neighbour
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    const int32_t right_at = next[static_cast<size_t>(best.at)];
    if (left.id == kGone || right_at >= count) continue;
    Symbol& right = symbols[static_cast<size_t>(right_at)];
    const Merge* merge = find_merge(left.id, right.id);
    if (!merge || merge->id != best.id) continue;  // the pair has changed since it was queued
    left = {best.id, left.length + right.length};
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

void BpeModel::merge_word(std::string_view word, Prefix prefix, Workspace& workspace) const {
  add_symbols(word, prefix, workspace);
  if (workspace.symbols.size() <= kShortWord) {
    merge_short(workspace);
  } else {
    merge_long(workspace);
  }
}

void BpeModel::emit_word(std::string_view text,
                         ByteRange word,
                         Prefix prefix,
                         Workspace& workspace,
                         std::vector<int32_t>& ids,
                         std::vector<ByteRange>* spans) const {
  const std::string_view bytes =
      text.substr(static_cast<size_t>(word.begin), static_cast<size_t>(word.end - word.begin));
  const Symbol* symbols = nullptr;
  size_t count = 0;
  // A word with the dummy prefix occurs once a part: not worth a cache entry of its own.
  if (prefix == Prefix::kNo && bytes.size() <= kMaxCachedBytes) {
    const uint64_t hash = hash_word(bytes);
    std::tie(symbols, count) = workspace.find(bytes, hash);
    if (!symbols) {
      merge_word(bytes, prefix, workspace);
      workspace.store(bytes, hash);
    }
  } else {
    merge_word(bytes, prefix, workspace);
  }
  if (!symbols) {
    symbols = workspace.symbols.data();
    count = workspace.symbols.size();
  }
  int64_t at = word.begin;
  for (size_t i = 0; i < count; ++i) {
    ids.push_back(symbols[i].id);
    if (spans) spans->push_back({at, at + symbols[i].length});
    at += symbols[i].length;
  }
}

void BpeModel::encode(std::string_view text,
                      ByteRange part,
                      Prefix prefix,
                      Workspace& workspace,
                      std::vector<int32_t>& ids,
                      std::vector<ByteRange>* spans) const {
  if (part.begin == part.end && prefix == Prefix::kNo) return;
  if (!words_are_exact_ && !rules_.split_at_each_mark) {
    emit_word(text, part, prefix, workspace, ids, spans);
    return;
  }
  const auto end = static_cast<size_t>(part.end);
  const auto mark_length = [&](size_t at) -> size_t {
    if (text[at] == ' ') return rules_.space_is_mark ? 1 : 0;
    return text[at] == kWordMark[0] && at + 3 <= end && text.compare(at, 3, kWordMark) == 0 ? 3 : 0;
  };
  auto begin = static_cast<size_t>(part.begin);
  size_t at = begin;
  bool in_run = true;  // still in the run of marks that opens the word
  bool has_mark = prefix == Prefix::kYes;
  while (at < end) {
    const char byte = text[at];
    const size_t mark = byte == ' ' || byte == kWordMark[0] ? mark_length(at) : 0;
    const bool cut = mark > 0 && (!in_run || (rules_.split_at_each_mark && has_mark));
    if (cut) {
      emit_word(text, {static_cast<int64_t>(begin), static_cast<int64_t>(at)}, prefix, workspace,
                ids, spans);
      prefix = Prefix::kNo;
      begin = at;
    }
    in_run = mark > 0;
    has_mark = has_mark || mark > 0;
    at += mark > 0 ? mark : 1;
  }
  emit_word(text, {static_cast<int64_t>(begin), static_cast<int64_t>(end)}, prefix, workspace, ids,
            spans);
}

}  // namespace graft::data
