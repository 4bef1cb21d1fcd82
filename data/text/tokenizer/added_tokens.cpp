#include "data/text/tokenizer/added_tokens.h"

#include <cstring>

#include "data/text/tokenizer/unicode.h"
#include "data/text/utf8.h"

namespace graft::data {

void TokenFinder::add(std::string_view pattern, int32_t value) {
  if (pattern.empty()) return;
  bool& is_known = first_bytes_[static_cast<unsigned char>(pattern[0])];
  if (!is_known) first_byte_list_ += pattern[0];
  is_known = true;
  size_t node = 0;
  for (const char byte : pattern) {
    const auto [child, is_new] =
        nodes_[node].children.try_emplace(byte, static_cast<int32_t>(nodes_.size()));
    node = static_cast<size_t>(child->second);
    if (is_new) nodes_.emplace_back();
  }
  nodes_[node].value = value;
}

size_t TokenFinder::candidate(std::string_view text, size_t from) const {
  if (first_byte_list_.size() == 1) {
    const void* found = from < text.size() ? std::memchr(text.data() + from, first_byte_list_[0],
                                                         text.size() - from)
                                           : nullptr;
    return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.size();
  }
  while (from < text.size() && !first_bytes_[static_cast<unsigned char>(text[from])]) ++from;
  return from;
}

TokenFinder::Match TokenFinder::find(std::string_view text, size_t from) const {
  for (size_t begin = candidate(text, from); begin < text.size();
       begin = candidate(text, begin + 1)) {
    Match best;
    size_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto child = nodes_[node].children.find(text[at]);
      if (child == nodes_[node].children.end()) break;
      node = static_cast<size_t>(child->second);
      if (nodes_[node].value >= 0) best = {begin, at + 1, nodes_[node].value};
    }
    if (best.value >= 0) return best;
  }
  return {text.size(), text.size(), -1};
}

namespace {

size_t last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && is_utf8_continuation(text[begin])) --begin;
  return begin;
}

bool has_flag(std::string_view text, size_t at, uint8_t flag) {
  return (character_flags(utf8_at(text, at)) & flag) != 0;
}

}  // namespace

bool begins_with_word(std::string_view text) {
  return !text.empty() && has_flag(text, 0, kWordFlag);
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && has_flag(text, last_character(text), kWordFlag);
}

size_t leading_blank(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && has_flag(text, at, kSpaceFlag)) at += utf8_length(text[at]);
  return at;
}

size_t end_without_blank(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t begin = last_character(text.substr(0, end));
    if (!has_flag(text, begin, kSpaceFlag)) break;
    end = begin;
  }
  return end;
}

}  // namespace graft::data
