#include "data/text/mask.h"

#include <algorithm>
#include <array>
#include <optional>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

constexpr std::array<std::string_view, 6> kRoleNames = {"template",  "system", "user",
                                                        "assistant", "tool",   "text"};
constexpr std::array<std::string_view, 6> kRefusalNames = {
    "none", "template", "special_in_content", "nothing_trained", "too_long", "double_bos"};

// Flags of a message that speak to graft, not to the template.
constexpr std::array<std::string_view, 2> kTrainingMembers = {"train", "weight"};

Json message_json(const Message& message) {
  Json json = Json::object();
  json.set("role", message.role);
  json.set("content", message.content);
  if (message.extra.is_object()) {
    for (const auto& [key, value] : message.extra.as_object()) {
      const bool is_flag = std::find(kTrainingMembers.begin(), kTrainingMembers.end(), key) !=
                           kTrainingMembers.end();
      if (!is_flag) json.set(key, value);
    }
  }
  return json;
}

bool is_trained(const Message& message) {
  if (message.role != "assistant") return false;
  const Json* train = message.extra.find("train");
  if (train && train->is_bool() && !train->as_bool()) return false;
  const Json* weight = message.extra.find("weight");
  return !(weight && weight->is_number() && weight->as_double() == 0.0);
}

RenderInput render_input(const Record& record, size_t messages, const MaskOptions& options) {
  RenderInput input;
  for (size_t i = 0; i < messages; ++i) input.messages.push_back(message_json(record.messages[i]));
  input.tools = record.tools;
  input.vars = options.vars;
  input.now = options.now;
  return input;
}

const ChatTemplate& need_template(const ChatTemplate* chat) {
  if (chat) return *chat;
  fail(ExitCode::kUsage, "the model has no chat template, and these records have turns", "",
       "add chat_template.jinja to the model directory, or give records of the form {\"text\": …}");
}

bool is_data(const Piece& piece) {
  return piece.origin == Origin::kContent || piece.origin == Origin::kInput;
}

// A special token that came out of the data instead of the template; -1 = none.
int64_t find_foreign_special(const Encoding& encoding,
                             const std::vector<Piece>& pieces,
                             const Tokenizer& tokenizer) {
  auto piece = pieces.begin();
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteRange& span = encoding.spans[i];
    if (span.begin == span.end || !tokenizer.is_special(encoding.ids[i])) continue;
    while (piece != pieces.end() && piece->end <= span.begin) ++piece;
    for (auto at = piece; at != pieces.end() && at->begin < span.end; ++at) {
      // A template may build a token round a role ("<|" + role + "|>"), a field may not be one.
      const bool covers = at->begin <= span.begin && span.end <= at->end;
      if (is_data(*at) || (at->origin == Origin::kField && covers)) {
        return static_cast<int64_t>(i);
      }
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
    const int64_t at = find_foreign_special(encoding, rendered.pieces, tokenizer);
    if (at >= 0) result.special = tokenizer.token(encoding.ids[static_cast<size_t>(at)]);
  }
  if (tokenizer.adds_bos() && (encoding.ids.empty() || encoding.ids[0] != *tokenizer.bos_id())) {
    encoding.ids.insert(encoding.ids.begin(), *tokenizer.bos_id());
    encoding.spans.insert(encoding.spans.begin(), {0, 0});
  }
  return result;
}

// A stretch of text that is trained on, and the message it belongs to.
struct Turn {
  ByteRange text;
  int32_t message = -1;
  bool has_stop = false;  // a special token behind the content is part of it
};

// Builds the trained stretches of one rendered record.
class TurnFinder {
 public:
  TurnFinder(const Record& record,
             const Rendered& rendered,
             const Encoding& encoding,
             const Tokenizer& tokenizer,
             const ChatTemplate& chat,
             const MaskOptions& options)
      : record_(record),
        rendered_(rendered),
        encoding_(encoding),
        tokenizer_(tokenizer),
        chat_(chat),
        options_(options) {}

  std::vector<Turn> find() const {
    std::vector<Turn> turns = chat_.marks_generation() ? marked_turns() : content_turns();
    for (Turn& turn : turns) {
      if (turn.message >= 0) turn.text.begin = after_prompt(turn);
    }
    return turns;
  }

 private:
  // {% generation %} blocks, less those of messages that shall not be trained.
  std::vector<Turn> marked_turns() const {
    std::vector<Turn> turns;
    for (const ByteRange& range : rendered_.generation) {
      if (range.begin == range.end) continue;
      Turn turn = {range, -1, false};
      for (const Piece& piece : rendered_.pieces) {
        const bool is_inside = piece.begin < range.end && range.begin < piece.end;
        if (is_inside && piece.origin == Origin::kContent) turn.message = piece.message;
      }
      const bool is_wanted =
          turn.message < 0 || is_trained(record_.messages[static_cast<size_t>(turn.message)]);
      if (!is_wanted) continue;
      turn.has_stop = special_end(range.begin, range.end).has_value();
      turns.push_back(turn);
    }
    return turns;
  }

