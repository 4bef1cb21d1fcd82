// Short, safe excerpts of items for people.
#pragma once

#include <string>
#include <string_view>

#include "data/curate/clean.h"

namespace graft::data {

// At most about `width` bytes around [begin, end) of `text`, cut between characters, as one line:
// control characters, invalid bytes and line ends are written as escapes.
struct Excerpt {
  std::string before;  // begins with "…" when something was left out
  std::string marked;
  std::string after;  // ends with "…" when something was left out
  std::string line() const { return before + marked + after; }
};
Excerpt excerpt(std::string_view text, size_t begin, size_t end, size_t width);

// The excerpt of an item that shows best why a rule applies: its span, else its answer, else the
// item as it stands.
Excerpt example_of(const RecordSource& source,
                   const CleanResult& result,
                   size_t item,
                   const Verdict& verdict,
                   size_t width);

}  // namespace graft::data
