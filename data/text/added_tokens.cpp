#include "data/text/added_tokens.h"

namespace graft::data {

void TokenFinder::add(std::string_view pattern, int32_t value) {
  if (pattern.empty()) return;
  first_bytes_[static_cast<unsigned char>(pattern[0])] = true;
  size_t node = 0;
  for (const char byte : pattern) {
    const auto [child, is_new] =
        nodes_[node].children.try_emplace(byte, static_cast<int32_t>(nodes_.size()));
    node = static_cast<size_t>(child->second);
    if (is_new) nodes_.emplace_back();
  }
  nodes_[node].value = value;
}

TokenFinder::Match TokenFinder::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_[static_cast<unsigned char>(text[begin])]) continue;
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

}  // namespace graft::data
