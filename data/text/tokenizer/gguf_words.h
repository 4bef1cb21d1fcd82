// How the words of a byte-level GGUF vocabulary are cut, by the name in tokenizer.ggml.pre.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer/normalizer.h"
#include "data/text/tokenizer/pre_tokenizer.h"

namespace graft::data {

struct GgufWords {
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool ignore_merges = false;  // a word that is a token is that token
  bool adds_bos = false;       // unless the file says otherwise
};

// `name`: the file, for messages. Errors: kData (a name that graft does not know).
GgufWords gguf_words(std::string_view pre, const std::string& name);

}  // namespace graft::data
