// Chat templates: an interpreter for the part of Jinja that Hugging Face templates use, which keeps
// for every byte of the output where it came from.
//
// The environment equals transformers': trim_blocks, lstrip_blocks, no kept trailing newline, loop
// controls, {% generation %}, raise_exception, strftime_now, tojson without HTML escapes. What it
// does not know it refuses by name with line:column; it never guesses.
//
// A template is untrusted code. Limits for one render: 5 million steps, 200 levels of calls,
// 64 MiB of output.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "data/text/tokenizer.h"

namespace graft::data {

enum class Origin : uint8_t {
  kTemplate,  // written by the template itself, or bos_token and the other special-token variables
  kContent,   // what a message says: content, reasoning_content, thinking, tool_calls
  kField,     // another member of a message: role, name, ...
  kInput,     // tools, documents and the caller's variables
};

struct Piece {
  int64_t begin = 0;  // bytes [begin, end) of the text
  int64_t end = 0;
  Origin origin = Origin::kTemplate;
  int32_t message = -1;     // index of the message for kContent and kField, else -1
  bool generation = false;  // inside {% generation %}
  friend bool operator==(const Piece&, const Piece&) = default;
};

struct RenderOptions {
  bool add_generation_prompt = false;
  Json vars;        // further variables (object or null); they win over the template's defaults
  std::string now;  // "YYYY-MM-DD" for strftime_now; "" = a template that asks for it is refused
};

// Messages and tools as templates see them, made once for several renders. Thread-safe.
class Conversation {
 public:
  // messages: [{"role", "content", …}, …]; tools: null = none. Errors: kData (no array).
  explicit Conversation(const Json& messages, const Json& tools = nullptr);
  size_t size() const;  // messages

 private:
  friend class ChatTemplate;
  struct Values;
  std::shared_ptr<const Values> values_;
};

// A conversation for one render.
struct RenderInput : RenderOptions {
  Json messages = Json::array();
  Json tools;
};

struct Rendered {
  std::string text;
  std::vector<Piece> pieces;          // in order, together the whole text, neighbours differ
  std::vector<ByteRange> generation;  // one per {% generation %} block that ran, in order
};

class ChatTemplate {
 public:
  // Errors: kData with name:line:column (syntax, or a feature that graft does not know).
  ChatTemplate(std::string text, std::string name, Json default_vars = nullptr);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // The template of a model directory: chat_template.jinja, else `chat_template` of
  // tokenizer_config.json (a string, or a list of named ones: "default" unless `variant` says
  // otherwise). The special tokens of tokenizer_config.json and special_tokens_map.json become
  // variables. nullopt when the directory has none. Errors: kData, kIo.
  static std::optional<ChatTemplate> load(const std::string& model_dir,
                                          std::string_view variant = "");

  // Thread-safe. Errors: kData with name:line:column (raise_exception, undefined values, limits).
  Rendered render(const RenderInput& input) const;
  // The first `messages` messages of a conversation.
  Rendered render(const Conversation& conversation,
                  size_t messages,
                  const RenderOptions& options) const;

  bool marks_generation() const;  // has a {% generation %} block
  const std::string& text() const;
  const std::string& name() const;
  const std::string& digest() const;  // SHA-256 (hex) of the text and the default variables

 private:
  struct Program;
  std::unique_ptr<const Program> program_;
};

}  // namespace graft::data
