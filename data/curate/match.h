// RE2 on string views.
#pragma once

#include <string_view>

#include <re2/re2.h>

namespace graft::data {

struct Match {
  bool found = false;
  size_t begin = 0;
  size_t end = 0;
  explicit operator bool() const { return found; }
};

// The leftmost match at or after `from`.
inline Match find_match(const re2::RE2& pattern, std::string_view text, size_t from = 0) {
  re2::StringPiece hit;
  const re2::StringPiece piece(text.data(), text.size());
  if (from > text.size() ||
      !pattern.Match(piece, from, text.size(), re2::RE2::UNANCHORED, &hit, 1)) {
    return {};
  }
  const auto begin = static_cast<size_t>(hit.data() - text.data());
  return {true, begin, begin + hit.size()};
}

inline bool matches(const re2::RE2& pattern, std::string_view text) {
  return re2::RE2::PartialMatch(re2::StringPiece(text.data(), text.size()), pattern);
}

}  // namespace graft::data
