// One instruction example, whatever its file's schema was: everything becomes messages first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace graft::data {

enum class Schema {
  kAlpaca,            // {"instruction", "input"?, "output"}
  kPromptCompletion,  // {"prompt", "completion"|"response"}
  kMessages,          // {"messages": [{"role", "content"}, …]}
  kShareGpt,          // {"conversations": [{"from", "value"}, …]}
  kText,              // {"text"}: no turns, everything is trained on
  kSegments,    // {"segments": [{"text", "label": bool}, …]}: no template; label = trained on
  kTokens,      // {"input_ids": […], "labels"?: […]}: tokens already; -100 = not trained on
  kPreference,  // {"prompt"?, "chosen", "rejected"}: two answers to the same messages
};
std::string_view schema_name(Schema schema);

// How a message gave its content.
enum class Content : uint8_t {
  kText,
  kParts,   // a list of parts
  kNull,    // null, beside tool calls
  kAbsent,  // not at all, beside tool calls
};

struct Message {
  // "system", "user", "assistant", "tool"; "text" for kText; for kSegments "assistant" where the
  // label is true, else "user".
  std::string role;
  std::string content;  // a list of text parts is joined; null is ""
  // Other members of the message (tool_calls, train, weight, …) or null. Members that are null, at
  // any depth, are left out: Parquet pads records with them. Arguments of tool calls that are given
  // as a JSON text are objects here, as servers hand them to the template; null members inside such
  // a text stay.
  Json extra;
  Json parts;  // of Content::kParts
  Content given = Content::kText;
};

struct Record {
  Schema schema = Schema::kMessages;
  std::string id;      // the record's own "id" as text, or ""
  std::string source;  // the record's own "source", or ""
  std::vector<Message> messages;
  // kPreference only: the messages that stand in the place of messages[shared_messages..] (the
  // chosen answer) when the other answer is given. Both answers have at least one message.
  std::vector<Message> rejected;
  size_t shared_messages = 0;
  Json tools;  // "tools" of the record (given as a list or as its JSON text), or null
  // kTokens only; labels has input_ids' length or is empty (= all trained). Tokens that the
  // record's attention_mask hides (padding) are left out of both.
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;

  // All user/system text before the last assistant turn, joined by newlines; and the last assistant
  // turn. For kText the prompt is empty and the answer is the text.
  std::string prompt() const;
  std::string_view answer() const;
};

// Other names for what graft knows: {"messages", "dialogue"} reads the member "dialogue" as
// "messages". A member that stands under graft's own name beside it is ignored.
struct FieldMapping {
  struct Rename {
    std::string known;  // graft's name: messages, prompt, text, …; role, content, …
    std::string given;  // the file's name
  };
  std::vector<Rename> record;
  std::vector<Rename> message;
  std::vector<Rename> roles;  // known: user, assistant, system, tool; given: the file's speaker
  bool empty() const { return record.empty() && message.empty() && roles.empty(); }
};

// Whether preference pairs are wanted: who looks at `messages` alone would miss half of one.
enum class Pairs { kRefuse, kRead };

// Turns one JSON object into a record. An alpaca `input` follows the instruction after a blank
// line. Errors: kData naming the missing or mistyped member, and the known schemas when none fits.
Record parse_record(const Json& object,
                    std::string_view name,
                    const FieldMapping& mapping = {},
                    Pairs pairs = Pairs::kRefuse);

// One item of an input file, exactly as it stands there.
struct RawItem {
  int file = 0;       // index into the list of files
  int64_t index = 0;  // 0-based item number in its file
  int64_t line = 0;   // 1-based line of its first byte
  int64_t begin = 0;  // byte range of the item in its file (without the line end)
  int64_t end = 0;
  std::string_view raw;  // those bytes; valid while the source lives
};

// The items of JSONL files and JSON arrays (told apart by content), mapped, in order. Blank lines
// are not items. One item may hold at most 64 MiB. A JSON array that is damaged gives its items up
// to the damage and then one item with the rest; when only its final bracket is missing, that item
// is empty (read_record refuses it by name). Errors: kIo, kData (empty file).
class RecordSource {
 public:
  explicit RecordSource(std::vector<std::string> files);
  ~RecordSource();
  RecordSource(const RecordSource&) = delete;
  RecordSource& operator=(const RecordSource&) = delete;
  const std::vector<std::string>& files() const;
  bool is_array(int file) const;
  bool next(RawItem& item);
  // Bytes of a whole input file (restore needs what lies between the items).
  std::string_view file_bytes(int file) const;

 private:
  struct State;
  State* state_;
};

// parse_json + parse_record of one item, with file and line in the error.
Record read_record(const RecordSource& source,
                   const RawItem& item,
                   const FieldMapping& mapping = {},
                   Pairs pairs = Pairs::kRefuse);

}  // namespace graft::data
