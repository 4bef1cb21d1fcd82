// A record as tokens, and which of them are trained on.
//
// The mask comes from where the text came from, never from searching for markers:
//   - a template with {% generation %} blocks: the text inside them, whatever its origin;
//   - else: what each assistant message says, plus the template's text after it up to and including
//     the turn's stop token (the first special token there; without one, the text there that the
//     conversation's last turn ends with as well).
// What the generation prompt supplies when the model is served (role header, an opened or empty
// thought) is not trained; what the template writes between it and the message's text is, for the
// model has to write it. Where a template renders the conversation so far otherwise than for the
// prompt, the turn is counted, and trained from the point where both part; from the message's own
// text on when that lies in front of the message before. A token that straddles a border is not
// trained, and counted. BOS stands in front exactly once where the tokenizer adds one, whether
// the template writes it or not.
//
// A message may say `"train": true|false` (whatever its role) and `"weight": w` (finite, >= 0; what
// each of its tokens counts in the loss; 0 = not trained).
//
// Records without a template:
//   kText      BOS in front, the text, EOS behind (each where the tokenizer has one); everything
//              but BOS is trained on.
//   kSegments  the segments joined as they stand and tokenized as one text, special tokens in it
//              parsed; those with a label are trained on; BOS in front where the tokenizer adds it.
//   kTokens    the ids as they are; trained on where the label is not -100.
//
// A preference pair is one document: the prompt's tokens once, then those of the chosen and those
// of the rejected answer. Prompt + chosen and prompt + rejected are token for token what each
// conversation gives alone, trained on its answer only; the prompt is what both begin with, up to
// the first trained token. It is never cut: under truncation and splitting a longer one is refused.
#pragma once

#include <array>
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

// A token's part of a preference pair; the values are those of /segment in the token store.
enum class Segment : uint8_t {
  kPrompt = 0,  // what both answers follow; every token of a document that is no pair
  kChosen = 1,
  kRejected = 2,
};
inline constexpr std::array<std::string_view, 3> kSegmentNames = {"prompt", "chosen", "rejected"};
Role role_of(std::string_view name);  // names other than the above are kUser

// A special token's text in what a message says (or in tools).
enum class ContentSpecials {
  kRefuse,   // the record is refused
  kLiteral,  // tokenized as plain text
  kParse,    // becomes the special token: what Hugging Face does
};

// A document of more than `sequence_len` tokens. Tokens that are cut off are counted; what is left
// without a trained token is refused as kTooLong.
enum class OverLong {
  kRaise,          // an error that names the record; the default: nothing is lost silently
  kDrop,           // the document is left out and counted
  kTruncateLeft,   // the beginning is cut off; BOS stays in front
  kTruncateRight,  // the end is cut off
  // Pieces of at most sequence_len tokens, each a document; with MaskOptions::chunk_overlap a piece
  // begins with the last tokens of the one before, as untrained context. BOS goes in front of each.
  kSplit,
};

// Which of a record's trained messages.
enum class Turns {
  kAll,     // in one document
  kLast,    // the last one
  kExpand,  // one document each: the conversation up to it, rendered as when the model is served
};

// Which stop tokens are trained on.
enum class TrainEos {
  kTurn,  // that of every trained turn
  kLast,  // that of the last trained turn
  kAll,   // that of every turn, whoever speaks
  kNone,
};

// What happens to a document with a fault.
enum class FaultLevel {
  kReport,  // it stays, and is counted
  kDrop,    // it is left out, and counted
  kRaise,   // the whole job ends with an error
};
struct FaultLevels {
  FaultLevel nothing_trained = FaultLevel::kDrop;  // kReport is not allowed: it would teach nothing
  FaultLevel unstopped_turn = FaultLevel::kReport;
  FaultLevel double_bos = FaultLevel::kDrop;
};

// The options' names on the command line, in configs and in a store's settings.
inline constexpr std::array<std::string_view, 3> kContentSpecialsNames = {"refuse", "literal",
                                                                          "parse"};
inline constexpr std::array<std::string_view, 5> kOverLongNames = {"raise", "drop", "truncate_left",
                                                                   "truncate_right", "split"};
inline constexpr std::array<std::string_view, 3> kTurnsNames = {"all", "last", "expand"};
inline constexpr std::array<std::string_view, 4> kTrainEosNames = {"turn", "last", "all", "none"};
inline constexpr std::array<std::string_view, 3> kFaultLevelNames = {"report", "drop", "raise"};

struct MaskOptions {
  ContentSpecials content_specials = ContentSpecials::kRefuse;
  OverLong over_long = OverLong::kRaise;
  int64_t sequence_len = 0;   // 0 = any length
  int64_t chunk_overlap = 0;  // kSplit: 0 .. sequence_len / 2
  Turns turns = Turns::kAll;
  std::vector<std::string> roles_to_train = {"assistant"};
  TrainEos train_on_eos = TrainEos::kTurn;
  bool train_on_inputs = false;  // every token but BOS is trained on; turns does not matter then
  FaultLevels faults;
  std::string now;  // RenderOptions::now
  Json vars;        // RenderOptions::vars
};

// Why a record gives no document.
enum class Refusal : uint8_t {
  kNone,
  kTemplate,          // the template raised, or met something it does not know
  kSpecialInContent,  // ContentSpecials::kRefuse
  kNothingTrained,    // no supervised token
  kTooLong,           // OverLong::kDrop or kRaise, or nothing trained is left of it
  kDoubleBos,         // BOS twice at the start
  kUnstoppedTurn,     // FaultLevels::unstopped_turn
  kBadMember,         // a `train` or `weight` of the wrong kind, or ids outside the vocabulary
};
std::string_view refusal_name(Refusal refusal);

struct Document {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss;         // 0 = masked, 1 = trained, 2 + i = trained with weights[i]
  std::vector<float> weights;        // the document's weights other than 0 and 1; at most 254
  std::vector<uint8_t> role;         // Role
  std::vector<uint8_t> segment;      // Segment, ascending; empty where the document is no pair
  int64_t supervised = 0;            // tokens with loss != 0
  int64_t turns = 0;                 // supervised turns
  int64_t turns_without_stop = 0;    // supervised turns whose stop token is not trained
  int64_t turns_unlike_serving = 0;  // supervised turns in front of which the template writes
                                     // something else than when the model is served
  int64_t straddling = 0;            // tokens not trained because they cross a border
  int64_t truncated = 0;             // tokens cut off
  bool has_double_bos = false;       // BOS twice at the start (FaultLevel::kReport)
  Refusal refusal = Refusal::kNone;  // not kNone: ids, loss, weights and role are empty
  std::string reason;                // what, for a refused document
};

// The documents of a record: one, or several under Turns::kExpand and OverLong::kSplit. At least
// one, refused or not. Errors: kUsage when the record needs a template and `chat` is nullptr.
// Everything that is the record's own fault is a Refusal. Thread-safe.
std::vector<Document> encode_record(const Record& record,
                                    const Tokenizer& tokenizer,
                                    const ChatTemplate* chat,
                                    const MaskOptions& options);

// What the model reads before it answers: the messages in front of the last assistant turn (all of
// them when there is none) and the generation prompt, with the BOS of encode_record, so that
// a record's prompt is the beginning of its document. For kText: BOS alone; for kSegments: the
// segments in front of the last labelled one. Errors: kUsage (no template; kTokens, which has no
// turns), kData (the template raised, a special token in content under kRefuse).
std::vector<int32_t> encode_prompt(const Record& record,
                                   const Tokenizer& tokenizer,
                                   const ChatTemplate* chat,
                                   const MaskOptions& options);

}  // namespace graft::data