  std::vector<Turn> content_turns() const {
    std::vector<Turn> turns;
    for (size_t i = 0; i < record_.messages.size(); ++i) {
      if (!is_trained(record_.messages[i])) continue;
      Turn turn;
      turn.message = static_cast<int32_t>(i);
      bool is_found = false;
      for (const Piece& piece : rendered_.pieces) {
        if (piece.origin != Origin::kContent || piece.message != turn.message) continue;
        if (!is_found) turn.text.begin = piece.begin;
        turn.text.end = piece.end;
        is_found = true;
      }
      if (is_found) turns.push_back(turn);
    }
    for (Turn& turn : turns) add_stop(turn);
    return turns;
  }

  // The template's text behind `from`, up to the next piece that is not the template's.
  ByteRange tail(int64_t from) const {
    ByteRange range = {from, from};
    for (const Piece& piece : rendered_.pieces) {
      if (piece.end <= from) continue;
      if (piece.origin != Origin::kTemplate) break;
      range.end = piece.end;
    }
    return range;
  }

  // The end of the first special token in [begin, end).
  std::optional<int64_t> special_end(int64_t begin, int64_t end) const {
    for (size_t i = 0; i < encoding_.ids.size(); ++i) {
      const ByteRange& span = encoding_.spans[i];
      if (span.begin >= begin && span.end <= end && span.begin < span.end &&
          tokenizer_.is_special(encoding_.ids[i])) {
        return span.end;
      }
    }
    return std::nullopt;
  }

  void add_stop(Turn& turn) const {
    const ByteRange behind = tail(turn.text.end);
    if (const auto end = special_end(behind.begin, behind.end)) {
      turn.text.end = *end;
      turn.has_stop = true;
      return;
    }
    // Without a stop token: what the conversation's end has as well is the turn's end.
    if (record_.messages.back().role != "assistant") return;
    int64_t last_end = -1;
    for (const Piece& piece : rendered_.pieces) {
      if (piece.origin == Origin::kContent &&
          piece.message == static_cast<int32_t>(record_.messages.size()) - 1) {
        last_end = piece.end;
      }
    }
    if (last_end < 0) return;
    const ByteRange final_tail = tail(last_end);
    const auto part = [&](const ByteRange& range) {
      return std::string_view(rendered_.text)
          .substr(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
    };
    const std::string_view mine = part(behind);
    const std::string_view final_text = part(final_tail);
    const auto differs =
        std::mismatch(mine.begin(), mine.end(), final_text.begin(), final_text.end());
    turn.text.end += differs.first - mine.begin();
  }

  // Where the model starts to write: behind the generation prompt, when only white space lies
  // between it and the turn. (Llama-2 puts a space there, and SentencePiece joins it to the word.)
  int64_t after_prompt(const Turn& turn) const {
    RenderInput input = render_input(record_, static_cast<size_t>(turn.message), options_);
    input.add_generation_prompt = true;
    std::string prompt;
    try {
      prompt = chat_.render(input).text;
    } catch (const Error&) {
      return turn.text.begin;  // some templates refuse to be rendered up to here
    }
    const auto size = static_cast<int64_t>(prompt.size());
    if (size >= turn.text.begin || !rendered_.text.starts_with(prompt)) return turn.text.begin;
    const std::string_view between =
        std::string_view(rendered_.text)
            .substr(prompt.size(), static_cast<size_t>(turn.text.begin - size));
    return end_without_space(between) == 0 ? size : turn.text.begin;
  }

  const Record& record_;
  const Rendered& rendered_;
  const Encoding& encoding_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_;
  const MaskOptions& options_;
};

void set_roles(const Record& record,
               const Rendered& rendered,
               const Encoding& encoding,
               Document& doc) {
  doc.role.assign(encoding.ids.size(), static_cast<uint8_t>(Role::kTemplate));
  auto piece = rendered.pieces.begin();
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteRange& span = encoding.spans[i];
    if (span.begin == span.end) continue;
    while (piece != rendered.pieces.end() && piece->end <= span.begin) ++piece;
    if (piece == rendered.pieces.end()) break;
    Role role = Role::kTemplate;
    if (piece->origin == Origin::kInput) role = Role::kSystem;
    if (piece->message >= 0) {
      role = role_of(record.messages[static_cast<size_t>(piece->message)].role);
    }
    doc.role[i] = static_cast<uint8_t>(role);
  }
}

void set_loss(const std::vector<Turn>& turns, const Encoding& encoding, Document& doc) {
  doc.loss.assign(encoding.ids.size(), 0);
  size_t first = 0;  // turns are in order and disjoint
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteRange& span = encoding.spans[i];
    if (span.begin == span.end) continue;
    while (first < turns.size() && turns[first].text.end <= span.begin) ++first;
    if (first == turns.size()) break;
    const ByteRange& text = turns[first].text;
    if (span.end <= text.begin) continue;
    if (span.begin >= text.begin && span.end <= text.end) {
      doc.loss[i] = 1;
      doc.role[i] = static_cast<uint8_t>(Role::kAssistant);
    } else {
      ++doc.straddling;
    }
  }
}

