#include "data/text/turns.h"

#include <algorithm>
#include <array>
#include <optional>

#include "data/text/turn_finder.h"

namespace graft::data {
namespace {

// Members of a message that speak to graft, not to the template.
constexpr std::array<std::string_view, 2> kTrainingMembers = {"train", "weight"};
Json message_json(const Message& message) {
  Json json = Json::object();
  json.set("role", message.role);
  // Templates look at the kind.
  if (message.given == Content::kText) json.set("content", message.content);
  if (message.given == Content::kParts) json.set("content", message.parts);
  if (message.given == Content::kNull) json.set("content", nullptr);
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

size_t first_token_behind(const Encoding& encoding, int64_t at) {
  const auto first =
      std::upper_bound(encoding.spans.begin(), encoding.spans.end(), at,
                       [](int64_t value, const ByteRange& span) { return value < span.end; });
  return static_cast<size_t>(first - encoding.spans.begin());
}

Conversation conversation_of(const Record& record) {
  Json messages = Json::array();
  for (const Message& message : record.messages) messages.push_back(message_json(message));
  return Conversation(messages, record.tools);
}

RenderOptions render_options(const MaskOptions& options) {
  return {.add_generation_prompt = false, .vars = options.vars, .now = options.now};
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
                             const Conversation& conversation,
                             const std::vector<int32_t>& trained,
                             const Rendered& rendered,
                             const Encoding& encoding,
                             const Tokenizer& tokenizer,
                             const ChatTemplate& chat,
                             const MaskOptions& options) {
  TurnFinder finder(record, conversation, rendered, encoding, tokenizer, chat, options);
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
