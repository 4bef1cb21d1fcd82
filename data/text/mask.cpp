#include "data/text/mask.h"

#include <algorithm>
#include <array>
#include <optional>

#include "core/error.h"
#include "data/text/length.h"
#include "data/text/turns.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

constexpr std::array<std::string_view, 6> kRoleNames = {"template",  "system", "user",
                                                        "assistant", "tool",   "text"};
constexpr std::array<std::string_view, 8> kRefusalNames = {
    "none",     "template",   "special_in_content", "nothing_trained",
    "too_long", "double_bos", "unstopped_turn",     "bad_member"};

const ChatTemplate& need_template(const ChatTemplate* chat) {
  if (chat) return *chat;
  fail(ExitCode::kUsage, "the model has no chat template, and these records have turns", "",
       "add chat_template.jinja to the model directory, or give records of the form {\"text\": …}");
}

bool is_data(const Piece& piece) {
  return piece.origin == Origin::kContent || piece.origin == Origin::kInput;
}

// A special token that came out of the data instead of the template; -1 = none.
int64_t find_foreign_special(const Encoding& encoding, const std::vector<Piece>& pieces) {
  auto piece = pieces.begin();
  for (const int32_t token : encoding.specials) {
    const ByteRange& span = encoding.spans[static_cast<size_t>(token)];
    while (piece != pieces.end() && piece->end <= span.begin) ++piece;
    for (auto at = piece; at != pieces.end() && at->begin < span.end; ++at) {
      // A template may build a token round a role ("<|" + role + "|>"), a field may not be one.
      const bool covers = at->begin <= span.begin && span.end <= at->end;
      if (is_data(*at) || (at->origin == Origin::kField && covers)) return token;
    }
  }
  return -1;
}

std::vector<ByteRange> data_ranges(const std::vector<Piece>& pieces) {
  std::vector<ByteRange> ranges;
  for (const Piece& piece : pieces) {
    if (is_data(piece)) ranges.push_back({piece.begin, piece.end});
  }
  return ranges;
}

struct Encoded {
  Encoding encoding;
  std::optional<std::string> special;  // the special token that was refused
};

// The rendered text as tokens, BOS in front exactly once where the tokenizer adds one.
Encoded encode_rendered(const Rendered& rendered,
                        const Tokenizer& tokenizer,
                        ContentSpecials specials) {
  std::vector<ByteRange> literal;
  if (specials == ContentSpecials::kLiteral) literal = data_ranges(rendered.pieces);
  Encoded result;
  result.encoding = tokenizer.encode(rendered.text, {.literal = literal});
  Encoding& encoding = result.encoding;
  if (specials != ContentSpecials::kParse) {
    const int64_t at = find_foreign_special(encoding, rendered.pieces);
    if (at >= 0) result.special = tokenizer.token(encoding.ids[static_cast<size_t>(at)]);
  }
  if (tokenizer.adds_bos() && (encoding.ids.empty() || encoding.ids[0] != *tokenizer.bos_id())) {
    encoding.ids.insert(encoding.ids.begin(), *tokenizer.bos_id());
    encoding.spans.insert(encoding.spans.begin(), {0, 0});
  }
  return result;
}

// A token belongs to the piece that its first byte lies in.
void set_roles(const Record& record,
               const Rendered& rendered,
               const Encoding& encoding,
               Document& doc) {
  doc.role.assign(encoding.ids.size(), static_cast<uint8_t>(Role::kTemplate));
  for (const Piece& piece : rendered.pieces) {
    if (piece.origin == Origin::kTemplate) continue;
    const Role role = piece.message >= 0
                          ? role_of(record.messages[static_cast<size_t>(piece.message)].role)
                          : Role::kSystem;
    for (size_t i = first_token_behind(encoding, piece.begin);
         i < encoding.ids.size() && encoding.spans[i].begin < piece.end; ++i) {
      if (encoding.spans[i].begin >= piece.begin) doc.role[i] = static_cast<uint8_t>(role);
    }
  }
}

// The template's text inside a trained stretch (the stop token) belongs to who speaks there.
void give_roles_to_trained_template(Document& doc) {
  const auto none = static_cast<uint8_t>(Role::kTemplate);
  for (size_t begin = 0; begin < doc.ids.size();) {
    size_t end = begin;
    uint8_t role = none;
    for (; end < doc.ids.size() && doc.loss[end] != 0; ++end) {
      if (role == none) role = doc.role[end];
    }
    if (role == none) role = static_cast<uint8_t>(Role::kAssistant);
    for (size_t i = begin; i < end; ++i) {
      if (doc.role[i] == none) doc.role[i] = role;
    }
    begin = end + 1;
  }
}

