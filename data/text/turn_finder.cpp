#include "data/text/turn_finder.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {

TurnFinder::TurnFinder(const Record& record,
                       const Conversation& conversation,
                       const Rendered& rendered,
                       const Encoding& encoding,
                       const Tokenizer& tokenizer,
                       const ChatTemplate& chat,
                       const MaskOptions& options)
    : record_(record),
      conversation_(conversation),
      rendered_(rendered),
      encoding_(encoding),
      tokenizer_(tokenizer),
      chat_(chat),
      render_options_(render_options(options)),
      has_generation_prompt_(chat.text().find("add_generation_prompt") != std::string::npos),
      content_(record.messages.size(), ByteRange{-1, -1}),
      is_marked_(record.messages.size(), false) {
  std::vector<std::vector<ByteRange>> said(record.messages.size());
  for (const Piece& piece : rendered.pieces) {
    if (piece.origin != Origin::kContent) continue;
    said[static_cast<size_t>(piece.message)].push_back({piece.begin, piece.end});
  }
  for (size_t i = 0; i < said.size(); ++i) {
    if (said[i].size() > 1 && i + 1 < said.size()) said[i].resize(own_count(i, said[i]));
    if (!said[i].empty()) content_[i] = {said[i].front().begin, said[i].back().end};
  }
  if (chat.marks_generation()) find_marked();
}

