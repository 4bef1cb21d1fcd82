#include "data/text/tokenizer/json_steps.h"

#include <array>

#include "core/error.h"

namespace graft::data {

void refuse_step(const std::string& what, const std::string& name) {
  fail(ExitCode::kData, what + " is not supported", name,
       "graft reads byte-level BPE, SentencePiece-style BPE and Unigram of the families in "
       "docs/formats.md");
}

namespace {

std::string type_of(const Json& step) {
  return step.at("type").as_string();
}

bool is_set(const Json* value) {
  return value && !value->is_null();
}

bool flag(const Json& object, std::string_view key, bool fallback) {
  const Json* value = object.find(key);
  return is_set(value) ? value->as_bool() : fallback;
}

// The steps of a Sequence (under `member`), or the step itself, with their keys; none for null.
struct Step {
  const Json* json;
  std::string key;
};
void collect(const Json& value,
             std::string_view member,
             const std::string& key,
             std::vector<Step>& steps) {
  if (type_of(value) != "Sequence") {
    steps.push_back({&value, key});
    return;
  }
  const Json::Array& items = value.at(member).as_array();
  for (size_t i = 0; i < items.size(); ++i) {
    collect(items[i], member, key + "." + std::string(member) + "[" + std::to_string(i) + "]",
            steps);
  }
}
std::vector<Step> steps_of(const Json* value, std::string_view member, const std::string& key) {
  std::vector<Step> steps;
  if (is_set(value)) collect(*value, member, key, steps);
  return steps;
}

// A pattern's plain text, or nullptr if it is a regular expression.
const std::string* plain_pattern(const Step& step, const std::string& name) {
  const Json* text = step.json->at("pattern").find("String");
  if (!text) return nullptr;
  if (text->as_string().empty()) refuse_step(step.key + " with an empty pattern", name);
  return &text->as_string();
}

std::string decode_base64(const std::string& text, const std::string& where) {
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) fail(ExitCode::kData, "not base64", where);
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count & 0xFFU));
    }
  }
  return bytes;
}

SplitBehavior behavior_of(const Json& step, const std::string& where) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> known = {{
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  }};
  const std::string& given = step.at("behavior").as_string();
  for (const auto& [name, behavior] : known) {
    if (name == given) return behavior;
  }
  refuse_step("behavior \"" + given + "\"", where);
}

SplitStep read_split(const Step& step, const std::string& name) {
  const std::string where = name + ": " + step.key;
  SplitStep split;
  split.behavior = behavior_of(*step.json, where);
  split.invert = flag(*step.json, "invert", false);
  if (const std::string* text = plain_pattern(step, name)) {
    split.text = *text;
    return split;
  }
  const std::string& pattern = step.json->at("pattern").at("Regex").as_string();
  // The known splitters match everything, so keeping all matches is keeping all.
  const bool keeps_matches = (split.behavior == SplitBehavior::kIsolated) ||
                             (split.behavior == SplitBehavior::kRemoved && split.invert);
  if (keeps_matches) split.known = known_splitter(pattern);
  if (!split.known) split.pattern = std::make_shared<Pattern>(pattern, where);
  return split;
}

MetaspaceStep read_metaspace(const Step& step, const std::string& name) {
  const Json& json = *step.json;
  if (json.at("replacement").as_string() != kWordMark) {
    refuse_step(step.key + ": Metaspace with another replacement than U+2581", name);
  }
  const Json* scheme = json.find("prepend_scheme");
  const std::string prepend = is_set(scheme)                         ? scheme->as_string()
                              : flag(json, "add_prefix_space", true) ? "always"
                                                                     : "never";
  MetaspaceStep metaspace;
  if (prepend == "never") {
    metaspace.scheme = PrependScheme::kNever;
  } else if (prepend == "first") {
    metaspace.scheme = PrependScheme::kFirst;
  } else if (prepend != "always") {
    refuse_step(step.key + ": prepend_scheme \"" + prepend + "\"", name);
  }
  metaspace.split = flag(json, "split", true);
  return metaspace;
}

}  // namespace