// The document's index of a weight; nullopt when it has too many.
std::optional<uint8_t> weight_index(float weight, Document& doc) {
  if (weight == 1.0F) return uint8_t{1};
  const auto known = std::find(doc.weights.begin(), doc.weights.end(), weight);
  const auto index = static_cast<size_t>(known - doc.weights.begin());
  if (known == doc.weights.end()) {
    if (index + 2 >= 256) return std::nullopt;
    doc.weights.push_back(weight);
  }
  return static_cast<uint8_t>(2 + index);
}

// False when the record has more than 254 weights. `ranges` are in order and disjoint.
bool set_loss(const std::vector<TrainedRange>& ranges, const Encoding& encoding, Document& doc) {
  doc.loss.assign(encoding.ids.size(), 0);
  size_t i = 0;
  for (const TrainedRange& range : ranges) {
    const auto index = weight_index(range.weight, doc);
    if (!index) return false;
    const ByteRange& text = range.text;
    // A token across the border of two ranges was counted with the first.
    for (i = std::max(i, first_token_behind(encoding, text.begin));
         i < encoding.ids.size() && encoding.spans[i].begin < text.end; ++i) {
      const ByteRange& span = encoding.spans[i];
      if (span.begin == span.end) continue;
      if (span.begin >= text.begin && span.end <= text.end) {
        doc.loss[i] = *index;
      } else {
        ++doc.straddling;
      }
    }
  }
  return true;
}

// The faults that every document is looked at for, and its length.
std::vector<Document> checked(Document doc,
                              const Tokenizer& tokenizer,
                              const MaskOptions& options) {
  if (doc.refusal != Refusal::kNone) return {std::move(doc)};
  const auto bos = tokenizer.bos_id();
  const bool has_bos = bos && !doc.ids.empty() && doc.ids[0] == *bos;
  doc.has_double_bos =
      has_bos && bos != tokenizer.eos_id() && doc.ids.size() > 1 && doc.ids[1] == *bos;
  if (doc.has_double_bos && options.faults.double_bos != FaultLevel::kReport) {
    return {refused(Refusal::kDoubleBos, "the document begins with BOS twice")};
  }
  doc.supervised =
      std::count_if(doc.loss.begin(), doc.loss.end(), [](uint8_t loss) { return loss != 0; });
  if (doc.supervised == 0) {
    return {refused(Refusal::kNothingTrained, "no token of the record is trained on")};
  }
  if (doc.turns_without_stop > 0 && options.faults.unstopped_turn != FaultLevel::kReport) {
    return {
        refused(Refusal::kUnstoppedTurn, std::to_string(doc.turns_without_stop) + " of the " +
                                             std::to_string(doc.turns) +
                                             " trained turns do not end in a trained stop token")};
  }
  return fit_length(std::move(doc), has_bos, options);
}

std::string special_reason(const std::string& token) {
  return "the data holds the text of the special token \"" + token + "\"";
}

void put_bos_in_front(int32_t bos, Document& doc) {
  doc.ids.insert(doc.ids.begin(), bos);
  doc.loss.insert(doc.loss.begin(), 0);
  doc.role.insert(doc.role.begin(), static_cast<uint8_t>(Role::kTemplate));
}

Document encode_text_record(const Record& record,
                            const Tokenizer& tokenizer,
                            const MaskOptions& options) {
  const std::string_view text = record.answer();
  EncodeOptions encode;
  if (options.content_specials == ContentSpecials::kLiteral) {
    encode.special_text = SpecialText::kLiteral;
  }
  Document doc;
  doc.ids = tokenizer.encode_ids(text, encode);
  if (options.content_specials == ContentSpecials::kRefuse) {
    for (const int32_t id : doc.ids) {
      if (tokenizer.is_special(id) && id != tokenizer.unk_id()) {
        return refused(Refusal::kSpecialInContent, special_reason(tokenizer.token(id)));
      }
    }
  }
  if (doc.ids.empty()) return refused(Refusal::kNothingTrained, "the text is empty");
  doc.loss.assign(doc.ids.size(), 1);
  doc.role.assign(doc.ids.size(), static_cast<uint8_t>(Role::kText));
  if (tokenizer.bos_id()) put_bos_in_front(*tokenizer.bos_id(), doc);
  doc.turns = 1;
  const bool stops = options.train_on_eos != TrainEos::kNone;
  if (tokenizer.eos_id()) {
    doc.ids.push_back(*tokenizer.eos_id());
    doc.loss.push_back(stops ? 1 : 0);
    doc.role.push_back(static_cast<uint8_t>(Role::kTemplate));
  } else if (stops) {
    doc.turns_without_stop = 1;
  }
  return doc;
}

