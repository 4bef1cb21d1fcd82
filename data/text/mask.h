// A record as tokens, and which of them are trained on.
//
// The mask comes from where the text came from, never from searching for markers:
//   - a template with {% generation %} blocks: the text inside them, whatever its origin;
//   - else: what each assistant message says, plus the template's text after it up to and including
//     the turn's stop token (the first special token there; without one, the text there that the
//     conversation's last turn ends with as well).
// What the generation prompt supplies when the model is served (role header, an empty think block)
// is not trained; white space between it and what the message says is (the model writes it). A
// token that straddles a border is not trained, and counted. A message with `"train": false` or
// `"weight": 0` is not trained. BOS stands in front exactly once where the tokenizer adds one,
// whether the template writes it or not.
//
// Text records (Schema::kText) need no template: BOS in front, the text, EOS behind (each where the
// tokenizer has one), and everything but BOS is trained on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "data/records/record.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"

namespace graft::data {

// Who a token belongs to; the values are those of /role in the token store.
enum class Role : uint8_t {
  kTemplate = 0,  // the template's own text, BOS, EOS
  kSystem = 1,
  kUser = 2,
  kAssistant = 3,
  kTool = 4,
  kText = 5,
};
std::string_view role_name(Role role);
Role role_of(std::string_view name);  // names other than the above are kUser

// A special token's text in what a message says (or in tools).
enum class ContentSpecials {
  kRefuse,   // the record is refused
  kLiteral,  // tokenized as plain text
  kParse,    // becomes the special token: what Hugging Face does
};

// A document of more than `sequence_len` tokens.
enum class OverLong {
  kRaise,          // an error that names the record; the default: nothing is lost silently
  kDrop,           // the record is left out and counted
  kTruncateRight,  // the end is cut off and counted; without a trained token left it is dropped
};

struct MaskOptions {
  ContentSpecials content_specials = ContentSpecials::kRefuse;
  OverLong over_long = OverLong::kRaise;
  int64_t sequence_len = 0;  // 0 = any length
  std::string now;           // RenderInput::now
  Json vars;                 // RenderInput::vars
};

// Why a record gives no document.
enum class Refusal : uint8_t {
  kNone,
  kTemplate,          // the template raised, or met something it does not know
  kSpecialInContent,  // ContentSpecials::kRefuse
  kNothingTrained,    // no supervised token
  kTooLong,           // OverLong::kDrop or kRaise
  kDoubleBos,         // BOS twice at the start
};
std::string_view refusal_name(Refusal refusal);

struct Document {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss;         // index into the weights: 0 = masked (0.0), 1 = trained (1.0)
  std::vector<uint8_t> role;         // Role
  int64_t supervised = 0;            // tokens with loss != 0
  int64_t turns = 0;                 // supervised turns
  int64_t turns_without_stop = 0;    // supervised turns whose stop token is not trained
  int64_t straddling = 0;            // tokens not trained because they cross a border
  int64_t truncated = 0;             // tokens cut off by kTruncateRight
  Refusal refusal = Refusal::kNone;  // not kNone: ids, loss and role are empty
  std::string reason;                // what, for a refused record
};

// Errors: kUsage when the record needs a template and `chat` is nullptr. Everything that is the
// record's own fault is a Refusal. Thread-safe.
Document encode_record(const Record& record,
                       const Tokenizer& tokenizer,
                       const ChatTemplate* chat,
                       const MaskOptions& options);

// What the model reads before it answers: the messages in front of the last assistant turn (all of
// them when there is none) and the generation prompt, with the BOS of encode_record, so that
// a record's prompt is the beginning of its document. For kText: BOS alone. Errors: kUsage (no
// template), kData (the template raised, a special token in content under kRefuse).
std::vector<int32_t> encode_prompt(const Record& record,
                                   const Tokenizer& tokenizer,
                                   const ChatTemplate* chat,
                                   const MaskOptions& options);

}  // namespace graft::data
