#include "data/text/template.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "data/text/template_eval.h"

namespace graft::data {
namespace {

// The largest real template has 30 kB.
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

using jinja::Tag;
using jinja::Value;

// Members of a message that are what it says, not how it is labelled.
constexpr std::array<std::string_view, 5> kSaidMembers = {"content", "reasoning_content",
                                                          "reasoning", "thinking", "tool_calls"};

// A thought goes by three names, and templates read either of the first two: transformers fills
// `reasoning_content` and `thinking` from whichever is given, in this order.
Json with_thought_names(const Json& message) {
  for (const std::string_view name : {"reasoning_content", "thinking", "reasoning"}) {
    const Json* thought = message.find(name);
    if (!thought || thought->is_null()) continue;
    const Json value = *thought;
    Json named = Json::object({{"thinking", value}});
    for (const auto& [key, member] : message.as_object()) named.set(key, member);
    named.set("reasoning_content", value);
    return named;
  }
  return message;
}

Value message_value(const Json& given, int32_t index) {
  const Tag field = {Origin::kField, index, 0};
  if (!given.is_object()) return Value::from_json(given, field);
  const Json message = with_thought_names(given);
  std::vector<std::pair<std::shared_ptr<const jinja::Text>, Value>> members;
  for (const auto& [key, value] : message.as_object()) {
    const bool is_said =
        std::find(kSaidMembers.begin(), kSaidMembers.end(), key) != kSaidMembers.end();
    members.emplace_back(
        std::make_shared<jinja::Text>(key, field),
        Value::from_json(value, is_said ? Tag{Origin::kContent, index, 0} : field));
  }
  return Value::dict(std::move(members), field);
}

std::vector<Piece> pieces_of(const jinja::Text& text) {
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (const jinja::Text::Run& run : text.runs()) {
    const Piece piece = {begin, static_cast<int64_t>(run.end), run.tag.origin, run.tag.message,
                         run.tag.generation > 0};
    begin = piece.end;
    const bool joins = !pieces.empty() && pieces.back().origin == piece.origin &&
                       pieces.back().message == piece.message &&
                       pieces.back().generation == piece.generation;
    if (joins) {
      pieces.back().end = piece.end;
    } else {
      pieces.push_back(piece);
    }
  }
  return pieces;
}

// Special tokens of a settings file, as the variables that transformers gives to a template.
void add_special_tokens(const Json& settings, Json& variables) {
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    const Json* value = settings.find(name);
    if (value && value->is_object()) value = value->find("content");
    if (value && value->is_string() && !variables.find(name)) variables.set(name, *value);
  }
}

Json settings_of(const std::string& directory, std::string_view name) {
  const std::string path = join_path(directory, name);
  return file_exists(path) ? read_json_file(path) : Json::object();
}

}  // namespace

struct Conversation::Values {
  std::vector<Value> messages;
  Value tools;
};

Conversation::Conversation(const Json& messages, const Json& tools) {
  if (!messages.is_array()) {
    fail(ExitCode::kData, "messages must be an array, got " + std::string(messages.type_name()));
  }
  auto values = std::make_shared<Values>();
  values->messages.reserve(messages.size());
  for (const Json& message : messages.as_array()) {
    values->messages.push_back(
        message_value(message, static_cast<int32_t>(values->messages.size())));
  }
  values->tools = Value::from_json(tools, {Origin::kInput, -1, 0});
  values_ = std::move(values);
}

size_t Conversation::size() const {
  return values_->messages.size();
}

struct ChatTemplate::Program {
  std::string text;
  std::string name;
  std::string digest;
  jinja::Tree tree;
  jinja::Variables defaults;
  int32_t messages = jinja::kNoName;  // numbers of the variables that every render has
  int32_t tools = jinja::kNoName;
  int32_t add_generation_prompt = jinja::kNoName;
};

