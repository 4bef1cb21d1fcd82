// tokenizer.json of Hugging Face `tokenizers`: the SentencePiece-style BPE kinds.
#include <algorithm>

#include "core/error.h"
#include "core/json.h"
#include "data/text/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& name) {
  fail(ExitCode::kData, what + " is not supported", name,
       "graft reads SentencePiece-style BPE: Prepend/Replace or Metaspace, byte fallback");
}

std::string type_of(const Json& step) {
  return step.at("type").as_string();
}

// A member that is absent or null reads as `fallback`.
bool flag(const Json& object, std::string_view key, bool fallback) {
  const Json* value = object.find(key);
  return value && !value->is_null() ? value->as_bool() : fallback;
}

bool is_set(const Json* value) {
  return value && !value->is_null();
}

// The steps of a Sequence (under `member`), or the step itself; none for null.
std::vector<const Json*> steps_of(const Json* value, std::string_view member) {
  std::vector<const Json*> steps;
  if (!is_set(value)) return steps;
  if (type_of(*value) != "Sequence") return {value};
  for (const Json& step : value->at(member).as_array()) steps.push_back(&step);
  return steps;
}

std::string string_pattern(const Json& step, const std::string& where, const std::string& name) {
  const Json* text = step.at("pattern").find("String");
  if (!text) refuse(where + " with a regular expression", name);
  return text->as_string();
}

void read_normalizer(const Json* value, const std::string& name, Tokenizer::Parts& parts) {
  for (const Json* step : steps_of(value, "normalizers")) {
    const std::string type = type_of(*step);
    if (type == "Prepend" && step->at("prepend").as_string() == kWordMark &&
        !parts.normalizer_replaces_space) {
      parts.normalizer_prepends = true;
      parts.prefix = PrefixRule::kAlways;
    } else if (type == "Replace" && string_pattern(*step, "normalizer Replace", name) == " " &&
               step->at("content").as_string() == kWordMark) {
      parts.normalizer_replaces_space = true;
    } else {
      refuse("normalizer " + type + (type == "Prepend" || type == "Replace" ? " of this form" : ""),
             name);
    }
  }
  if (parts.normalizer_prepends && !parts.normalizer_replaces_space) {
    refuse("normalizer Prepend without Replace", name);
  }
}

void read_pre_tokenizer(const Json* value,
                        const std::string& name,
                        Tokenizer::Parts& parts,
                        BpeRules& rules) {
  rules.space_is_mark = parts.normalizer_replaces_space;
  for (const Json* step : steps_of(value, "pretokenizers")) {
    const std::string type = type_of(*step);
    if (type == "ByteLevel") {
      refuse("byte-level BPE (pre_tokenizer ByteLevel)", name);
    }
    if (type == "Split" && parts.normalizer_replaces_space && !parts.normalizer_prepends &&
        step->at("pattern").find("String") &&
        string_pattern(*step, "pre_tokenizer Split", name) == " ") {
      continue;  // Gemma: no space is left after the normalizer, so this cuts nothing
    }
    if (type != "Metaspace" || is_set(value->find("pretokenizers"))) {
      refuse("pre_tokenizer " + type, name);
    }
    if (step->at("replacement").as_string() != kWordMark) {
      refuse("pre_tokenizer Metaspace with another replacement than U+2581", name);
    }
    if (parts.normalizer_prepends) refuse("pre_tokenizer Metaspace after Prepend", name);
    const Json* scheme = step->find("prepend_scheme");
    const std::string prepend = is_set(scheme)                          ? scheme->as_string()
                                : flag(*step, "add_prefix_space", true) ? "always"
                                                                        : "never";
    if (prepend == "always") {
      parts.prefix = PrefixRule::kAlwaysUnlessMark;
    } else if (prepend == "first") {
      parts.prefix = PrefixRule::kFirstUnlessMark;
    } else if (prepend != "never") {
      refuse("prepend_scheme \"" + prepend + "\"", name);
    }
    rules.space_is_mark = true;
    rules.split_at_each_mark = flag(*step, "split", true);
  }
}

void read_decoder(const Json* value, const std::string& name, Decoding& decoding) {
  if (!is_set(value)) {
    decoding.fuse = false;
    return;
  }
  for (const Json* step : steps_of(value, "decoders")) {
    const std::string type = type_of(*step);
    if (type == "Replace") {
      const std::string pattern = string_pattern(*step, "decoder Replace", name);
      if (pattern.empty()) refuse("decoder Replace of the empty string", name);
      decoding.replace.emplace_back(pattern, step->at("content").as_string());
    } else if (type == "ByteFallback") {
      decoding.byte_fallback = true;
    } else if (type == "Metaspace") {
      const Json* scheme = step->find("prepend_scheme");
      if (is_set(scheme) && scheme->as_string() == "never") {
        decoding.replace.emplace_back(kWordMark, " ");
      } else {
        decoding.metaspace = true;
      }
    } else if (type == "Strip") {
      if (step->at("stop").as_int() != 0) refuse("decoder Strip at the end", name);
      decoding.strip = step->at("content").as_string();
      decoding.strip_count = step->at("start").as_int();
      if (decoding.strip.empty() || decoding.strip_count < 0 || decoding.strip_count > 1000) {
        refuse("decoder Strip of this form", name);
      }
    } else if (type != "Fuse") {
      refuse("decoder " + type, name);
    }
  }
}

