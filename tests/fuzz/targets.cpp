#include "tests/fuzz/targets.h"

#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "core/json.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::fuzz {
namespace {

const std::string kName = "fuzz";

// Runs `use`; a refusal of the file is what a hostile file should get.
template <class Use>
void expect_refusal_or_result(const Use& use) {
  try {
    use();
  } catch (const Error& error) {
    require(error.code() == ExitCode::kData, "a bad file is refused with exit code 3");
    require(!error.text().what.empty(), "an error says what is wrong");
  }
}

// Everything that a tokenizer does with a text, and what holds for any tokenizer.
void use_tokenizer(const data::Tokenizer& tokenizer, std::string_view text) {
  const data::Encoding encoding = tokenizer.encode(text);
  require(encoding.ids == tokenizer.encode_ids(text), "ids do not depend on the spans");
  require(encoding.spans.size() == encoding.ids.size(), "each token has a span");
  int64_t at = 0;
  for (const data::ByteRange& span : encoding.spans) {
    require(span.begin >= at && span.end >= span.begin, "spans are in order and disjoint");
    at = span.end;
  }
  require(at <= static_cast<int64_t>(text.size()), "spans lie in the text");
  for (const data::ByteRange& range : data::reference_offsets(text, encoding)) {
    require(range.begin >= 0 && range.end <= static_cast<int64_t>(text.size()),
            "offsets lie in the text");
  }
  require(data::is_valid_utf8(tokenizer.decode(encoding.ids)), "decoded text is UTF-8");
  data::StreamDecoder stream(tokenizer);
  for (const int32_t id : encoding.ids) {
    require(data::is_valid_utf8(stream.next(id)), "streamed text is UTF-8");
  }
  stream.finish();
  const data::EncodeOptions literal = {
      .special = true, .special_text = data::SpecialText::kLiteral, .literal = {}};
  tokenizer.encode(text, literal);
}

constexpr std::string_view kTexts[] = {
    "", " a  b\n\nthe printer",
    "Stra\u00DFe caf\u00E9 e\u0301 \u65E5\u672C \U0001F642 \u2581x 1234",
    "<s> <|im_end|>x</s>  it's WE'VE\t\r\n  ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};

void use_parts(std::unique_ptr<data::Tokenizer::Parts> parts, std::string_view text) {
  parts->finish();
  const data::Tokenizer tokenizer(std::move(parts));
  // Each text by itself: one that is refused must not hide the others.
  if (data::is_valid_utf8(text)) expect_refusal_or_result([&] { use_tokenizer(tokenizer, text); });
  for (const std::string_view known : kTexts) {
    expect_refusal_or_result([&] { use_tokenizer(tokenizer, known); });
  }
}

// The input up to the first zero byte, and what stands behind it.
std::pair<std::string_view, std::string_view> cut(std::string_view input) {
  const size_t zero = input.find('\0');
  if (zero == std::string_view::npos) return {input, {}};
  return {input.substr(0, zero), input.substr(zero + 1)};
}

constexpr std::string_view kConversation = R"([
  {"role": "system", "content": "be brief"}, {"role": "user", "content": " Stra\u00dfe? "},
  {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "id": "a1", "function":
    {"name": "f", "arguments": {"x": [1, 2.5, null, true, "\u2028"]}}}]},
  {"role": "tool", "name": "f", "content": "2"},
  {"role": "assistant", "content": "<think>so</think>two\n", "reasoning_content": "so"}])";
constexpr std::string_view kTools = R"([{"type": "function", "function":
  {"name": "f", "description": "adds", "parameters": {"type": "object"}}}])";

void render(const data::ChatTemplate& chat, const Json& messages, bool prompt) {
  data::RenderInput input;
  input.messages = messages;
  input.tools = prompt ? Json() : parse_json(kTools, kName);
  input.add_generation_prompt = prompt;
  input.vars = parse_json(R"({"bos_token": "<s>", "eos_token": "</s>"})", kName);
  input.now = "2026-11-22";
  const data::Rendered rendered = chat.render(input);
  require(data::is_valid_utf8(rendered.text), "rendered text is UTF-8");
  int64_t at = 0;
  for (const data::Piece& piece : rendered.pieces) {
    require(piece.begin == at && piece.end > piece.begin, "pieces cover the text in order");
    const bool has_message = piece.message >= 0;
    const bool needs_message =
        piece.origin == data::Origin::kContent || piece.origin == data::Origin::kField;
    require(has_message == needs_message, "content and fields name their message");
    at = piece.end;
  }
  require(at == static_cast<int64_t>(rendered.text.size()), "pieces cover the whole text");
  for (const data::ByteRange& range : rendered.generation) {
    require(range.begin >= 0 && range.begin <= range.end && range.end <= at,
            "generation blocks lie in the text");
  }
}

}  // namespace

void require(bool holds, const char* promise) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

void tokenizer_json(std::string_view input) {
  expect_refusal_or_result([&] {
    const auto [json, text] = cut(input);
    auto parts = std::make_unique<data::Tokenizer::Parts>();
    parts->name = kName;
    data::read_tokenizer_json(json, kName, *parts);
    use_parts(std::move(parts), text);
  });
}

void tokenizer_model(std::string_view input) {
  expect_refusal_or_result([&] {
    auto parts = std::make_unique<data::Tokenizer::Parts>();
    parts->name = kName;
    data::read_sentencepiece_model(std::string(input), kName, data::Legacy::kYes, *parts);
    use_parts(std::move(parts), "");
  });
}

void gguf(std::string_view input) {
  expect_refusal_or_result([&] {
    auto parts = std::make_unique<data::Tokenizer::Parts>();
    parts->name = kName;
    data::read_gguf_vocabulary(input, kName, *parts);
    use_parts(std::move(parts), "");
  });
}

void chat_template(std::string_view input) {
  const auto [source, messages] = cut(input);
  expect_refusal_or_result([&, source = source, messages = messages] {
    const data::ChatTemplate chat(std::string(source), kName);
    const Json given = parse_json(messages.empty() ? kConversation : messages, kName);
    expect_refusal_or_result([&] { render(chat, given, false); });
    expect_refusal_or_result([&] { render(chat, given, true); });
  });
}

}  // namespace graft::fuzz