namespace {

void add_variables(const Json& variables,
                   Origin origin,
                   const jinja::Tree& tree,
                   jinja::Variables& out) {
  if (variables.is_null()) return;
  for (const auto& [name, value] : variables.as_object()) {
    const int32_t number = tree.number_of(name);
    if (number == jinja::kNoName) continue;
    const bool is_token = name.ends_with("_token");
    out.emplace_back(number,
                     Value::from_json(value, {is_token ? Origin::kTemplate : origin, -1, 0}));
  }
}

}  // namespace

ChatTemplate::ChatTemplate(std::string text, std::string name, Json default_vars) {
  if (text.size() > kMaxTemplateBytes) {
    fail(ExitCode::kData,
         "a template must have at most " + std::to_string(kMaxTemplateBytes) + " bytes, got " +
             std::to_string(text.size()),
         name);
  }
  auto program = std::make_unique<Program>();
  program->tree = jinja::parse_template(text, name);
  program->digest = sha256_hex(sha256_hex(text) + dump_json(default_vars, {.sort_keys = true}));
  program->text = std::move(text);
  program->name = std::move(name);
  program->messages = program->tree.number_of("messages");
  program->tools = program->tree.number_of("tools");
  program->add_generation_prompt = program->tree.number_of("add_generation_prompt");
  program->defaults.emplace_back(program->tree.number_of("documents"), Value::none());
  add_variables(default_vars, Origin::kTemplate, program->tree, program->defaults);
  program_ = std::move(program);
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::optional<ChatTemplate> ChatTemplate::load(const std::string& model_dir,
                                               std::string_view variant) {
  const Json config = settings_of(model_dir, "tokenizer_config.json");
  Json variables = Json::object();
  add_special_tokens(config, variables);
  add_special_tokens(settings_of(model_dir, "special_tokens_map.json"), variables);
  const std::string file = join_path(model_dir, "chat_template.jinja");
  if (variant.empty() && file_exists(file)) return ChatTemplate(read_file(file), file, variables);
  const Json* value = config.find("chat_template");
  if (!value || value->is_null()) return std::nullopt;
  const std::string name = join_path(model_dir, "tokenizer_config.json") + ": chat_template";
  if (value->is_string()) return ChatTemplate(value->as_string(), name, variables);
  const std::string wanted = variant.empty() ? "default" : std::string(variant);
  std::vector<std::string_view> known;
  for (const Json& entry : value->as_array()) {
    known.push_back(entry.at("name").as_string());
    if (known.back() == wanted) {
      return ChatTemplate(entry.at("template").as_string(), name + " \"" + wanted + "\"",
                          variables);
    }
  }
  fail(ExitCode::kData, unknown_name("chat template", wanted, known), name);
}

Rendered ChatTemplate::render(const RenderInput& input) const {
  return render(Conversation(input.messages, input.tools), input.messages.size(), input);
}

Rendered ChatTemplate::render(const Conversation& conversation,
                              size_t messages,
                              const RenderOptions& options) const {
  const std::vector<Value>& all = conversation.values_->messages;
  jinja::RunInput run;
  run.now = options.now;
  run.defaults = &program_->defaults;
  run.variables.emplace_back(
      program_->messages,
      Value::list(std::vector<Value>(
          all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::min(messages, all.size())))));
  run.variables.emplace_back(program_->tools, conversation.values_->tools);
  run.variables.emplace_back(program_->add_generation_prompt,
                             Value::boolean(options.add_generation_prompt));
  add_variables(options.vars, Origin::kInput, program_->tree, run.variables);
  jinja::RunResult result = jinja::run_template(program_->tree, program_->name, run);
  std::vector<Piece> pieces = pieces_of(result.text);
  return {std::move(result.text).take_bytes(), std::move(pieces), std::move(result.generation)};
}

bool ChatTemplate::marks_generation() const {
  return program_->tree.has_generation;
}
const std::string& ChatTemplate::text() const {
  return program_->text;
}
const std::string& ChatTemplate::name() const {
  return program_->name;
}
const std::string& ChatTemplate::digest() const {
  return program_->digest;
}

}  // namespace graft::data