void read_normalizer(const Json* value, const std::string& name, Tokenizer::Parts& parts) {
  for (const Step& step : steps_of(value, "normalizers", "normalizer")) {
    const std::string type = type_of(*step.json);
    if (type == "NFC") {
      parts.normalizer.emplace_back(NormalForm::kC);
    } else if (type == "NFD") {
      parts.normalizer.emplace_back(NormalForm::kD);
    } else if (type == "NFKC") {
      parts.normalizer.emplace_back(NormalForm::kKc);
    } else if (type == "NFKD") {
      parts.normalizer.emplace_back(NormalForm::kKd);
    } else if (type == "Prepend") {
      parts.normalizer.emplace_back(PrependStep{step.json->at("prepend").as_string()});
    } else if (type == "Replace") {
      ReplaceStep replace;
      replace.content = step.json->at("content").as_string();
      if (const std::string* text = plain_pattern(step, name)) {
        replace.text = *text;
      } else {
        replace.pattern = std::make_shared<Pattern>(
            step.json->at("pattern").at("Regex").as_string(), name + ": " + step.key);
      }
      parts.normalizer.emplace_back(std::move(replace));
    } else if (type == "Strip") {
      parts.normalizer.emplace_back(
          StripStep{flag(*step.json, "strip_left", true), flag(*step.json, "strip_right", true)});
    } else if (type == "Precompiled") {
      const std::string where = name + ": " + step.key;
      parts.normalizer.emplace_back(std::make_shared<const CharacterMap>(
          decode_base64(step.json->at("precompiled_charsmap").as_string(), where), where));
    } else {
      refuse_step("normalizer " + type + " (" + step.key + ")", name);
    }
  }
}

bool read_pre_tokenizer(const Json* value, const std::string& name, Tokenizer::Parts& parts) {
  bool is_byte_level = false;
  for (const Step& step : steps_of(value, "pretokenizers", "pre_tokenizer")) {
    const std::string type = type_of(*step.json);
    if (is_byte_level) refuse_step("pre_tokenizer " + type + " behind ByteLevel", name);
    if (type == "ByteLevel") {
      is_byte_level = true;
      if (flag(*step.json, "add_prefix_space", true)) {
        parts.pre_tokenizer.emplace_back(PrefixSpaceStep{});
      }
      if (flag(*step.json, "use_regex", true)) {
        SplitStep split;
        split.known = SplitterKind::kGpt2;
        parts.pre_tokenizer.emplace_back(std::move(split));
      }
    } else if (type == "Split") {
      parts.pre_tokenizer.emplace_back(read_split(step, name));
    } else if (type == "Digits") {
      parts.pre_tokenizer.emplace_back(DigitsStep{flag(*step.json, "individual_digits", false)});
    } else if (type == "WhitespaceSplit") {
      parts.pre_tokenizer.emplace_back(WhitespaceSplitStep{});
    } else if (type == "Metaspace") {
      parts.pre_tokenizer.emplace_back(read_metaspace(step, name));
    } else {
      refuse_step("pre_tokenizer " + type + " (" + step.key + ")", name);
    }
  }
  return is_byte_level;
}

