#include "data/text/turns.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// Members of a message that speak to graft, not to the template.
constexpr std::array<std::string_view, 2> kTrainingMembers = {"train", "weight"};
Json message_json(const Message& message) {
  Json json = Json::object();
  json.set("role", message.role);
  // A list of parts, or null beside tool calls: templates look at the kind.
  const bool is_given = message.given.is_array() || message.extra.find("tool_calls") != nullptr;
  if (is_given && !message.given.is_null()) {
    json.set("content", message.given);
  } else if (is_given && message.content.empty()) {
    json.set("content", nullptr);
  } else {
    json.set("content", message.content);
  }
  if (message.extra.is_object()) {
    for (const auto& [key, value] : message.extra.as_object()) {
      const bool is_flag = std::find(kTrainingMembers.begin(), kTrainingMembers.end(), key) !=
                           kTrainingMembers.end();
      if (!is_flag) json.set(key, value);
    }
  }
  return json;
}

// What the message itself says about training, when it does.
std::optional<float> own_weight(const Message& message) {
  if (const Json* train = message.extra.find("train"); train && train->is_bool()) {
    if (!train->as_bool()) return 0.0F;
  }
  if (const Json* weight = message.extra.find("weight"); weight && weight->is_number()) {
    return static_cast<float>(weight->as_double());
  }
  if (message.extra.find("train")) return 1.0F;
  return std::nullopt;
}