Document refused(Refusal refusal, std::string reason) {
  Document doc;
  doc.refusal = refusal;
  doc.reason = std::move(reason);
  return doc;
}

// Length, and the checks that every document must pass.
Document checked(Document doc, const Tokenizer& tokenizer, const MaskOptions& options) {
  const auto bos = tokenizer.bos_id();
  if (bos && bos != tokenizer.eos_id() && doc.ids.size() > 1 && doc.ids[0] == *bos &&
      doc.ids[1] == *bos) {
    return refused(Refusal::kDoubleBos, "the document begins with BOS twice");
  }
  const auto length = static_cast<int64_t>(doc.ids.size());
  if (options.sequence_len > 0 && length > options.sequence_len) {
    if (options.over_long != OverLong::kTruncateRight) {
      return refused(Refusal::kTooLong, "the document has " + std::to_string(length) +
                                            " tokens, sequence_len is " +
                                            std::to_string(options.sequence_len));
    }
    doc.truncated = length - options.sequence_len;
    const auto kept = static_cast<size_t>(options.sequence_len);
    doc.ids.resize(kept);
    doc.loss.resize(kept);
    doc.role.resize(kept);
  }
  doc.supervised =
      std::count_if(doc.loss.begin(), doc.loss.end(), [](uint8_t w) { return w != 0; });
  if (doc.supervised == 0) {
    return refused(doc.truncated > 0 ? Refusal::kTooLong : Refusal::kNothingTrained,
                   doc.truncated > 0 ? "no trained token is left of the first " +
                                           std::to_string(options.sequence_len)
                                     : "no token of the record is trained on");
  }
  return doc;
}

std::string special_reason(const std::string& token) {
  return "the data holds the text of the special token \"" + token + "\"";
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
  const auto none = static_cast<uint8_t>(Role::kTemplate);
  if (tokenizer.bos_id()) {
    doc.ids.insert(doc.ids.begin(), *tokenizer.bos_id());
    doc.loss.insert(doc.loss.begin(), 0);
    doc.role.insert(doc.role.begin(), none);
  }
  doc.turns = 1;
  if (tokenizer.eos_id()) {
    doc.ids.push_back(*tokenizer.eos_id());
    doc.loss.push_back(1);
    doc.role.push_back(none);
  } else {
    doc.turns_without_stop = 1;
  }
  return checked(std::move(doc), tokenizer, options);
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

Document encode_record(const Record& record,
                       const Tokenizer& tokenizer,
                       const ChatTemplate* chat,
                       const MaskOptions& options) {
  if (record.schema == Schema::kText) return encode_text_record(record, tokenizer, options);
  const ChatTemplate& used = need_template(chat);
  Rendered rendered;
  try {
    rendered = used.render(render_input(record, record.messages.size(), options));
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    return refused(Refusal::kTemplate, error.text().what + " (" + error.text().where + ")");
  }
  const Encoded encoded = encode_rendered(rendered, tokenizer, options.content_specials);
  if (encoded.special) {
    return refused(Refusal::kSpecialInContent, special_reason(*encoded.special));
  }
  const std::vector<Turn> turns =
      TurnFinder(record, rendered, encoded.encoding, tokenizer, used, options).find();
  Document doc;
  doc.ids = encoded.encoding.ids;
  set_roles(record, rendered, encoded.encoding, doc);
  set_loss(turns, encoded.encoding, doc);
  doc.turns = static_cast<int64_t>(turns.size());
  doc.turns_without_stop =
      std::count_if(turns.begin(), turns.end(), [](const Turn& turn) { return !turn.has_stop; });
  return checked(std::move(doc), tokenizer, options);
}

std::vector<int32_t> encode_prompt(const Record& record,
                                   const Tokenizer& tokenizer,
                                   const ChatTemplate* chat,
                                   const MaskOptions& options) {
  if (record.schema == Schema::kText) {
    return tokenizer.bos_id() ? std::vector<int32_t>{*tokenizer.bos_id()} : std::vector<int32_t>{};
  }
  size_t messages = record.messages.size();
  for (size_t i = record.messages.size(); i-- > 0;) {
    if (record.messages[i].role == "assistant") {
      messages = i;
      break;
    }
  }
  RenderInput input = render_input(record, messages, options);
  input.add_generation_prompt = true;
  const Rendered rendered = need_template(chat).render(input);
  Encoded encoded = encode_rendered(rendered, tokenizer, options.content_specials);
  if (encoded.special) fail(ExitCode::kData, special_reason(*encoded.special));
  return std::move(encoded.encoding.ids);
}

}  // namespace graft::data