void read_post_processor(const Json* value, const std::string& name, Tokenizer::Parts& parts) {
  if (!is_set(value)) return;
  const std::string type = type_of(*value);
  if (type != "TemplateProcessing") refuse("post_processor " + type, name);
  bool behind = false;
  for (const Json& step : value->at("single").as_array()) {
    if (step.find("Sequence")) {
      if (behind) refuse("post_processor with the text twice", name);
      behind = true;
      continue;
    }
    const std::string& token = step.at("SpecialToken").at("id").as_string();
    for (const Json& id : value->at("special_tokens").at(token).at("ids").as_array()) {
      const int64_t number = id.as_int();
      if (number < 0 || number >= static_cast<int64_t>(parts.tokens.size())) {
        fail(ExitCode::kData,
             "post_processor names token id " + std::to_string(number) + ", the vocabulary has " +
                 std::to_string(parts.tokens.size()),
             name);
      }
      (behind ? parts.back : parts.front).push_back(static_cast<int32_t>(number));
    }
  }
}

void check_model_options(const Json& model, const std::string& name) {
  const Json* type = model.find("type");
  if (is_set(type) && type->as_string() != "BPE") refuse("model " + type->as_string(), name);
  const Json* dropout = model.find("dropout");
  if (is_set(dropout) && dropout->as_double() != 0.0) refuse("model.dropout", name);
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = model.find(key);
    if (is_set(value) && !value->as_string().empty()) refuse("model." + std::string(key), name);
  }
  if (flag(model, "ignore_merges", false)) refuse("model.ignore_merges", name);
}

std::vector<std::pair<std::string, std::string>> read_merges(const Json& model,
                                                             const std::string& name) {
  std::vector<std::pair<std::string, std::string>> merges;
  const Json::Array& items = model.at("merges").as_array();
  merges.reserve(items.size());
  for (const Json& item : items) {
    if (item.is_array() && item.size() == 2) {
      merges.emplace_back(item.as_array()[0].as_string(), item.as_array()[1].as_string());
      continue;
    }
    const std::string& text = item.as_string();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      fail(ExitCode::kData, "a merge must be two tokens apart by one space, got \"" + text + "\"",
           name + ":" + std::to_string(item.mark().line));
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

}  // namespace

void read_tokenizer_json(const std::string& text,
                         const std::string& name,
                         Tokenizer::Parts& parts) {
  const Json root = parse_json(text, name);
  const Json& model = root.at("model");
  check_model_options(model, name);
  BpeRules rules;
  read_normalizer(root.find("normalizer"), name, parts);
  read_pre_tokenizer(root.find("pre_tokenizer"), name, parts, rules);
  read_decoder(root.find("decoder"), name, parts.decoding);
  rules.byte_fallback = flag(model, "byte_fallback", false);
  rules.fuse_unk = flag(model, "fuse_unk", false);

  for (const auto& [token, id] : model.at("vocab").as_object()) parts.add_token(token, id.as_int());
  const Json* unk = model.find("unk_token");
  if (is_set(unk)) {
    const auto found = parts.ids.find(unk->as_string());
    if (found == parts.ids.end()) {
      fail(ExitCode::kData, "unk_token \"" + unk->as_string() + "\" is not in the vocabulary",
           name);
    }
    rules.unk = found->second;
    parts.unk = found->second;
  }
  parts.bpe = std::make_unique<BpeModel>(parts.ids, read_merges(model, name), rules, name);

  if (const Json* added = root.find("added_tokens"); is_set(added)) {
    for (const Json& item : added->as_array()) {
      if (flag(item, "single_word", false)) refuse("an added token with single_word", name);
      const int64_t id = item.at("id").as_int();
      parts.add_token(item.at("content").as_string(), id);
      parts.add_added_token({.id = static_cast<int32_t>(id),
                             .content = item.at("content").as_string(),
                             .special = flag(item, "special", false),
                             .normalized = flag(item, "normalized", true),
                             .lstrip = flag(item, "lstrip", false),
                             .rstrip = flag(item, "rstrip", false)});
    }
  }
  read_post_processor(root.find("post_processor"), name, parts);
}

}  // namespace graft::data
