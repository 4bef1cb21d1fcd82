// Text to tokens.
#pragma once

#include "data/text/tokenizer/tokenizer_parts.h"

namespace graft::data {

// Fills `out`, which is empty; without spans only ids, front and back. Errors: see
// Tokenizer::encode.
void encode_into(const Tokenizer::Parts& parts,
                 std::string_view text,
                 const EncodeOptions& options,
                 bool with_spans,
                 Encoding& out);

}  // namespace graft::data