std::vector<Turn> TurnFinder::turns_of(int32_t message) {
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

std::vector<Turn> TurnFinder::stray_turns() const {
  std::vector<Turn> turns;
  std::copy_if(marked_.begin(), marked_.end(), std::back_inserter(turns),
               [](const Turn& turn) { return turn.message < 0; });
  return turns;
}

bool TurnFinder::begin_behind_prompt(Turn& turn) const {
  const auto prompt = rendered_part(static_cast<size_t>(turn.message), true);
  if (!prompt) return true;  // some templates refuse to be rendered up to here
  const auto size = static_cast<int64_t>(prompt->text.size());
  const int64_t shared = shared_begin(prompt->text);
  if (shared < size) {
    const int64_t at = word_begin(shared);
    const bool is_behind =
        turn.message > 0 && at < turn.text.begin && is_template({at, turn.text.begin});
    if (is_behind && !turn.is_marked) turn.text.begin = at;
    return false;
  }
  const ByteRange between = {size, turn.text.begin};
  if (size > turn.text.begin) {
    if (size < turn.text.end) turn.text.begin = size;
  } else if (turn.is_marked) {
    return true;
  } else if (has_generation_prompt_ ? is_template(between)
                                    : end_without_space(part(between)) == 0) {
    // A template without a generation prompt leaves the role header between them; white space
    // there is the model's (Llama-2 writes a space, and SentencePiece joins it to the word).
    turn.text.begin = size;
  }
  return true;
}

ByteRange TurnFinder::stop_behind(int32_t message) const {
  const ByteRange& content = content_[static_cast<size_t>(message)];
  if (content.begin < 0) return {};
  const ByteRange behind = tail(content.end);
  const auto special = first_special(behind);
  return special ? ByteRange{content.end, special->end} : ByteRange{};
}

std::optional<Rendered> TurnFinder::rendered_part(size_t messages, bool with_prompt) const {
  RenderOptions options = render_options_;
  options.add_generation_prompt = with_prompt;
  try {
    return chat_.render(conversation_, messages, options);
  } catch (const Error&) {
    return std::nullopt;
  }
}

const std::optional<Rendered>& TurnFinder::ending_with(size_t message) {
  const auto known = ending_with_.find(message);
  if (known != ending_with_.end()) return known->second;
  return ending_with_.emplace(message, rendered_part(message + 1, false)).first->second;
}

int64_t TurnFinder::shared_begin(const std::string& other) const {
  const std::string& text = rendered_.text;
  return std::mismatch(text.begin(), text.end(), other.begin(), other.end()).first - text.begin();
}

// How many of the pieces are the message's own: a template may say some of it again in the header
// of a later message (the name of the called tool above its answer). Those are not there yet when
// the conversation ends with this message; a thought may be.
size_t TurnFinder::own_count(size_t message, const std::vector<ByteRange>& pieces) {
  const std::optional<Rendered>& alone = ending_with(message);
  if (!alone) return pieces.size();
  std::vector<std::string_view> own;
  for (const Piece& piece : alone->pieces) {
    if (piece.origin != Origin::kContent || piece.message != static_cast<int32_t>(message))
      continue;
    own.push_back(std::string_view(alone->text)
                      .substr(static_cast<size_t>(piece.begin),
                              static_cast<size_t>(piece.end - piece.begin)));
  }
  for (size_t count = std::min(own.size(), pieces.size()); count > 0; --count) {
    const bool ends_alike = std::equal(
        own.end() - static_cast<std::ptrdiff_t>(count), own.end(), pieces.begin(),
        [&](std::string_view text, const ByteRange& range) { return text == part(range); });
    if (ends_alike) return count;
  }
  return pieces.size();
}

// The beginning of the tag or word that holds this byte: "<think>" and "<tool>" part behind "<t".
int64_t TurnFinder::word_begin(int64_t at) const {
  const auto is_inside = [&](int64_t i) {
    const char c = rendered_.text[static_cast<size_t>(i)];
    return !is_space(static_cast<unsigned char>(c)) && c != '>' && c != ']' && c != '}';
  };
  while (at > 0 && is_inside(at - 1)) --at;
  return at;
}

void TurnFinder::find_marked() {
  for (const ByteRange& block : rendered_.generation) {
    if (block.begin == block.end) continue;
    Turn turn;
    turn.is_marked = true;
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

Turn TurnFinder::content_turn(int32_t message) {
  Turn turn;
  turn.message = message;
  turn.text = content_[static_cast<size_t>(message)];
  const ByteRange behind = tail(turn.text.end);
  const bool calls =
      record_.messages[static_cast<size_t>(message)].extra.find("tool_calls") != nullptr;
  if (const auto stop = calls ? stop_behind_calls(message, behind) : first_special(behind)) {
    turn.stop = {turn.text.end, stop->end};
    turn.has_stop = true;
  } else {
    turn.stop = {turn.text.end, turn.text.end + shared_tail(behind)};
  }
  return turn;
}

// Templates close calls with special tokens of their own: the turn ends with the token that ends
// an answer, or with the last one before the next message begins.
std::optional<ByteRange> TurnFinder::stop_behind_calls(int32_t message, const ByteRange& behind) {
  ByteRange own = behind;
  if (static_cast<size_t>(message) + 1 < record_.messages.size()) {
    const std::optional<Rendered>& alone = ending_with(static_cast<size_t>(message));
    if (alone) own.end = std::clamp(shared_begin(alone->text), own.begin, own.end);
  }
  const std::optional<int32_t> usual = usual_stop();
  std::optional<ByteRange> last;
  for (size_t i = first_token_behind(encoding_, own.begin); i < encoding_.ids.size(); ++i) {
    const ByteRange& span = encoding_.spans[i];
    if (span.end > own.end) break;
    if (span.begin < own.begin || span.begin == span.end) continue;
    if (!tokenizer_.is_special(encoding_.ids[i])) continue;
    last = span;
    if (encoding_.ids[i] == usual) break;
  }
  return last;
}

// The special token that ends an answer without calls.
std::optional<int32_t> TurnFinder::usual_stop() const {
  const Conversation plain(Json::array({Json::object({{"role", "user"}, {"content", "a"}}),
                                        Json::object({{"role", "assistant"}, {"content", "b"}})}),
                           record_.tools);
  try {
    const Rendered rendered = chat_.render(plain, plain.size(), render_options_);
    int64_t end = -1;
    for (const Piece& piece : rendered.pieces) {
      if (piece.origin == Origin::kContent && piece.message == 1) end = piece.end;
    }
    const Encoding encoding = tokenizer_.encode(rendered.text);
    for (size_t i = 0; end >= 0 && i < encoding.ids.size(); ++i) {
      const bool is_behind = encoding.spans[i].begin >= end;
      if (is_behind && tokenizer_.is_special(encoding.ids[i])) return encoding.ids[i];
    }
  } catch (const Error&) {
    return std::nullopt;  // a template that refuses so plain a conversation
  }
  return std::nullopt;
}

// Without a stop token: what the conversation's end has as well is the turn's end.
int64_t TurnFinder::shared_tail(const ByteRange& behind) const {
  if (record_.messages.back().role != "assistant" || content_.back().begin < 0) return 0;
  const std::string_view mine = part(behind);
  const std::string_view last = part(tail(content_.back().end));
  return std::mismatch(mine.begin(), mine.end(), last.begin(), last.end()).first - mine.begin();
}

std::string_view TurnFinder::part(const ByteRange& range) const {
  return std::string_view(rendered_.text)
      .substr(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
}

ByteRange TurnFinder::tail(int64_t from) const {
  auto piece = std::upper_bound(rendered_.pieces.begin(), rendered_.pieces.end(), from,
                                [](int64_t at, const Piece& one) { return at < one.end; });
  ByteRange range = {from, from};
  for (; piece != rendered_.pieces.end() && piece->origin == Origin::kTemplate; ++piece) {
    range.end = piece->end;
  }
  return range;
}

std::optional<ByteRange> TurnFinder::first_special(const ByteRange& range) const {
  for (size_t i = first_token_behind(encoding_, range.begin);
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
std::optional<ByteRange> TurnFinder::last_special(const ByteRange& range) const {
  std::optional<ByteRange> last;
  for (size_t i = first_token_behind(encoding_, range.begin);
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

}  // namespace graft::data
