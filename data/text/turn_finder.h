// Where the turns of a rendered conversation are (internal to data/text; the rules are those of
// mask.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/turns.h"

namespace graft::data {

struct Turn {
  ByteRange text;  // without the stop
  ByteRange stop;  // what ends the turn, behind or at the end of `text`; may be empty
  int32_t message = -1;
  bool has_stop = false;   // `stop` ends in a special token
  bool is_marked = false;  // a generation block: nothing in front of it is trained
};

// Borrows everything that it is made with.
class TurnFinder {
 public:
  TurnFinder(const Record& record,
             const Conversation& conversation,
             const Rendered& rendered,
             const Encoding& encoding,
             const Tokenizer& tokenizer,
             const ChatTemplate& chat,
             const MaskOptions& options);

  // The turns of one message: its generation blocks, or what it says and the stop behind that.
  std::vector<Turn> turns_of(int32_t message);
  // Generation blocks in which no message says anything.
  std::vector<Turn> stray_turns() const;

  // Lets the turn begin where the model starts to write: behind the generation prompt. False when
  // the messages so far are rendered otherwise here than for the prompt that the model gets when it
  // is served; then the turn begins where both part, if that is behind the message before, else
  // with what the message says.
  bool begin_behind_prompt(Turn& turn) const;

  // The special token that ends what an untrained message says.
  ByteRange stop_behind(int32_t message) const;

 private:
  // The first `messages` messages as the template renders them, where it does.
  std::optional<Rendered> rendered_part(size_t messages, bool with_prompt) const;
  // The conversation as it is rendered when this message is its last one.
  const std::optional<Rendered>& ending_with(size_t message);
  // How many bytes the text has in common with `other` from its beginning.
  int64_t shared_begin(const std::string& other) const;
  size_t own_count(size_t message, const std::vector<ByteRange>& pieces);
  int64_t word_begin(int64_t at) const;
  void find_marked();
  Turn content_turn(int32_t message);
  std::optional<ByteRange> stop_behind_calls(int32_t message, const ByteRange& behind);
  std::optional<int32_t> usual_stop() const;
  int64_t shared_tail(const ByteRange& behind) const;
  bool is_template(const ByteRange& range) const { return tail(range.begin).end >= range.end; }
  std::string_view part(const ByteRange& range) const;
  // The template's text behind `from`, up to the next piece that is not the template's.
  ByteRange tail(int64_t from) const;
  std::optional<ByteRange> first_special(const ByteRange& range) const;
  std::optional<ByteRange> last_special(const ByteRange& range) const;

  const Record& record_;
  const Conversation& conversation_;
  const Rendered& rendered_;
  const Encoding& encoding_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_;
  const RenderOptions render_options_;
  bool has_generation_prompt_;
  std::vector<ByteRange> content_;  // of each message, from its first content byte to its last
  std::vector<bool> is_marked_;
  std::vector<Turn> marked_;
  std::map<size_t, std::optional<Rendered>> ending_with_;
};

}  // namespace graft::data