// The segments before `count` as one text, and the ranges of those with a label.
Encoding encode_segments(const Record& record,
                         size_t count,
                         const Tokenizer& tokenizer,
                         std::vector<TrainedRange>& ranges) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    const Message& segment = record.messages[i];
    const auto begin = static_cast<int64_t>(text.size());
    text += segment.content;
    if (segment.role == "assistant") {
      const auto end = static_cast<int64_t>(text.size());
      if (!ranges.empty() && ranges.back().text.end == begin) {
        ranges.back().text.end = end;
      } else {
        ranges.push_back({{begin, end}, 1.0F});
      }
    }
  }
  return tokenizer.encode(text);
}

Document encode_segment_record(const Record& record, const Tokenizer& tokenizer) {
  std::vector<TrainedRange> ranges;
  Encoding encoding = encode_segments(record, record.messages.size(), tokenizer, ranges);
  if (encoding.ids.empty()) return refused(Refusal::kNothingTrained, "the segments are empty");
  Document doc;
  set_loss(ranges, encoding, doc);
  doc.ids = std::move(encoding.ids);
  doc.role.assign(doc.ids.size(), static_cast<uint8_t>(Role::kText));
  for (const TrainedRange& range : ranges) {
    ++doc.turns;
    const auto behind =
        std::upper_bound(encoding.spans.begin(), encoding.spans.end(), range.text.end,
                         [](int64_t at, const ByteRange& span) { return at < span.end; });
    const auto last = behind - encoding.spans.begin() - 1;
    const bool stops = last >= 0 && tokenizer.is_special(doc.ids[static_cast<size_t>(last)]);
    doc.turns_without_stop += stops ? 0 : 1;
  }
  if (tokenizer.adds_bos() && doc.ids[0] != *tokenizer.bos_id()) {
    put_bos_in_front(*tokenizer.bos_id(), doc);
  }
  return doc;
}

Document encode_token_record(const Record& record, const Tokenizer& tokenizer) {
  Document doc;
  doc.ids = record.input_ids;
  doc.loss.assign(doc.ids.size(), 1);
  for (size_t i = 0; i < doc.ids.size(); ++i) {
    const int32_t id = doc.ids[i];
    const int32_t label = record.labels.empty() ? id : record.labels[i];
    if (id < 0 || id >= tokenizer.vocab_size()) {
      return refused(Refusal::kBadMember, "input_ids[" + std::to_string(i) + "] is " +
                                              std::to_string(id) + ", the tokenizer has " +
                                              std::to_string(tokenizer.vocab_size()) + " tokens");
    }
    if (label != -100 && label != id) {
      return refused(Refusal::kBadMember, "labels[" + std::to_string(i) + "] is " +
                                              std::to_string(label) +
                                              ", expected -100 or the token itself (" +
                                              std::to_string(id) + "): labels are not shifted");
    }
    doc.loss[i] = label == -100 ? 0 : 1;
  }
  doc.role.assign(doc.ids.size(), static_cast<uint8_t>(Role::kText));
  for (size_t i = 0; i < doc.ids.size(); ++i) {
    if (doc.loss[i] == 0 || (i + 1 < doc.ids.size() && doc.loss[i + 1] != 0)) continue;
    ++doc.turns;
    doc.turns_without_stop += tokenizer.is_special(doc.ids[i]) ? 0 : 1;
  }
  return doc;
}

// What is wrong with the messages' `train` and `weight`; "" = nothing.
std::string bad_flag(const Record& record) {
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const Json& extra = record.messages[i].extra;
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (const Json* train = extra.find("train"); train && !train->is_bool()) {
      return where + ": \"train\" must be true or false, got " + std::string(train->type_name());
    }
    if (const Json* weight = extra.find("weight")) {
      // The largest float: larger ones could not be stored.
      const bool is_good =
          weight->is_number() && weight->as_double() >= 0 && weight->as_double() <= 3.4e38;
      if (!is_good) return where + ": \"weight\" must be a number of at least 0";
    }
  }
  return "";
}

