// graft data encode, decode, render: one line of stdin is answered by one line of stdout.
#include <algorithm>
#include <array>
#include <functional>
#include <iostream>
#include <optional>
#include <span>

#include "core/error.h"
#include "core/file.h"
#include "data/text/command_parts.h"
#include "data/text/encode_lines.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// parse_json counts lines within its text, which is one line of stdin.
Json parse_line(std::string_view line, int64_t number) {
  try {
    return parse_json(line, "stdin");
  } catch (const Error& error) {
    constexpr std::string_view kFirst = "stdin:1:";
    ErrorText text = error.text();
    if (text.where.rfind(kFirst, 0) == 0) {
      text.where = "stdin:" + std::to_string(number) + ":" + text.where.substr(kFirst.size());
    }
    fail(error.code(), text.what, text.where, text.fix);
  }
}

// A member that is nearly one of those that are known. Others may stand in the line.
void refuse_typos(const Json& row,
                  std::span<const std::string_view> known,
                  const std::string& where) {
  if (!row.is_object()) return;
  for (const auto& [key, value] : row.as_object()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    if (nearest_name(key, known).empty()) continue;
    fail(ExitCode::kData, unknown_name("member", key, known), where, "correct the member's name");
  }
}

int answer_lines(std::span<const std::string_view> known,
                 const std::function<Json(const Json&, const std::string& where)>& answer) {
  std::ios::sync_with_stdio(false);
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = "stdin:" + std::to_string(number);
    const Json row = parse_line(line, number);
    refuse_typos(row, known, where);
    try {
      print_json(answer(row, where));
    } catch (const Error& error) {
      const ErrorText& text = error.text();
      const bool is_placed = text.where.starts_with(where);
      fail(error.code(), text.what, is_placed ? text.where : where + ": " + text.where, text.fix);
    }
  }
  if (std::cin.bad()) fail_io("cannot read", "stdin");
  flush_stdout();
  return 0;
}

const Json& need_member(const Json& object, std::string_view key, const std::string& where) {
  const Json* value = object.find(key);
  if (value) return *value;
  fail(ExitCode::kData, "each line must be an object with \"" + std::string(key) + "\"", where,
       "write lines like {\"" + std::string(key) + "\": …}");
}

Json ranges_json(const std::vector<ByteRange>& ranges) {
  Json list = Json::array();
  for (const ByteRange& range : ranges) list.push_back(Json::array({range.begin, range.end}));
  return list;
}

}  // namespace

int run_encode(const Args& args) {
  const auto tokenizer = load_tokenizer(args.need("--tokenizer"));
  EncodeOptions options;
  options.special = args.flag("--special");
  if (args.flag("--literal")) options.special_text = SpecialText::kLiteral;
  LineEncoder encoder(*tokenizer, options);
  constexpr size_t kFlushBytes = size_t{1} << 18;
  std::ios::sync_with_stdio(false);
  std::string line;
  std::string out;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (!encoder.answer(line, out)) {
      const std::string where = "stdin:" + std::to_string(number);
      const Json& text = need_member(parse_line(line, number), "text", where);
      fail(ExitCode::kData, "\"text\" must be a string, got " + std::string(text.type_name()),
           where, "write lines like {\"text\": \"…\"}");
    }
    // Someone who writes a line and waits gets the answer.
    if (out.size() < kFlushBytes && std::cin.rdbuf()->in_avail() > 0) continue;
    print(out);
    flush_stdout();
    out.clear();
  }
  if (std::cin.bad()) fail_io("cannot read", "stdin");
  print(out);
  flush_stdout();
  return 0;
}

int run_decode(const Args& args) {
  const auto tokenizer = load_tokenizer(args.need("--tokenizer"));
  const auto skip =
      args.flag("--skip-special") ? Tokenizer::SkipSpecial::kYes : Tokenizer::SkipSpecial::kNo;
  constexpr std::array<std::string_view, 1> kMembers = {"ids"};
  return answer_lines(kMembers, [&](const Json& row, const std::string& where) {
    std::vector<int32_t> ids;
    for (const Json& id : need_member(row, "ids", where).as_array()) {
      ids.push_back(static_cast<int32_t>(std::clamp<int64_t>(id.as_int(), -1, INT32_MAX)));
    }
    Json answer = Json::object();
    answer.set("text", tokenizer->decode(ids, skip));
    return answer;
  });
}

namespace {

ChatTemplate template_of(const Args& args) {
  if (args.has("--template") == args.has("--model")) {
    fail(ExitCode::kUsage, "render needs --template FILE or --model DIR, one of them");
  }
  if (args.has("--template")) {
    const std::string file = args.need("--template");
    return ChatTemplate(read_file(file), file);
  }
  std::optional<ChatTemplate> chat = ChatTemplate::load(args.need("--model"));
  if (!chat) {
    fail(ExitCode::kData, "the model has no chat template", args.need("--model"),
         "add chat_template.jinja to the directory, or use --template FILE");
  }
  return std::move(*chat);
}

// Byte ranges as ranges of code points.
std::vector<ByteRange> in_characters(std::string_view text, const std::vector<ByteRange>& ranges) {
  std::vector<ByteRange> result;
  for (const ByteRange& range : ranges) {
    const auto begin =
        static_cast<int64_t>(utf8_count(text.substr(0, static_cast<size_t>(range.begin))));
    const auto length = static_cast<int64_t>(utf8_count(text.substr(
        static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin))));
    result.push_back({begin, begin + length});
  }
  return result;
}

}  // namespace

int run_render(const Args& args) {
  const ChatTemplate chat = template_of(args);
  constexpr std::array<std::string_view, 4> kMembers = {"messages", "tools",
                                                        "add_generation_prompt", "vars"};
  return answer_lines(kMembers, [&](const Json& row, const std::string& where) {
    RenderInput input;
    input.messages = need_member(row, "messages", where);
    if (const Json* tools = row.find("tools")) input.tools = *tools;
    if (const Json* vars = row.find("vars")) input.vars = *vars;
    const Json* prompt = row.find("add_generation_prompt");
    input.add_generation_prompt = prompt && !prompt->is_null() && prompt->as_bool();
    input.now = args.text("--now");
    Json answer = Json::object();
    try {
      const Rendered rendered = chat.render(input);
      answer.set("text", rendered.text);
      answer.set("spans", ranges_json(in_characters(rendered.text, rendered.generation)));
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      answer.set("error", error.text().what);
      answer.set("where", error.text().where);
    }
    return answer;
  });
}

}  // namespace graft::data
