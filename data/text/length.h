// Documents against sequence_len (internal to data/text).
#pragma once

#include <string>
#include <vector>

#include "data/text/mask.h"

namespace graft::data {

// Applies OverLong; `has_bos`: the document's first token is BOS, which every piece keeps. A
// document that fits comes back as it is.
std::vector<Document> fit_length(Document doc, bool has_bos, const MaskOptions& options);

Document refused(Refusal refusal, std::string reason);

// What is said of a document of so many tokens that is too long.
std::string length_reason(int64_t length, const MaskOptions& options);

}  // namespace graft::data