// A conversation, trained on the given messages.
Document encode_conversation(const Record& record,
                             const std::vector<int32_t>& trained,
                             const Tokenizer& tokenizer,
                             const ChatTemplate& chat,
                             const MaskOptions& options) {
  const Conversation conversation = conversation_of(record);
  Rendered rendered;
  try {
    rendered = chat.render(conversation, conversation.size(), render_options(options));
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    return refused(Refusal::kTemplate, error.text().what + " (" + error.text().where + ")");
  }
  Encoded encoded = encode_rendered(rendered, tokenizer, options.content_specials);
  if (encoded.special) {
    return refused(Refusal::kSpecialInContent, special_reason(*encoded.special));
  }
  Encoding& encoding = encoded.encoding;
  const Supervision supervision =
      find_supervision(record, conversation, trained, rendered, encoding, tokenizer, chat, options);
  Document doc;
  doc.turns = supervision.turns;
  doc.turns_without_stop = supervision.turns_without_stop;
  doc.turns_unlike_serving = supervision.turns_unlike_serving;
  if (!set_loss(supervision.ranges, encoding, doc)) {
    return refused(Refusal::kBadMember, "a record can have at most 254 different weights");
  }
  set_roles(record, rendered, encoding, doc);
  doc.ids = std::move(encoding.ids);
  if (!options.train_on_inputs) give_roles_to_trained_template(doc);
  return doc;
}

std::vector<Document> encode_turns(const Record& record,
                                   const Tokenizer& tokenizer,
                                   const ChatTemplate& chat,
                                   const MaskOptions& options) {
  if (std::string wrong = bad_flag(record); !wrong.empty()) {
    return {refused(Refusal::kBadMember, std::move(wrong))};
  }
  std::vector<int32_t> trained = trained_messages(record, options);
  const auto encode = [&](const Record& part, const std::vector<int32_t>& messages) {
    return checked(encode_conversation(part, messages, tokenizer, chat, options), tokenizer,
                   options);
  };
  if (trained.empty() || options.turns == Turns::kAll || options.train_on_inputs) {
    return encode(record, trained);
  }
  if (options.turns == Turns::kLast) return encode(record, {trained.back()});
  std::vector<Document> documents;
  Record part = record;
  for (auto message = trained.rbegin(); message != trained.rend(); ++message) {
    part.messages.resize(static_cast<size_t>(*message) + 1);
    std::vector<Document> pieces = encode(part, {*message});
    documents.insert(documents.begin(), std::make_move_iterator(pieces.begin()),
                     std::make_move_iterator(pieces.end()));
  }
  return documents;
}

// One of the conversations of a pair, trained on its answer.
Document encode_half(const Record& half,
                     const Tokenizer& tokenizer,
                     const ChatTemplate& chat,
                     const MaskOptions& options) {
  if (std::string wrong = bad_flag(half); !wrong.empty()) {
    return refused(Refusal::kBadMember, std::move(wrong));
  }
  std::vector<int32_t> trained = trained_messages(half, options);
  std::erase_if(trained, [&](int32_t message) {
    return message < static_cast<int32_t>(half.shared_messages);
  });
  return checked(encode_conversation(half, trained, tokenizer, chat, options), tokenizer, options)
      .front();
}

// Appends the rejected conversation's tokens behind the shared ones.
void append_rejected(const Document& rejected, size_t shared, Document& doc) {
  doc.segment.assign(doc.ids.size(), static_cast<uint8_t>(Segment::kChosen));
  std::fill_n(doc.segment.begin(), shared, static_cast<uint8_t>(Segment::kPrompt));
  doc.segment.resize(doc.ids.size() + rejected.ids.size() - shared,
                     static_cast<uint8_t>(Segment::kRejected));
  for (size_t i = shared; i < rejected.ids.size(); ++i) {
    doc.ids.push_back(rejected.ids[i]);
    doc.role.push_back(rejected.role[i]);
    const uint8_t loss = rejected.loss[i];
    doc.loss.push_back(loss < 2 ? loss : *weight_index(rejected.weights[loss - 2U], doc));
  }
  doc.supervised += rejected.supervised;
  doc.turns += rejected.turns;
  doc.turns_without_stop += rejected.turns_without_stop;
  doc.turns_unlike_serving += rejected.turns_unlike_serving;
  doc.straddling += rejected.straddling;
}

