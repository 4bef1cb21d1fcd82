#include "data/records/record.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace graft::data {
namespace {

struct SchemaRow {
  Schema schema;
  std::string_view name;
  std::string_view shape;  // shown when no schema fits
};

constexpr std::array<SchemaRow, 8> kSchemas = {{
    {Schema::kAlpaca, "alpaca", R"({"instruction", "input"?, "output"})"},
    {Schema::kPromptCompletion, "prompt-completion", R"({"prompt", "completion"})"},
    {Schema::kMessages, "messages", R"({"messages": [{"role", "content"}]})"},
    {Schema::kShareGpt, "sharegpt", R"({"conversations": [{"from", "value"}]})"},
    {Schema::kText, "text", R"({"text"})"},
    {Schema::kSegments, "segments", R"({"segments": [{"text", "label"}]})"},
    {Schema::kTokens, "tokens", R"({"input_ids", "labels"?})"},
    {Schema::kPreference, "preference", R"({"prompt", "chosen", "rejected"})"},
}};

struct RoleAlias {
  std::string_view name;
  std::string_view role;
};

// The names that ShareGPT-like files use. function_call is a turn of the model.
constexpr std::array<RoleAlias, 16> kRoleAliases = {{
    {"human", "user"},
    {"user", "user"},
    {"gpt", "assistant"},
    {"assistant", "assistant"},
    {"model", "assistant"},
    {"chatgpt", "assistant"},
    {"bot", "assistant"},
    {"bing", "assistant"},
    {"bard", "assistant"},
    {"function_call", "assistant"},
    {"system", "system"},
    {"tool", "tool"},
    {"function", "tool"},
    {"observation", "tool"},
    {"tool_response", "tool"},
    {"function_response", "tool"},
}};

std::string place(std::string_view name, const Json& value, std::string_view member) {
  std::string where(name);
  if (value.mark().line > 0) {
    where += ":" + std::to_string(value.mark().line) + ":" + std::to_string(value.mark().column);
  }
  return member.empty() ? where : where + ": " + std::string(member);
}

const std::string& string_member(const Json& object, std::string_view key, std::string_view name) {
  const Json* value = object.find(key);
  if (value == nullptr) {
    fail(ExitCode::kData, "the record has no \"" + std::string(key) + "\"", place(name, object, ""),
         "add \"" + std::string(key) + "\" as a string");
  }
  if (!value->is_string()) {
    fail(ExitCode::kData,
         "\"" + std::string(key) + "\" must be a string, got " + std::string(value->type_name()),
         place(name, *value, key), "write it as a JSON string");
  }
  return value->as_string();
}

// A member that may be absent or null.
std::string optional_string(const Json& object, std::string_view key, std::string_view name) {
  const Json* value = object.find(key);
  if (value == nullptr || value->is_null()) {
    return "";
  }
  return string_member(object, key, name);
}

// Content is a string, null beside tool calls, or a list of text parts (joined as they stand).
std::string content_text(const Json& content, std::string_view name) {
  if (content.is_string()) {
    return content.as_string();
  }
  if (content.is_null()) {
    return "";
  }
  if (!content.is_array()) {
    fail(ExitCode::kData,
         "message content must be a string or a list of parts, got " +
             std::string(content.type_name()),
         place(name, content, "content"), "write the content as a JSON string");
  }
  std::string text;
  for (const Json& part : content.as_array()) {
    if (part.is_string()) {
      text += part.as_string();
      continue;
    }
    const Json* part_text = part.find("text");
    if (part_text == nullptr || !part_text->is_string()) {
      const Json* type = part.find("type");
      const std::string kind = type != nullptr && type->is_string() ? type->as_string() : "unknown";
      fail(ExitCode::kData, "a content part of type \"" + kind + "\" is not text",
           place(name, part, "content"), "remove the record: graft trains on text");
    }
    text += part_text->as_string();
  }
  return text;
}

std::string canonical_role(const std::string& role,
                           bool strict,
                           const Json& at,
                           std::string_view name) {
  for (const RoleAlias& alias : kRoleAliases) {
    if (alias.name == role) {
      return std::string(alias.role);
    }
  }
  if (!strict) {
    return role;  // chat templates may know roles of their own
  }
  std::array<std::string_view, kRoleAliases.size()> known;
  for (size_t i = 0; i < known.size(); ++i) {
    known[i] = kRoleAliases[i].name;
  }
  fail(ExitCode::kData, unknown_name("speaker", role, known), place(name, at, "from"),
       "rename the speaker to human, gpt, system or tool");
}

// The value without null members, at any depth.
Json without_nulls(const Json& value) {
  if (value.is_array()) {
    Json list = Json::array();
    for (const Json& item : value.as_array()) list.push_back(without_nulls(item));
    return list;
  }
  if (!value.is_object()) return value;
  Json object = Json::object();
  for (const auto& [key, member] : value.as_object()) {
    if (!member.is_null()) object.set(key, without_nulls(member));
  }
  return object;
}

// What a JSON text says, or null when it is none.
Json parsed_text(const Json& value, std::string_view name) {
  if (!value.is_string()) return nullptr;
  try {
    return parse_json(value.as_string(), name);
  } catch (const Error&) {
    return nullptr;
  }
}

// Tool calls with their arguments as objects.
Json with_parsed_arguments(Json calls, std::string_view name) {
  if (!calls.is_array()) return calls;
  const auto parse_member = [&](Json& call) {
    const Json* arguments = call.find("arguments");
    if (arguments == nullptr) return;
    Json parsed = parsed_text(*arguments, name);
    if (parsed.is_object()) call.set("arguments", std::move(parsed));
  };
  for (Json& call : calls.as_array()) {
    if (!call.is_object()) continue;
    parse_member(call);
    for (auto& [key, member] : call.as_object()) {
      if (key == "function" && member.is_object()) parse_member(member);
    }
  }
  return calls;
}

Message parse_message(const Json& turn, Schema schema, std::string_view name) {
  if (!turn.is_object()) {
    fail(ExitCode::kData, "a message must be an object, got " + std::string(turn.type_name()),
         place(name, turn, ""), R"(write {"role": "user", "content": "..."})");
  }
  const bool from_value = turn.find("role") == nullptr && turn.find("from") != nullptr;
  const std::string_view role_key = from_value ? "from" : "role";
  const std::string_view content_key =
      turn.find("content") == nullptr && turn.find("value") != nullptr ? "value" : "content";
  Message message;
  message.role =
      canonical_role(string_member(turn, role_key, name), schema == Schema::kShareGpt, turn, name);
  const Json* content = turn.find(content_key);
  const Json* calls = turn.find("tool_calls");
  const bool has_calls = calls != nullptr && !calls->is_null();
  if (content == nullptr && !has_calls) {
    fail(ExitCode::kData, "a message has no \"" + std::string(content_key) + "\"",
         place(name, turn, ""), "add it as a string");
  }
  if (content == nullptr) {
    message.given = Content::kAbsent;
  } else {
    message.content = content_text(*content, name);
    if (content->is_null() && has_calls) message.given = Content::kNull;
    if (content->is_array()) {
      message.given = Content::kParts;
      message.parts = without_nulls(*content);
    }
  }
  for (const auto& [key, value] : turn.as_object()) {
    if (key == role_key || key == content_key || value.is_null()) continue;
    Json given = without_nulls(value);
    if (key == "tool_calls") given = with_parsed_arguments(std::move(given), name);
    message.extra.set(key, std::move(given));
  }
  return message;
}

void append_messages(const Json& turns,
                     Record& record,
                     std::string_view member,
                     std::string_view name) {
  if (!turns.is_array() || turns.size() == 0) {
    fail(ExitCode::kData,
         "\"" + std::string(member) + "\" must be a list of at least one message, got " +
             (turns.is_array() ? std::string("an empty list") : std::string(turns.type_name())),
         place(name, turns, member), "list the turns as objects");
  }
  for (const Json& turn : turns.as_array()) {
    record.messages.push_back(parse_message(turn, record.schema, name));
  }
}

void append_system(const Json& object, Record& record, std::string_view name) {
  std::string text = optional_string(object, "system", name);
  if (!text.empty()) {
    record.messages.push_back({"system", std::move(text), {}, {}});
  }
}

void parse_alpaca(const Json& object, Record& record, std::string_view name) {
  append_system(object, record, name);
  std::string prompt = string_member(object, "instruction", name);
  // Dolly names the two fields "context" and "response".
  const std::string input =
      optional_string(object, object.find("input") != nullptr ? "input" : "context", name);
  if (!input.empty()) {
    prompt += "\n\n";
    prompt += input;
  }
  const bool response = object.find("output") == nullptr && object.find("response") != nullptr;
  record.messages.push_back({"user", std::move(prompt), {}, {}});
  record.messages.push_back(
      {"assistant", string_member(object, response ? "response" : "output", name), {}, {}});
}

void parse_prompt_completion(const Json& object, Record& record, std::string_view name) {
  append_system(object, record, name);
  const std::string_view answer_key =
      object.find("completion") == nullptr && object.find("response") != nullptr ? "response"
                                                                                 : "completion";
  for (const std::string_view key : {std::string_view("prompt"), answer_key}) {
    const Json* value = object.find(key);
    if (value != nullptr && value->is_array()) {
      append_messages(*value, record, key, name);
    } else {
      record.messages.push_back(
          {key == "prompt" ? "user" : "assistant", string_member(object, key, name), {}, {}});
    }
  }
}

bool same_message(const Message& a, const Message& b) {
  return a.role == b.role && a.content == b.content && a.given == b.given && a.extra == b.extra &&
         a.parts == b.parts;
}

// The messages of "chosen" or "rejected": an answer, or a conversation with the answer at its end.
std::vector<Message> parse_answer(const Json& object, std::string_view key, std::string_view name) {
  if (!object.at(key).is_array()) {
    return {{"assistant", string_member(object, key, name), {}, {}}};
  }
  Record answer;
  append_messages(object.at(key), answer, key, name);
  return std::move(answer.messages);
}

void parse_preference(const Json& object, Record& record, std::string_view name) {
  std::vector<Message> chosen = parse_answer(object, "chosen", name);
  record.rejected = parse_answer(object, "rejected", name);
  const auto is_answer = [](const std::vector<Message>& messages) {
    return messages.front().role == "assistant";
  };
  const Json* prompt = object.find("prompt");
  if (is_answer(chosen) != is_answer(record.rejected)) {
    fail(ExitCode::kData,
         "one of \"chosen\" and \"rejected\" is an answer, the other a conversation",
         place(name, object, ""), "write both in the same way");
  }
  if (is_answer(chosen) && (prompt == nullptr || prompt->is_null())) {
    fail(ExitCode::kData, "the record has two answers and no \"prompt\"", place(name, object, ""),
         "add \"prompt\" as a string or a list of messages");
  }
  append_system(object, record, name);
  if (is_answer(chosen)) {
    if (prompt->is_array()) {
      append_messages(*prompt, record, "prompt", name);
    } else {
      record.messages.push_back({"user", string_member(object, "prompt", name), {}, {}});
    }
  }
  // What both begin with is their prompt.
  const auto [behind, rejected_behind] = std::mismatch(
      chosen.begin(), chosen.end(), record.rejected.begin(), record.rejected.end(), same_message);
  if (behind == chosen.end() || rejected_behind == record.rejected.end()) {
    fail(ExitCode::kData,
         behind == chosen.end() && rejected_behind == record.rejected.end()
             ? "\"chosen\" and \"rejected\" are the same"
             : "one of \"chosen\" and \"rejected\" is the beginning of the other",
         place(name, object, ""), "leave the record out: it says nothing about what is better");
  }
  record.messages.insert(record.messages.end(), std::make_move_iterator(chosen.begin()),
                         std::make_move_iterator(behind));
  record.shared_messages = record.messages.size();
  if (record.shared_messages == 0) {
    fail(ExitCode::kData, "the conversations of \"chosen\" and \"rejected\" share no message",
         place(name, object, ""), "both must begin with the same prompt");
  }
  record.messages.insert(record.messages.end(), std::make_move_iterator(behind),
                         std::make_move_iterator(chosen.end()));
  record.rejected.erase(record.rejected.begin(), rejected_behind);
}

void parse_segments(const Json& object, Record& record, std::string_view name) {
  const Json& segments = object.at("segments");
  if (!segments.is_array() || segments.size() == 0) {
    fail(ExitCode::kData,
         "\"segments\" must be a list of at least one segment, got " +
             (segments.is_array() ? std::string("an empty list")
                                  : std::string(segments.type_name())),
         place(name, segments, "segments"), R"(write [{"text": "...", "label": true}])");
  }
  for (const Json& segment : segments.as_array()) {
    const Json* label = segment.find("label");
    if (label == nullptr || !label->is_bool()) {
      fail(ExitCode::kData, "a segment needs \"label\": true (trained on) or false",
           place(name, segment, "segments"), R"(write {"text": "...", "label": true})");
    }
    record.messages.push_back(
        {label->as_bool() ? "assistant" : "user", string_member(segment, "text", name), {}, {}});
  }
}

// A list of integers of `length` items (0 = any).
std::vector<int32_t> integer_list(const Json& object,
                                  std::string_view key,
                                  size_t length,
                                  std::string_view name) {
  const Json& list = object.at(key);
  std::vector<int32_t> values;
  if (list.is_array()) {
    for (const Json& item : list.as_array()) {
      if (!item.is_int() || item.as_int() < INT32_MIN || item.as_int() > INT32_MAX) break;
      values.push_back(static_cast<int32_t>(item.as_int()));
    }
  }
  const bool is_whole = list.is_array() && values.size() == list.size();
  if (!is_whole || values.empty() || (length > 0 && values.size() != length)) {
    fail(ExitCode::kData,
         "\"" + std::string(key) + "\" must be a list of " +
             (length > 0 ? std::to_string(length) + " " : std::string()) + "integers, got " +
             (is_whole ? std::to_string(values.size()) : std::string(list.type_name())),
         place(name, list, key), "give one integer a token");
  }
  return values;
}

void parse_tokens(const Json& object, Record& record, std::string_view name) {
  record.input_ids = integer_list(object, "input_ids", 0, name);
  const size_t length = record.input_ids.size();
  if (object.find("labels") != nullptr) {
    record.labels = integer_list(object, "labels", length, name);
  }
  if (object.find("attention_mask") == nullptr) {
    return;
  }
  const std::vector<int32_t> visible = integer_list(object, "attention_mask", length, name);
  size_t kept = 0;
  for (size_t i = 0; i < length; ++i) {
    if (visible[i] == 0) continue;
    record.input_ids[kept] = record.input_ids[i];
    if (!record.labels.empty()) record.labels[kept] = record.labels[i];
    ++kept;
  }
  record.input_ids.resize(kept);
  if (!record.labels.empty()) record.labels.resize(kept);
}

// The object with the file's own names replaced by graft's.
Json renamed(const Json& object, const std::vector<FieldMapping::Rename>& renames) {
  Json result = Json::object();
  result.set_mark(object.mark());
  for (const auto& [key, value] : object.as_object()) {
    std::string_view name = key;
    bool is_shadowed = false;
    for (const FieldMapping::Rename& rename : renames) {
      if (rename.given == key) {
        name = rename.known;
      } else if (rename.known == key && object.find(rename.given) != nullptr) {
        is_shadowed = true;
      }
    }
    if (!is_shadowed) result.set(std::string(name), value);
  }
  return result;
}

Json mapped(const Json& object, const FieldMapping& mapping) {
  Json result = renamed(object, mapping.record);
  for (const std::string_view key : {"messages", "conversations", "chosen", "rejected"}) {
    const Json* turns = result.find(key);
    if (turns == nullptr || !turns->is_array()) continue;
    Json list = Json::array();
    list.set_mark(turns->mark());
    for (const Json& turn : turns->as_array()) {
      Json one = turn.is_object() ? renamed(turn, mapping.message) : turn;
      for (const std::string_view member : {"role", "from"}) {
        const Json* role = one.find(member);
        if (role == nullptr || !role->is_string()) continue;
        for (const FieldMapping::Rename& rename : mapping.roles) {
          if (rename.given == role->as_string()) {
            one.set(std::string(member), rename.known);
            break;
          }
        }
      }
      list.push_back(std::move(one));
    }
    result.set(std::string(key), std::move(list));
  }
  return result;
}

Schema detect(const Json& object, Pairs pairs, std::string_view name) {
  if (object.find("messages") != nullptr) {
    return Schema::kMessages;
  }
  if (object.find("conversations") != nullptr) {
    return Schema::kShareGpt;
  }
  if (object.find("instruction") != nullptr) {
    return Schema::kAlpaca;
  }
  if (object.find("chosen") != nullptr && object.find("rejected") != nullptr) {
    if (pairs == Pairs::kRead) return Schema::kPreference;
    fail(ExitCode::kData,
         "the record is a preference pair (\"chosen\" and \"rejected\"), which only `graft data "
         "tokenize` reads",
         place(name, object, ""), R"(write the better answer as {"prompt", "completion"})");
  }
  if (object.find("prompt") != nullptr) {
    return Schema::kPromptCompletion;
  }
  if (object.find("segments") != nullptr) {
    return Schema::kSegments;
  }
  if (object.find("input_ids") != nullptr) {
    return Schema::kTokens;
  }
  if (object.find("text") != nullptr) {
    return Schema::kText;
  }
  std::string known;
  for (const SchemaRow& row : kSchemas) {
    known += (known.empty() ? "" : ", ") + std::string(row.name) + " " + std::string(row.shape);
  }
  std::string keys;
  for (const auto& [key, value] : object.as_object()) {
    if (keys.size() > 200) {
      keys += ", ...";
      break;
    }
    keys += (keys.empty() ? "" : ", ") + key;
  }
  fail(ExitCode::kData, "the record fits no known schema; its members: " + keys,
       place(name, object, ""), "use one of " + known);
}

bool is_context(const Message& message) {
  return message.role == "user" || message.role == "system" || message.role == "developer";
}

}  // namespace

