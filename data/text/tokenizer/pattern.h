// Regular expressions of a tokenizer.json on PCRE2, compiled once, with limits.
//
// `tokenizers` uses Oniguruma in its Ruby syntax and a newer Unicode. Patterns whose meaning PCRE2
// would change are refused when they are read; characters that are newer than PCRE2's Unicode are
// shown to it as stand-ins of the same class (unicode.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer.h"

namespace graft::data {

class Pattern {
 public:
  // `where` names the key for errors. Errors: kData (not a pattern, or one that is refused).
  Pattern(std::string_view pattern, const std::string& where);
  ~Pattern();
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;

  // The matches in text[begin, end), which is valid UTF-8, in order; empty matches are left out.
  // Lookarounds see nothing outside of the range. Thread-safe. Errors: kData (a limit was reached:
  // the pattern backtracks without end on this text).
  void find_all(std::string_view text, size_t begin, size_t end, std::vector<ByteRange>& out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace graft::data
