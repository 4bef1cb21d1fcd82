// A stored document as text again, with what is trained on.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "data/text/token_store.h"
#include "data/text/tokenizer.h"

namespace graft::data {

// Neighbouring tokens of one part that are all trained or all masked.
struct ShownSegment {
  std::string text;  // specials visible
  bool trained = false;
  Segment part = Segment::kPrompt;
};

struct ShownDocument {
  DocumentSource source;
  int64_t tokens = 0;
  int64_t trained = 0;
  bool is_pair = false;                     // a preference pair
  std::array<int64_t, 6> tokens_by_role{};  // by Role
  std::vector<ShownSegment> segments;
};

// Errors: kUsage (no such document), kData (ids that the tokenizer does not have).
ShownDocument show_document(const TokenStore& store, const Tokenizer& tokenizer, int64_t document);

}  // namespace graft::data
