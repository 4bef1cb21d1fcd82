// Finds the tokenizer files of a model directory and joins their settings.
#include <future>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "data/text/tokenizer/tokenizer_parts.h"

namespace graft::data {
namespace {

// The largest real tokenizer.json has 35 MB.
constexpr int64_t kMaxFileBytes = int64_t{128} << 20;

// A special token in a settings file: "<s>" or {"content": "<s>", …}; "" when absent.
std::string token_text(const Json& settings, std::string_view key) {
  const Json* value = settings.find(key);
  if (!value || value->is_null()) return "";
  const Json* content = value->is_object() ? value->find("content") : value;
  return content && content->is_string() ? content->as_string() : "";
}

std::optional<bool> flag(const Json& settings, std::string_view key) {
  const Json* value = settings.find(key);
  if (!value || value->is_null()) return std::nullopt;
  return value->as_bool();
}

Json read_settings(const std::string& directory, std::string_view name) {
  const std::string path = join_path(directory, name);
  return file_exists(path) ? read_json_file(path) : Json::object();
}

void set_named_token(const Json& config,
                     const Json& map,
                     std::string_view key,
                     const Tokenizer::Parts& parts,
                     std::optional<int32_t>& id) {
  std::string text = token_text(config, key);
  if (text.empty()) text = token_text(map, key);
  if (text.empty()) return;
  const int32_t found = parts.vocabulary->find(text);
  if (found < 0) {
    fail(ExitCode::kData, std::string(key) + " \"" + text + "\" is not in the vocabulary",
         parts.name, "correct tokenizer_config.json");
  }
  id = found;
}

// add_bos_token / add_eos_token win over the post-processor, as in LlamaTokenizerFast.
void apply_flag(std::optional<bool> wanted, std::optional<int32_t> id, std::vector<int32_t>& side) {
  if (!wanted || !id) return;
  std::erase(side, *id);
  if (*wanted) side.push_back(*id);
}

// Tokens of a slow tokenizer that stand only in the settings.
void add_configured_tokens(const Json& config, Tokenizer::Parts& parts) {
  const Json* tokens = config.find("added_tokens_decoder");
  if (!tokens || tokens->is_null()) return;
  for (const auto& [id, token] : tokens->as_object()) {
    int64_t number = -1;
    if (!id.empty() && id.size() <= 9 && id.find_first_not_of("0123456789") == std::string::npos) {
      number = std::stoll(id);
    }
    const std::string& content = token.at("content").as_string();
    parts.vocabulary->add(content, number, parts.name);
    parts.add_added_token({.id = static_cast<int32_t>(number),
                           .content = content,
                           .special = flag(token, "special").value_or(false),
                           .normalized = flag(token, "normalized").value_or(true),
                           .lstrip = flag(token, "lstrip").value_or(false),
                           .rstrip = flag(token, "rstrip").value_or(false),
                           .single_word = flag(token, "single_word").value_or(false)});
  }
}

// BOS and EOS of a tokenizer.json without settings files, from what stands beside it.
void fill_missing_ids(const std::string& directory, Tokenizer::Parts& parts) {
  if (!parts.bos && !parts.front.empty()) parts.bos = parts.front.front();
  if (parts.bos && parts.eos) return;
  const auto take = [&](const std::optional<int32_t>& from, std::optional<int32_t>& to) {
    if (!to && from && parts.vocabulary->has(*from)) to = from;
  };
  const Json config = read_settings(directory, "config.json");
  const auto number = [&](std::string_view key) -> std::optional<int32_t> {
    const Json* value = config.find(key);
    if (value && value->is_array() && value->size() > 0) value = &value->as_array()[0];
    if (!value || !value->is_int() || value->as_int() < 0 || value->as_int() > kMaxTokenId) {
      return std::nullopt;
    }
    return static_cast<int32_t>(value->as_int());
  };
  take(number("bos_token_id"), parts.bos);
  take(number("eos_token_id"), parts.eos);
  const std::string model = join_path(directory, "tokenizer.model");
  if ((!parts.bos || !parts.eos) && file_exists(model)) {
    Tokenizer::Parts other;
    other.name = model;
    read_sentencepiece_model(read_file(model, kMaxFileBytes), model, Legacy::kYes, other);
    take(other.bos, parts.bos);
    take(other.eos, parts.eos);
  }
}

}  // namespace

std::string digest_of(const std::string& file_digest, const Tokenizer::Parts& parts) {
  Json settings = Json::object();
  const auto number = [](const std::optional<int32_t>& id) { return id ? Json(*id) : Json(); };
  const auto list = [](const std::vector<int32_t>& ids) {
    Json items = Json::array();
    for (const int32_t id : ids) items.push_back(id);
    return items;
  };
  settings.set("front", list(parts.front));
  settings.set("back", list(parts.back));
  settings.set("bos", number(parts.bos));
  settings.set("eos", number(parts.eos));
  settings.set("unk", number(parts.unk));
  settings.set("pad", number(parts.pad));
  Json added = Json::array();
  for (const AddedToken& token : parts.added) {
    added.push_back(Json::array({token.id, token.content, token.special, token.normalized,
                                 token.lstrip, token.rstrip, token.single_word}));
  }
  settings.set("added", added);
  settings.set("prefix", static_cast<int>(parts.prefix));
  return sha256_hex(file_digest + dump_json(settings));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
  std::string file = path;
  std::string directory = directory_name(path);
  if (directory_exists(path)) {
    directory = path;
    file = join_path(path, "tokenizer.json");
    if (!file_exists(file)) file = join_path(path, "tokenizer.model");
    if (!file_exists(file)) {
      fail(ExitCode::kIo, "the directory holds neither tokenizer.json nor tokenizer.model", path,
           "name a model directory, a tokenizer.json, a tokenizer.model or a GGUF file");
    }
  }
  const MappedFile mapped(file);
  const std::string_view bytes = mapped.text();
  auto parts = std::make_unique<Tokenizer::Parts>();
  parts->name = file;
  if (bytes.starts_with("GGUF")) {
    read_gguf_vocabulary(bytes, file, *parts);
    // The weights behind the vocabulary are no part of the tokenizer.
    parts->digest = digest_of(sha256_hex(parts->digest), *parts);
    parts->finish();
    return std::make_unique<Tokenizer>(std::move(parts));
  }
  if (static_cast<int64_t>(bytes.size()) > kMaxFileBytes) {
    fail(ExitCode::kData,
         "a tokenizer must have at most " + std::to_string(kMaxFileBytes) + " bytes, got " +
             std::to_string(bytes.size()),
         file);
  }
  // The digest of a large file takes as long as a quarter of its parse.
  auto file_digest = std::async(std::launch::async, [bytes] { return sha256_hex(bytes); });
  const Json config = read_settings(directory, "tokenizer_config.json");
  const Json map = read_settings(directory, "special_tokens_map.json");
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && bytes[first] == '{') {
    read_tokenizer_json(bytes, file, *parts);
  } else {
    const Legacy legacy = flag(config, "legacy").value_or(true) ? Legacy::kYes : Legacy::kNo;
    read_sentencepiece_model(std::string(bytes), file, legacy, *parts);
    add_configured_tokens(config, *parts);
  }
  set_named_token(config, map, "bos_token", *parts, parts->bos);
  set_named_token(config, map, "eos_token", *parts, parts->eos);
  set_named_token(config, map, "unk_token", *parts, parts->unk);
  set_named_token(config, map, "pad_token", *parts, parts->pad);
  fill_missing_ids(directory, *parts);
  apply_flag(flag(config, "add_bos_token"), parts->bos, parts->front);
  apply_flag(flag(config, "add_eos_token"), parts->eos, parts->back);
  parts->digest = digest_of(file_digest.get(), *parts);
  parts->finish();
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace graft::data
