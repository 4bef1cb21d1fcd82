#include "data/text/tokenizer/bpe.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/tokenizer/bpe_workspace.h"
#include "data/text/tokenizer/pre_tokenizer.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// Bytes 33-126, 161-172 and 174-255 stand for themselves, the others for U+0100 and on, in order.
struct ByteAlphabet {
  std::array<std::string, 256> texts;
  std::array<int16_t, 0x144> values{};  // by code point
  ByteAlphabet() {
    values.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool is_own = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      const char32_t character = is_own ? static_cast<char32_t>(byte) : next++;
      append_utf8(texts[static_cast<size_t>(byte)], character);
      values[character] = static_cast<int16_t>(byte);
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

std::string_view byte_level_text(unsigned char byte) {
  return byte_alphabet().texts[byte];
}

int byte_level_value(char32_t character) {
  const auto& values = byte_alphabet().values;
  return character < values.size() ? values[character] : -1;
}

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

BpeModel::BpeModel(std::shared_ptr<const Vocabulary> vocabulary,
                   MergeTable merges,
                   BpeRules rules,
                   const std::string& name)
    : vocabulary_(std::move(vocabulary)), merges_(std::move(merges)), rules_(rules) {
  lengths_.resize(static_cast<size_t>(vocabulary_->size()));
  if (rules_.byte_level) {
    find_bytes(name);
  } else {
    find_characters(name);
  }
}

void BpeModel::find_bytes(const std::string& name) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const std::string_view text = byte_level_text(static_cast<unsigned char>(byte));
    byte_ids_[byte] = vocabulary_->find(text);
    // C0, C1 and F5 to FF occur in no UTF-8.
    const bool occurs = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
    if (byte_ids_[byte] < 0 && occurs) {
      fail(ExitCode::kData,
           "a byte-level vocabulary needs a token for every byte, \"" + std::string(text) +
               "\" (byte " + std::to_string(byte) + ") is missing: it would vanish from the text",
           name);
    }
  }
  for (size_t id = 0; id < lengths_.size(); ++id) {
    lengths_[id] = static_cast<uint32_t>(utf8_count(vocabulary_->text(static_cast<int32_t>(id))));
  }
  byte_pair_ranks_.assign(size_t{256} * 256, MergeTable::kNoRank);
  // The byte of each id; those of bytes are the lowest ones as a rule.
  const int32_t highest = *std::max_element(byte_ids_.begin(), byte_ids_.end());
  std::vector<int16_t> byte_of(static_cast<size_t>(highest) + 1, -1);
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte_ids_[byte] >= 0) {
      byte_of[static_cast<size_t>(byte_ids_[byte])] = static_cast<int16_t>(byte);
    }
  }
  merges_.for_each([&](int32_t left, int32_t right, uint32_t rank) {
    if (left > highest || right > highest) return;
    const int left_byte = byte_of[static_cast<size_t>(left)];
    const int right_byte = byte_of[static_cast<size_t>(right)];
    if (left_byte < 0 || right_byte < 0) return;
    byte_pair_ranks_[static_cast<size_t>(left_byte << 8 | right_byte)] = rank;
  });
}

void BpeModel::find_characters(const std::string& name) {
  basic_plane_.assign(0x10000, -1);
  for (int32_t id = 0; id < static_cast<int32_t>(lengths_.size()); ++id) {
    const std::string_view token = vocabulary_->text(id);
    size_t marks = 0;
    for (size_t at = 0; (at = token.find(kWordMark, at)) != std::string_view::npos; ++at) ++marks;
    lengths_[static_cast<size_t>(id)] = static_cast<uint32_t>(token.size() - 2 * marks);
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
    byte_ids_[byte] = vocabulary_->find(token);
    if (!rules_.byte_fallback) continue;
    if (byte_ids_[byte] < 0) {
      fail(ExitCode::kData, "byte_fallback needs all 256 byte tokens, " + token + " is missing",
           name);
    }
    lengths_[static_cast<size_t>(byte_ids_[byte])] = 1;
  }
  if (!rules_.byte_fallback && rules_.unk < 0) {
    fail(
        ExitCode::kData,
        "the model has neither byte fallback nor an unknown token: unknown characters would vanish",
        name, "set model.unk_token");
  }
  words_are_exact_ = mark_id_ >= 0;
  std::vector<bool> is_byte(lengths_.size());
  for (const int32_t id : byte_ids_) {
    if (id >= 0) is_byte[static_cast<size_t>(id)] = true;
  }
  for (uint32_t rank = 0; rank < merges_.size(); ++rank) {
    const int32_t id = merges_.result(rank);
    const std::string_view whole = vocabulary_->text(id);
    if (is_byte[static_cast<size_t>(id)]) lengths_are_exact_ = false;
    size_t at = 0;
    while (whole.compare(at, kWordMark.size(), kWordMark) == 0) at += kWordMark.size();
    if (whole.find(kWordMark, at) != std::string_view::npos) words_are_exact_ = false;
  }
  if (mark_id_ < 0) lengths_are_exact_ = false;
}

