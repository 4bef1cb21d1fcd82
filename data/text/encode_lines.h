// `graft data encode`: lines of JSON in, lines of JSON out, as fast as the tokenizer.
#pragma once

#include <string>
#include <string_view>

#include "data/text/tokenizer.h"

namespace graft::data {

// Appends the answer {"ids": [...], "offsets": [[begin, end], ...]} and a newline for one line
// {"text": ...}; other members are ignored. Reuses what it
// allocates: one a thread.
class LineEncoder {
 public:
  LineEncoder(const Tokenizer& tokenizer, const EncodeOptions& options);
  // False: the line is no JSON object with a string "text"; a strict parser tells what is wrong.
  // Errors: kData (of the tokenizer).
  bool answer(std::string_view line, std::string& out);

 private:
  std::string key_;  // strings with escapes
  std::string text_;
  const Tokenizer& tokenizer_;
  const EncodeOptions& options_;
};

}  // namespace graft::data