struct Turn {
  ByteRange text;  // without the stop
  ByteRange stop;  // what ends the turn, behind or at the end of `text`; may be empty
  int32_t message = -1;
  bool has_stop = false;  // `stop` ends in a special token
};

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
        options_(options),
        has_generation_prompt_(chat.text().find("add_generation_prompt") != std::string::npos),
        content_(record.messages.size(), ByteRange{-1, -1}),
        is_marked_(record.messages.size(), false) {
    for (const Piece& piece : rendered.pieces) {
      if (piece.origin != Origin::kContent) continue;
      ByteRange& range = content_[static_cast<size_t>(piece.message)];
      if (range.begin < 0) range.begin = piece.begin;
      range.end = piece.end;
    }
    if (chat.marks_generation()) find_marked();
  }

  // The turns of one message: its generation blocks, or what it says and the stop behind that.
  std::vector<Turn> turns_of(int32_t message) const {
    const auto index = static_cast<size_t>(message);
    std::vector<Turn> turns;
    for (const Turn& turn : marked_) {
      if (turn.message == message) turns.push_back(turn);
    }
    if (turns.empty() && content_[index].begin >= 0 && !is_marked_[index]) {
      turns.push_back(content_turn(message));
    }
    return turns;
  }
  // Generation blocks in which no message says anything.
  std::vector<Turn> stray_turns() const {
    std::vector<Turn> turns;
    std::copy_if(marked_.begin(), marked_.end(), std::back_inserter(turns),
                 [](const Turn& turn) { return turn.message < 0; });
    return turns;
  }

  // Lets the turn begin where the model starts to write: behind the generation prompt. False when
  // the messages so far are rendered otherwise here than for the prompt that the model gets when it
  // is served; then the turn begins with what the message says.
  bool begin_behind_prompt(Turn& turn) const {
    RenderInput input = render_input(record_, static_cast<size_t>(turn.message), options_);
    input.add_generation_prompt = true;
    std::string prompt;
    try {
      prompt = chat_.render(input).text;
    } catch (const Error&) {
      return true;  // some templates refuse to be rendered up to here
    }
    if (!rendered_.text.starts_with(prompt)) return false;
    const auto size = static_cast<int64_t>(prompt.size());
    const ByteRange between = {size, turn.text.begin};
    if (size > turn.text.begin) {
      if (size < turn.text.end) turn.text.begin = size;
    } else if (has_generation_prompt_ ? is_template(between)
                                      : end_without_space(part(between)) == 0) {
      // A template without a generation prompt leaves the role header between them; white space
      // there is the model's (Llama-2 writes a space, and SentencePiece joins it to the word).
      turn.text.begin = size;
    }
    return true;
  }

  // The special token that ends what an untrained message says.
  ByteRange stop_behind(int32_t message) const {
    const ByteRange& content = content_[static_cast<size_t>(message)];
    if (content.begin < 0) return {};
    const ByteRange behind = tail(content.end);
    const auto special = first_special(behind);
    return special ? ByteRange{content.end, special->end} : ByteRange{};
  }

 private:
  void find_marked() {
    for (const ByteRange& block : rendered_.generation) {
      if (block.begin == block.end) continue;
      Turn turn;
      turn.text = block;
      for (size_t i = 0; i < content_.size(); ++i) {
        const ByteRange& content = content_[i];
        if (content.begin < block.end && block.begin < content.end) {
          turn.message = static_cast<int32_t>(i);
          is_marked_[i] = true;
        }
      }
      if (const auto stop = last_special(block)) {
        turn.has_stop = true;
        turn.stop = {stop->begin, block.end};
        turn.text.end = stop->begin;
      } else {
        turn.stop = {block.end, block.end};
      }
      marked_.push_back(turn);
    }
  }

  Turn content_turn(int32_t message) const {
    Turn turn;
    turn.message = message;
    turn.text = content_[static_cast<size_t>(message)];
    const ByteRange behind = tail(turn.text.end);
    if (const auto special = first_special(behind)) {
      turn.stop = {turn.text.end, special->end};
      turn.has_stop = true;
    } else {
      turn.stop = {turn.text.end, turn.text.end + shared_tail(behind)};
    }
    return turn;
  }

  // Without a stop token: what the conversation's end has as well is the turn's end.
  int64_t shared_tail(const ByteRange& behind) const {
    if (record_.messages.back().role != "assistant" || content_.back().begin < 0) return 0;
    const std::string_view mine = part(behind);
    const std::string_view last = part(tail(content_.back().end));
    return std::mismatch(mine.begin(), mine.end(), last.begin(), last.end()).first - mine.begin();
  }

  bool is_template(const ByteRange& range) const { return tail(range.begin).end >= range.end; }

  std::string_view part(const ByteRange& range) const {
    return std::string_view(rendered_.text)
        .substr(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
  }

  // The template's text behind `from`, up to the next piece that is not the template's.
  ByteRange tail(int64_t from) const {
    auto piece = std::upper_bound(rendered_.pieces.begin(), rendered_.pieces.end(), from,
                                  [](int64_t at, const Piece& one) { return at < one.end; });
    ByteRange range = {from, from};
    for (; piece != rendered_.pieces.end() && piece->origin == Origin::kTemplate; ++piece) {
      range.end = piece->end;
    }
    return range;
  }

  // Index of the first token that does not end before `begin`.
  size_t token_at(int64_t begin) const {
    return static_cast<size_t>(
        std::upper_bound(encoding_.spans.begin(), encoding_.spans.end(), begin,
                         [](int64_t at, const ByteRange& span) { return at < span.end; }) -
        encoding_.spans.begin());
  }

  std::optional<ByteRange> first_special(const ByteRange& range) const {
    for (size_t i = token_at(range.begin);
         i < encoding_.ids.size() && encoding_.spans[i].begin < range.end; ++i) {
      const ByteRange& span = encoding_.spans[i];
      const bool is_inside = span.begin >= range.begin && span.end <= range.end;
      if (is_inside && span.begin < span.end && tokenizer_.is_special(encoding_.ids[i])) {
        return span;
      }
    }
    return std::nullopt;
  }

  // The special token at the end of a generation block; white space may stand behind it.
  std::optional<ByteRange> last_special(const ByteRange& range) const {
    std::optional<ByteRange> last;
    for (size_t i = token_at(range.begin);
         i < encoding_.ids.size() && encoding_.spans[i].end <= range.end; ++i) {
      const ByteRange& span = encoding_.spans[i];
      if (span.begin < range.begin || span.begin == span.end) continue;
      if (tokenizer_.is_special(encoding_.ids[i])) {
        last = span;
      } else if (last && end_without_space(part(span)) != 0) {
        last.reset();
      }
    }
    return last;
  }

  const Record& record_;
  const Rendered& rendered_;
  const Encoding& encoding_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_;
  const MaskOptions& options_;
  bool has_generation_prompt_;
  std::vector<ByteRange> content_;  // of each message, from its first content byte to its last
  std::vector<bool> is_marked_;
  std::vector<Turn> marked_;
};