int32_t BpeModel::character_id(std::string_view character) const {
  if (character.size() < 4) return basic_plane_[utf8_at(character, 0)];
  const auto found = other_planes_.find(utf8_at(character, 0));
  return found == other_planes_.end() ? -1 : found->second;
}

void BpeModel::add_bytes(std::string_view word, Workspace& workspace) const {
  workspace.symbols.clear();
  for (const char c : word) {
    workspace.symbols.push_back({byte_ids_[static_cast<unsigned char>(c)], 1});
  }
}

void BpeModel::add_characters(std::string_view word, Prefix prefix, Workspace& workspace) const {
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

// Words of bytes are short: the ids alone, with the first ranks from a table that stays in cache.
void BpeModel::merge_bytes(std::string_view word, Workspace& workspace) const {
  constexpr size_t kShort = 40;
  if (word.size() > kShort) {
    add_bytes(word, workspace);
    merges_.merge(workspace.symbols, workspace.scratch);
    workspace.ids.clear();
    for (const Symbol& symbol : workspace.symbols) workspace.ids.push_back(symbol.id);
    return;
  }
  std::array<int32_t, kShort> ids;
  std::array<uint32_t, kShort> ranks;
  size_t count = word.size();
  for (size_t at = 0; at < count; ++at) {
    const auto left = static_cast<unsigned char>(word[at]);
    ids[at] = byte_ids_[left];
    ranks[at] = at + 1 < count ? byte_pair_ranks_[static_cast<size_t>(left) << 8 |
                                                  static_cast<unsigned char>(word[at + 1])]
                               : MergeTable::kNoRank;
  }
  for (;;) {
    // Without a branch: which pair is the best is as good as random.
    size_t best = 0;
    uint32_t lowest = ranks[0];
    for (size_t at = 1; at + 1 < count; ++at) {
      const bool is_lower = ranks[at] < lowest;
      lowest = is_lower ? ranks[at] : lowest;
      best = is_lower ? at : best;
    }
    if (lowest == MergeTable::kNoRank) break;
    ids[best] = merges_.result(ranks[best]);
    --count;
    for (size_t at = best + 1; at < count; ++at) {  // a call of memmove would cost more
      ids[at] = ids[at + 1];
      ranks[at] = ranks[at + 1];
    }
    ranks[best] = best + 1 < count ? merges_.rank(ids[best], ids[best + 1]) : MergeTable::kNoRank;
    if (best > 0) ranks[best - 1] = merges_.rank(ids[best - 1], ids[best]);
  }
  workspace.ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

// Leaves the tokens in workspace.ids; for characters with their lengths in workspace.symbols.
void BpeModel::encode_uncached(std::string_view word, Prefix prefix, Workspace& workspace) const {
  if (rules_.byte_level) {
    if (rules_.ignore_merges) {
      workspace.word.clear();
      for (const char c : word) workspace.word += byte_level_text(static_cast<unsigned char>(c));
      const int32_t whole = vocabulary_->find(workspace.word);
      // Tokens that were added later are no words of the model.
      if (whole >= 0 && static_cast<size_t>(whole) < lengths_.size()) {
        workspace.ids.assign(1, whole);
        return;
      }
    }
    merge_bytes(word, workspace);
    return;
  }
  add_characters(word, prefix, workspace);
  merges_.merge(workspace.symbols, workspace.scratch);
  workspace.ids.clear();
  for (const Symbol& symbol : workspace.symbols) workspace.ids.push_back(symbol.id);
}

void BpeModel::encode_word(std::string_view text,
                           size_t begin,
                           size_t end,
                           Workspace& workspace,
                           std::vector<int32_t>& ids,
                           std::vector<ByteRange>* spans) const {
  if (!rules_.byte_level) {
    emit_mark_word(text, begin, end, Prefix::kNo, true, workspace, ids, spans);
    return;
  }
  const std::span<const int32_t> tokens = byte_word_tokens(text, begin, end, workspace);
  if (!spans) {
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    return;
  }
  auto at = static_cast<int64_t>(begin);
  for (const int32_t id : tokens) {
    ids.push_back(id);
    const int64_t next = at + lengths_[static_cast<size_t>(id)];
    spans->push_back({at, next});
    at = next;
  }
}

std::span<const int32_t> BpeModel::byte_word_tokens(std::string_view text,
                                                    size_t begin,
                                                    size_t end,
                                                    Workspace& workspace) const {
  const std::string_view word = text.substr(begin, end - begin);
  if (word.size() > WordCache::kMaxWordBytes) {
    encode_uncached(word, Prefix::kNo, workspace);
    return workspace.ids;
  }
  const WordCache::Key key = WordCache::key_of(word, text.data() + text.size());
  const std::span<const int32_t> known = workspace.cache.find(word, key);
  if (!known.empty()) return known;
  encode_uncached(word, Prefix::kNo, workspace);
  workspace.cache.store(word, key, workspace.ids);
  return workspace.ids;
}

void BpeModel::emit_mark_word(std::string_view text,
                              size_t begin,
                              size_t end,
                              Prefix prefix,
                              bool has_literal_mark,
                              Workspace& workspace,
                              std::vector<int32_t>& ids,
                              std::vector<ByteRange>* spans) const {
  const std::string_view word = text.substr(begin, end - begin);
  auto at = static_cast<int64_t>(begin);
  // The cache knows no lengths: it holds words whose tokens tell their own. A word with the dummy
  // prefix occurs once a part: not worth an entry.
  const bool is_cached = prefix == Prefix::kNo && !has_literal_mark && lengths_are_exact_ &&
                         rules_.byte_fallback && rules_.space_is_mark &&
                         word.size() <= WordCache::kMaxWordBytes;
  if (is_cached) {
    const WordCache::Key key = WordCache::key_of(word, text.data() + text.size());
    std::span<const int32_t> tokens = workspace.cache.find(word, key);
    if (tokens.empty()) {
      encode_uncached(word, prefix, workspace);
      workspace.cache.store(word, key, workspace.ids);
      tokens = workspace.ids;
    }
    for (const int32_t id : tokens) {
      ids.push_back(id);
      if (!spans) continue;
      const int64_t next = at + lengths_[static_cast<size_t>(id)];
      spans->push_back({at, next});
      at = next;
    }
    return;
  }
  encode_uncached(word, prefix, workspace);
  for (const Symbol& symbol : workspace.symbols) {
    ids.push_back(symbol.id);
    if (spans) spans->push_back({at, at + symbol.length});
    at += symbol.length;
  }
}

void BpeModel::encode_part(std::string_view text,
                           ByteRange part,
                           Prefix prefix,
                           Workspace& workspace,
                           std::vector<int32_t>& ids,
                           std::vector<ByteRange>* spans) const {
  if (part.begin == part.end && prefix == Prefix::kNo) return;
  auto begin = static_cast<size_t>(part.begin);
  const auto end = static_cast<size_t>(part.end);
  if (!words_are_exact_ && !rules_.split_at_each_mark) {
    emit_mark_word(text, begin, end, prefix, true, workspace, ids, spans);
    return;
  }
  const auto mark_length = [&](size_t at) -> size_t {
    if (text[at] == ' ') return rules_.space_is_mark ? 1 : 0;
    return at + 3 <= end && text.compare(at, 3, kWordMark) == 0 ? 3 : 0;
  };
  size_t at = begin;
  bool in_run = true;  // still in the run of marks that opens the word
  bool has_mark = prefix == Prefix::kYes;
  bool has_literal_mark = false;
  while (at < end) {
    const char byte = text[at];
    const size_t mark = byte == ' ' || byte == kWordMark[0] ? mark_length(at) : 0;
    const bool cut = mark > 0 && (!in_run || (rules_.split_at_each_mark && has_mark));
    if (cut) {
      emit_mark_word(text, begin, at, prefix, has_literal_mark, workspace, ids, spans);
      prefix = Prefix::kNo;
      has_literal_mark = false;
      begin = at;
    }
    in_run = mark > 0;
    has_mark = has_mark || mark > 0;
    has_literal_mark = has_literal_mark || mark == 3;
    at += mark > 0 ? mark : 1;
  }
  emit_mark_word(text, begin, end, prefix, has_literal_mark, workspace, ids, spans);
}

}  // namespace graft::data
