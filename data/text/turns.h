// Which stretches of a rendered record are trained on (internal to data/text; the rules are those
// of mask.h).
#pragma once

#include <cstdint>
#include <vector>

#include "data/records/record.h"
#include "data/text/mask.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"

namespace graft::data {

// Bytes of the text and what a token wholly inside them counts in the loss.
struct TrainedRange {
  ByteRange text;
  float weight = 1;
};

struct Supervision {
  std::vector<TrainedRange> ranges;  // in order, disjoint; neighbours of one weight are joined
  int64_t turns = 0;                 // trained messages that the text holds
  int64_t turns_without_stop = 0;    // of these, those that should end in a stop token and do not
  int64_t turns_unlike_serving = 0;  // of these, those with another context than at serving
};

// The first token that ends behind byte `at`.
size_t first_token_behind(const Encoding& encoding, int64_t at);

// The messages that the options train, in order.
std::vector<int32_t> trained_messages(const Record& record, const MaskOptions& options);

// The record's messages and tools as the template shall see them.
Conversation conversation_of(const Record& record);
// How they are rendered.
RenderOptions render_options(const MaskOptions& options);

// `trained`: indices of the record's messages to train on, ascending.
Supervision find_supervision(const Record& record,
                             const Conversation& conversation,
                             const std::vector<int32_t>& trained,
                             const Rendered& rendered,
                             const Encoding& encoding,
                             const Tokenizer& tokenizer,
                             const ChatTemplate& chat,
                             const MaskOptions& options);

}  // namespace graft::data
