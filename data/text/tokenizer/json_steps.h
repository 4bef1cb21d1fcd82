// The steps around the model in a tokenizer.json: normalizer, pre-tokenizer, post-processor,
// decoder. What graft does not know is refused by name and key.
#pragma once

#include "core/json.h"
#include "data/text/tokenizer/tokenizer_parts.h"

namespace graft::data {

[[noreturn]] void refuse_step(const std::string& what, const std::string& name);

// Each takes the member's value (nullptr or null = none). Errors: kData.
void read_normalizer(const Json* value, const std::string& name, Tokenizer::Parts& parts);
// True if the model sees bytes (ByteLevel).
bool read_pre_tokenizer(const Json* value, const std::string& name, Tokenizer::Parts& parts);
void read_decoder(const Json* value, const std::string& name, Decoding& decoding);
void read_post_processor(const Json* value, const std::string& name, Tokenizer::Parts& parts);

// Normalizers and pre-tokenizers that only turn spaces into U+2581 need not be run: the model does
// it while it reads. Sets parts.reads_spaces and the rules if these are all there are.
void take_space_rules(Tokenizer::Parts& parts, BpeRules& rules);

}  // namespace graft::data