// In order; where two overlap the first one keeps its bytes.
std::vector<TrainedRange> disjoint(std::vector<TrainedRange> ranges) {
  std::stable_sort(ranges.begin(), ranges.end(), [](const TrainedRange& a, const TrainedRange& b) {
    return a.text.begin < b.text.begin;
  });
  std::vector<TrainedRange> result;
  for (TrainedRange range : ranges) {
    if (!result.empty()) {
      range.text.begin = std::max(range.text.begin, result.back().text.end);
    }
    if (range.text.begin >= range.text.end || range.weight == 0) continue;
    if (!result.empty() && result.back().text.end == range.text.begin &&
        result.back().weight == range.weight) {
      result.back().text.end = range.text.end;
    } else {
      result.push_back(range);
    }
  }
  return result;
}

// train_on_inputs: the whole text; messages with a weight of their own keep it.
std::vector<TrainedRange> everything(const Record& record, const Rendered& rendered) {
  std::vector<TrainedRange> ranges;
  for (const Piece& piece : rendered.pieces) {
    float weight = 1;
    if (piece.origin == Origin::kContent) {
      weight = own_weight(record.messages[static_cast<size_t>(piece.message)]).value_or(1.0F);
    }
    ranges.push_back({{piece.begin, piece.end}, weight});
  }
  return ranges;
}

}  // namespace

RenderInput render_input(const Record& record, size_t messages, const MaskOptions& options) {
  RenderInput input;
  for (size_t i = 0; i < messages; ++i) input.messages.push_back(message_json(record.messages[i]));
  input.tools = record.tools;
  input.vars = options.vars;
  input.now = options.now;
  return input;
}

std::vector<int32_t> trained_messages(const Record& record, const MaskOptions& options) {
  std::vector<int32_t> trained;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const Message& message = record.messages[i];
    const bool has_role = std::find(options.roles_to_train.begin(), options.roles_to_train.end(),
                                    message.role) != options.roles_to_train.end();
    // `"train": true` adds a message of any role; a weight only weighs one that is trained.
    const Json* train = message.extra.find("train");
    const bool is_wanted = has_role || (train && train->is_bool() && train->as_bool());
    if (is_wanted && own_weight(message).value_or(1.0F) != 0) {
      trained.push_back(static_cast<int32_t>(i));
    }
  }
  return trained;
}

Supervision find_supervision(const Record& record,
                             const std::vector<int32_t>& trained,
                             const Rendered& rendered,
                             const Encoding& encoding,
                             const Tokenizer& tokenizer,
                             const ChatTemplate& chat,
                             const MaskOptions& options) {
  const TurnFinder finder(record, rendered, encoding, tokenizer, chat, options);
  Supervision result;
  std::vector<TrainedRange> ranges;
  for (const int32_t message : trained) {
    std::vector<Turn> turns = finder.turns_of(message);
    if (turns.empty()) continue;  // the template leaves the message out
    const float weight = own_weight(record.messages[static_cast<size_t>(message)]).value_or(1.0F);
    const bool stops = options.train_on_eos == TrainEos::kTurn ||
                       options.train_on_eos == TrainEos::kAll ||
                       (options.train_on_eos == TrainEos::kLast && message == trained.back());
    if (!finder.begin_behind_prompt(turns.front())) ++result.turns_unlike_serving;
    for (const Turn& turn : turns) {
      ranges.push_back({turn.text, weight});
      if (stops) ranges.push_back({turn.stop, weight});
    }
    ++result.turns;
    result.turns_without_stop += stops && !turns.back().has_stop ? 1 : 0;
  }
  if (options.turns != Turns::kLast) {
    for (const Turn& turn : finder.stray_turns()) {
      ranges.push_back({{turn.text.begin, turn.stop.end}, 1.0F});
    }
  }
  if (options.train_on_eos == TrainEos::kAll) {
    for (size_t i = 0; i < record.messages.size(); ++i) {
      const auto message = static_cast<int32_t>(i);
      if (std::find(trained.begin(), trained.end(), message) != trained.end()) continue;
      ranges.push_back({finder.stop_behind(message), 1.0F});
    }
  }
  if (options.train_on_inputs) ranges = everything(record, rendered);
  result.ranges = disjoint(std::move(ranges));
  return result;
}

}  // namespace graft::data