std::string_view schema_name(Schema schema) {
  for (const SchemaRow& row : kSchemas) {
    if (row.schema == schema) {
      return row.name;
    }
  }
  fail(ExitCode::kBug, "schema without a name");
}

std::string Record::prompt() const {
  size_t last = messages.size();
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role == "assistant") {
      last = i;
      break;
    }
  }
  std::string text;
  bool first = true;
  for (size_t i = 0; i < last; ++i) {
    if (is_context(messages[i])) {
      text += first ? "" : "\n";
      text += messages[i].content;
      first = false;
    }
  }
  return text;
}

std::string_view Record::answer() const {
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role == "assistant" || messages[i].role == "text") {
      return messages[i].content;
    }
  }
  return "";
}

Record parse_record(const Json& object,
                    std::string_view name,
                    const FieldMapping& mapping,
                    Pairs pairs) {
  if (!object.is_object()) {
    fail(ExitCode::kData, "a record must be a JSON object, got " + std::string(object.type_name()),
         place(name, object, ""), "write one object per record");
  }
  if (!mapping.empty()) {
    return parse_record(mapped(object, mapping), name, {}, pairs);
  }
  Record record;
  record.schema = detect(object, pairs, name);
  if (const Json* id = object.find("id"); id != nullptr) {
    record.id = id->is_string() ? id->as_string()
                : id->is_int()  ? std::to_string(id->as_int())
                                : "";
  }
  if (const Json* source = object.find("source"); source != nullptr && source->is_string()) {
    record.source = source->as_string();
  }
  if (const Json* tools = object.find("tools"); tools != nullptr) {
    const Json parsed = parsed_text(*tools, name);
    record.tools = parsed.is_array() ? parsed : without_nulls(*tools);
  }
  switch (record.schema) {
    case Schema::kAlpaca:
      parse_alpaca(object, record, name);
      break;
    case Schema::kPromptCompletion:
      parse_prompt_completion(object, record, name);
      break;
    case Schema::kMessages:
      append_messages(object.at("messages"), record, "messages", name);
      break;
    case Schema::kShareGpt:
      append_system(object, record, name);
      append_messages(object.at("conversations"), record, "conversations", name);
      break;
    case Schema::kText:
      record.messages.push_back({"text", string_member(object, "text", name), {}, {}});
      break;
    case Schema::kSegments:
      parse_segments(object, record, name);
      break;
    case Schema::kTokens:
      parse_tokens(object, record, name);
      break;
    case Schema::kPreference:
      parse_preference(object, record, name);
      break;
  }
  return record;
}

}  // namespace graft::data