void take_space_rules(Tokenizer::Parts& parts, BpeRules& rules) {
  rules.space_is_mark = false;
  bool prepends = false;
  bool replaces = false;
  for (const NormalizerStep& step : parts.normalizer) {
    const PrependStep* prepend = std::get_if<PrependStep>(&step);
    const ReplaceStep* replace = std::get_if<ReplaceStep>(&step);
    if (prepend && prepend->prefix == kWordMark && !prepends && !replaces) {
      prepends = true;
    } else if (replace && replace->text == " " && replace->content == kWordMark && !replaces) {
      replaces = true;
    } else {
      return;
    }
  }
  if (prepends && !replaces) return;
  PrefixRule prefix = prepends ? PrefixRule::kAlways : PrefixRule::kNever;
  bool splits = false;
  bool metaspace = false;
  for (const PreTokenizerStep& step : parts.pre_tokenizer) {
    const SplitStep* split = std::get_if<SplitStep>(&step);
    const MetaspaceStep* mark = std::get_if<MetaspaceStep>(&step);
    if (split && split->text == " " && replaces && !metaspace) {
      continue;  // Gemma: no space is left after the normalizer, so this cuts nothing
    }
    if (!mark || prepends || metaspace) return;
    metaspace = true;
    splits = mark->split;
    if (mark->scheme == PrependScheme::kAlways) prefix = PrefixRule::kAlwaysUnlessMark;
    if (mark->scheme == PrependScheme::kFirst) prefix = PrefixRule::kFirstUnlessMark;
  }
  parts.reads_spaces = true;
  parts.prefix = prefix;
  parts.normalizer_prepends = prepends;
  parts.normalizer_replaces_space = replaces;
  rules.space_is_mark = replaces || metaspace;
  rules.split_at_each_mark = splits;
}

void read_decoder(const Json* value, const std::string& name, Decoding& decoding) {
  if (!is_set(value)) {
    decoding.fuse = false;
    return;
  }
  const std::vector<Step> steps = steps_of(value, "decoders", "decoder");
  for (const Step& step : steps) {
    const std::string type = type_of(*step.json);
    if (type == "ByteLevel") {
      if (steps.size() > 1) refuse_step("decoder ByteLevel beside others", name);
      decoding.byte_level = true;
    } else if (type == "Replace") {
      const std::string* pattern = plain_pattern(step, name);
      if (!pattern) refuse_step(step.key + ": Replace with a regular expression", name);
      decoding.replace.emplace_back(*pattern, step.json->at("content").as_string());
    } else if (type == "ByteFallback") {
      decoding.byte_fallback = true;
    } else if (type == "Metaspace") {
      if (read_metaspace(step, name).scheme == PrependScheme::kNever) {
        decoding.replace.emplace_back(kWordMark, " ");
      } else {
        decoding.metaspace = true;
      }
    } else if (type == "Strip") {
      if (step.json->at("stop").as_int() != 0) refuse_step("decoder Strip at the end", name);
      decoding.strip = step.json->at("content").as_string();
      decoding.strip_count = step.json->at("start").as_int();
      if (decoding.strip.empty() || decoding.strip_count < 0 || decoding.strip_count > 1000) {
        refuse_step("decoder Strip of this form", name);
      }
    } else if (type != "Fuse") {
      refuse_step("decoder " + type + " (" + step.key + ")", name);
    }
  }
}

namespace {

void read_template(const Json& json, const std::string& name, Tokenizer::Parts& parts) {
  bool behind = false;
  for (const Json& step : json.at("single").as_array()) {
    if (step.find("Sequence")) {
      if (behind) refuse_step("post_processor with the text twice", name);
      behind = true;
      continue;
    }
    const std::string& token = step.at("SpecialToken").at("id").as_string();
    for (const Json& id : json.at("special_tokens").at(token).at("ids").as_array()) {
      const int64_t number = id.as_int();
      if (!parts.vocabulary->has(number)) {
        fail(ExitCode::kData,
             "post_processor names token id " + std::to_string(number) + ", the vocabulary has " +
                 std::to_string(parts.vocabulary->size()),
             name);
      }
      (behind ? parts.back : parts.front).push_back(static_cast<int32_t>(number));
    }
  }
}

}  // namespace

void read_post_processor(const Json* value, const std::string& name, Tokenizer::Parts& parts) {
  bool has_template = false;
  for (const Step& step : steps_of(value, "processors", "post_processor")) {
    const std::string type = type_of(*step.json);
    if (type == "TemplateProcessing" && !has_template) {
      has_template = true;
      read_template(*step.json, name, parts);
    } else if (type == "ByteLevel") {
      if (!flag(*step.json, "trim_offsets", true)) continue;
      parts.trim = {true, flag(*step.json, "add_prefix_space", true)};
    } else {
      refuse_step("post_processor " + type + " (" + step.key + ")", name);
    }
  }
}

}  // namespace graft::data