// Both conversations as they are alone; what they begin with, up to the first trained token, once.
Document encode_pair(const Record& record,
                     const Tokenizer& tokenizer,
                     const ChatTemplate& chat,
                     const MaskOptions& options) {
  MaskOptions half_options = options;
  half_options.sequence_len = 0;  // the pair as a whole has to fit
  // The answer alone, whatever else the options train.
  half_options.train_on_inputs = false;
  half_options.turns = Turns::kLast;
  if (options.train_on_eos == TrainEos::kAll) half_options.train_on_eos = TrainEos::kTurn;
  Document doc = encode_half(record, tokenizer, chat, half_options);
  if (doc.refusal != Refusal::kNone) {
    return refused(doc.refusal, "chosen: " + doc.reason);
  }
  Record other = record;
  other.messages.resize(record.shared_messages);
  other.messages.insert(other.messages.end(), record.rejected.begin(), record.rejected.end());
  const Document rejected = encode_half(other, tokenizer, chat, half_options);
  if (rejected.refusal != Refusal::kNone) {
    return refused(rejected.refusal, "rejected: " + rejected.reason);
  }
  if (doc.weights.size() + rejected.weights.size() > 254) {
    return refused(Refusal::kBadMember, "a record can have at most 254 different weights");
  }
  size_t shared = 0;
  while (doc.loss[shared] == 0 && rejected.loss[shared] == 0 &&
         doc.ids[shared] == rejected.ids[shared]) {
    ++shared;  // both have a trained token, which ends this
  }
  append_rejected(rejected, shared, doc);
  const auto length = static_cast<int64_t>(doc.ids.size());
  if (options.sequence_len > 0 && length > options.sequence_len) {
    return refused(Refusal::kTooLong, length_reason(length, options) + "; a pair is not cut");
  }
  return doc;
}

}  // namespace

std::string_view role_name(Role role) {
  return kRoleNames[static_cast<size_t>(role)];
}

Role role_of(std::string_view name) {
  if (name == "system" || name == "developer") return Role::kSystem;
  if (name == "assistant") return Role::kAssistant;
  if (name == "tool") return Role::kTool;
  if (name == "text") return Role::kText;
  return Role::kUser;
}

std::string_view refusal_name(Refusal refusal) {
  return kRefusalNames[static_cast<size_t>(refusal)];
}

std::vector<Document> encode_record(const Record& record,
                                    const Tokenizer& tokenizer,
                                    const ChatTemplate* chat,
                                    const MaskOptions& options) {
  switch (record.schema) {
    case Schema::kText:
      return checked(encode_text_record(record, tokenizer, options), tokenizer, options);
    case Schema::kSegments:
      return checked(encode_segment_record(record, tokenizer), tokenizer, options);
    case Schema::kTokens:
      return checked(encode_token_record(record, tokenizer), tokenizer, options);
    case Schema::kPreference:
      return {encode_pair(record, tokenizer, need_template(chat), options)};
    default:
      return encode_turns(record, tokenizer, need_template(chat), options);
  }
}

std::vector<int32_t> encode_prompt(const Record& record,
                                   const Tokenizer& tokenizer,
                                   const ChatTemplate* chat,
                                   const MaskOptions& options) {
  if (record.schema == Schema::kText) {
    return tokenizer.bos_id() ? std::vector<int32_t>{*tokenizer.bos_id()} : std::vector<int32_t>{};
  }
  if (record.schema == Schema::kTokens) {
    fail(ExitCode::kUsage, "a record of token ids has no turns to answer", "",
         "give a record with messages, a prompt or segments");
  }
  size_t messages = record.messages.size();
  for (size_t i = record.messages.size(); i-- > 0;) {
    if (record.messages[i].role == "assistant") {
      messages = i;
      break;
    }
  }
  if (record.schema == Schema::kSegments) {
    std::vector<TrainedRange> ranges;
    std::vector<int32_t> ids = encode_segments(record, messages, tokenizer, ranges).ids;
    if (tokenizer.adds_bos() && (ids.empty() || ids[0] != *tokenizer.bos_id())) {
      ids.insert(ids.begin(), *tokenizer.bos_id());
    }
    return ids;
  }
  RenderOptions render = render_options(options);
  render.add_generation_prompt = true;
  const Rendered rendered = need_template(chat).render(conversation_of(record), messages, render);
  Encoded encoded = encode_rendered(rendered, tokenizer, options.content_specials);
  if (encoded.special) fail(ExitCode::kData, special_reason(*encoded.special));
  return std::move(encoded.encoding.ids);
}

}  // namespace graft::data
