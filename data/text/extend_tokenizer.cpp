#include "data/text/extend_tokenizer.h"

#include <optional>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/text/json_scanner.h"

namespace graft::data {
namespace {

// A token as tokenizer.json and added_tokens_decoder write it; the former with its id.
Json token_json(const AddedTokenSpec& token, std::optional<int32_t> id) {
  Json json = Json::object();
  if (id) json.set("id", *id);
  json.set("content", token.content);
  json.set("single_word", token.single_word);
  json.set("lstrip", token.lstrip);
  json.set("rstrip", token.rstrip);
  json.set("normalized", token.normalized.value_or(!token.special));
  json.set("special", token.special);
  return json;
}

// tokenizer.json with more items at the end of its added_tokens, all else byte for byte.
std::string with_items(const std::string& text, const std::string& items, const std::string& name) {
  JsonScanner scanner(text, name);
  std::string buffer;
  std::string_view key;
  for (scanner.enter('{'); scanner.next_key(key, buffer);) {
    const std::string_view value = scanner.raw_value();
    if (key != "added_tokens") continue;
    const auto begin = static_cast<size_t>(value.data() - text.data());
    const bool is_empty = value.find('{') == std::string_view::npos;
    const std::string rest = text.substr(begin + value.size());
    if (is_empty) return text.substr(0, begin) + "[" + items + "]" + rest;  // [] or null
    return text.substr(0, begin + value.size() - 1) + ", " + items + "]" + rest;
  }
  const size_t brace = text.find('{');
  return text.substr(0, brace + 1) + "\"added_tokens\": [" + items + "], " + text.substr(brace + 1);
}

}  // namespace

std::vector<NewToken> new_tokens_of(const Tokenizer& tokenizer,
                                    std::span<const AddedTokenSpec> tokens) {
  std::set<std::string_view> contents;
  for (const AddedTokenSpec& token : tokens) {
    if (!contents.insert(token.content).second) {
      fail(ExitCode::kData, "token \"" + token.content + "\" is given twice");
    }
  }
  const auto extended = tokenizer.with_added_tokens(tokens);
  std::vector<NewToken> result;
  for (const AddedTokenSpec& token : tokens) {
    const int32_t id = extended->id(token.content).value();
    const bool is_new = !tokenizer.id(token.content).has_value();
    NewToken added = {.id = id,
                      .content = token.content,
                      .is_new = is_new,
                      .pieces = tokenizer.encode_ids(token.content)};
    if (added.pieces.empty()) added.pieces.push_back(id);  // the vocabulary reads it as nothing
    result.push_back(std::move(added));
  }
  return result;
}

std::vector<NewToken> extend_tokenizer_files(const Tokenizer& base,
                                             const std::string& model_dir,
                                             std::span<const AddedTokenSpec> tokens,
                                             const std::string& out_dir) {
  const std::vector<NewToken> result = new_tokens_of(base, tokens);
  std::string items;
  for (size_t i = 0; i < tokens.size(); ++i) {
    items += (items.empty() ? "" : ", ") +
             dump_json(token_json(tokens[i], result[i].id), {.spaces = true});
  }
  make_directories(out_dir);
  const std::string json = join_path(model_dir, "tokenizer.json");
  const bool has_json = file_exists(json);
  if (has_json) {
    write_file_atomically(join_path(out_dir, "tokenizer.json"),
                          with_items(read_file(json), items, json));
  }
  for (const char* name : {"tokenizer.model", "special_tokens_map.json", "chat_template.jinja"}) {
    const std::string path = join_path(model_dir, name);
    if (file_exists(path)) write_file_atomically(join_path(out_dir, name), read_file(path));
  }
  const std::string config_path = join_path(model_dir, "tokenizer_config.json");
  Json config = file_exists(config_path) ? read_json_file(config_path) : Json::object();
  const Json* known = config.find("added_tokens_decoder");
  // A tokenizer.model has no other place for them; a list that stands there must stay whole.
  if (!has_json || (known && known->is_object())) {
    Json decoder = known && known->is_object() ? *known : Json::object();
    for (size_t i = 0; i < tokens.size(); ++i) {
      decoder.set(std::to_string(result[i].id), token_json(tokens[i], std::nullopt));
    }
    config.set("added_tokens_decoder", std::move(decoder));
  }
  write_file_atomically(join_path(out_dir, "tokenizer_config.json"),
                        dump_json(config, {.indent = 2}) + "\n");
  return result;
}

}  // namespace graft::data
