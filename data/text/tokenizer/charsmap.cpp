#include "data/text/tokenizer/charsmap.h"

#include <cstring>

#include <utf8proc.h>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// Fields of a darts-clone unit.
bool has_leaf(uint32_t unit) {
  return (unit >> 8 & 1U) != 0;
}
uint32_t value(uint32_t unit) {
  return unit & 0x7FFFFFFFU;
}
uint32_t label(uint32_t unit) {
  return unit & 0x800000FFU;
}
uint32_t offset(uint32_t unit) {
  return (unit >> 10) << ((unit & 0x200U) >> 6);
}

}  // namespace

CharacterMap::CharacterMap(std::string blob, const std::string& where) {
  uint32_t trie_bytes = 0;
  if (blob.size() >= 4) std::memcpy(&trie_bytes, blob.data(), 4);
  if (blob.size() < 8 || trie_bytes < 4 || trie_bytes > blob.size() - 4) {
    fail(ExitCode::kData,
         "a character map of " + std::to_string(blob.size()) + " bytes cannot hold a trie of " +
             std::to_string(trie_bytes),
         where);
  }
  units_.resize(trie_bytes / 4);
  std::memcpy(units_.data(), blob.data() + 4, units_.size() * 4);
  texts_ = blob.substr(4 + units_.size() * 4);
  if (!is_valid_utf8(texts_)) fail(ExitCode::kData, "the character map is not UTF-8", where);
}

template <class Found>
void CharacterMap::walk(std::string_view text, const Found& found) const {
  size_t node = offset(units_[0]);
  for (size_t at = 0; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte == 0) return;
    node ^= byte;
    if (node >= units_.size() || label(units_[node]) != byte) return;
    const bool is_leaf = has_leaf(units_[node]);
    node ^= offset(units_[node]);
    if (!is_leaf) continue;
    if (node >= units_.size()) return;
    const size_t begin = value(units_[node]);
    if (begin > texts_.size() || (begin < texts_.size() && is_utf8_continuation(texts_[begin]))) {
      return;
    }
    const size_t end = std::min(texts_.find('\0', begin), texts_.size());
    if (!found(at + 1, std::string_view(texts_).substr(begin, end - begin))) return;
  }
}

bool CharacterMap::find(std::string_view key, std::string_view& replacement) const {
  bool is_known = false;
  walk(key, [&](size_t, std::string_view text) {
    replacement = text;
    is_known = true;
    return false;
  });
  return is_known;
}

size_t CharacterMap::longest_prefix(std::string_view text, std::string_view& replacement) const {
  size_t longest = 0;
  walk(text, [&](size_t size, std::string_view known) {
    // A prefix that ends inside a character is none.
    if (size < text.size() && is_utf8_continuation(text[size])) return true;
    longest = size;
    replacement = known;
    return true;
  });
  return longest;
}

CharacterMap::Mapped CharacterMap::map(std::string_view text) const {
  Mapped result;
  std::vector<NormalizedCharacter>& out = result.characters;
  const auto replace = [&](std::string_view old_text, std::string_view new_text) {
    result.changed = true;
    const auto grown =
        static_cast<int64_t>(utf8_count(new_text)) - static_cast<int64_t>(utf8_count(old_text));
    for (size_t at = 0; at < new_text.size(); at += utf8_length(new_text[at])) {
      out.push_back({utf8_at(new_text, at), 0});
    }
    for (int64_t i = 0; i < grown; ++i) out[out.size() - 1 - static_cast<size_t>(i)].change = 1;
    if (grown >= 0) return;
    if (out.empty()) {
      result.removed += static_cast<size_t>(-grown);
    } else {
      out.back().change += grown;
    }
  };
  std::string_view replacement;
  const auto add = [&](std::string_view grapheme) {
    if (grapheme.size() < 6 && find(grapheme, replacement)) {
      replace(grapheme, replacement);
      return;
    }
    for (size_t at = 0; at < grapheme.size(); at += utf8_length(grapheme[at])) {
      const std::string_view character = grapheme.substr(at, utf8_length(grapheme[at]));
      if (find(character, replacement)) {
        replace(character, replacement);
      } else {
        out.push_back({utf8_at(character, 0), 0});
      }
    }
  };
  utf8proc_int32_t state = 0;
  size_t begin = 0;
  char32_t previous = 0;
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const char32_t next = utf8_at(text, at);
    if (at > begin &&
        utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(previous),
                                         static_cast<utf8proc_int32_t>(next), &state)) {
      add(text.substr(begin, at - begin));
      begin = at;
    }
    previous = next;
  }
  if (begin < text.size()) add(text.substr(begin));
  return result;
}

}  // namespace graft::data
