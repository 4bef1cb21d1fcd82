// A model's tokenizer with more tokens, as files that every reader of Hugging Face tokenizers
// takes.
//
// What a trainer does with new tokens (train/model/new_tokens.h): make the files beside the
// adapter, resize embedding and head to Tokenizer::vocab_size() of the new tokenizer, let each new
// row begin as the mean of the rows of NewToken::pieces, and train those rows.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"

namespace graft::data {

struct NewToken {
  int32_t id = 0;
  std::string content;
  bool is_new = false;          // false: the vocabulary had it, and its row stays
  std::vector<int32_t> pieces;  // what the text was before; at least one id
};

// What adding `tokens` to a tokenizer gives, in their order. Errors: kData (as with_added_tokens; a
// token twice).
std::vector<NewToken> new_tokens_of(const Tokenizer& tokenizer,
                                    std::span<const AddedTokenSpec> tokens);

// Writes tokenizer.json (or tokenizer.model), tokenizer_config.json, special_tokens_map.json and
// chat_template.jinja of `model_dir`, where it has them, to `out_dir`, with `tokens` added as
// Tokenizer::with_added_tokens adds them. Other bytes of tokenizer.json stay as they are. Loading
// `out_dir` gives the same ids as with_added_tokens.
//   base   the tokenizer of model_dir
// Errors: kIo, kData (as load_tokenizer and with_added_tokens; a token twice).
std::vector<NewToken> extend_tokenizer_files(const Tokenizer& base,
                                             const std::string& model_dir,
                                             std::span<const AddedTokenSpec> tokens,
                                             const std::string& out_dir);

}  // namespace graft::data
