#include "core/yaml.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "core/error.h"
#include "core/file.h"

namespace graft {
namespace {

std::string place(std::string_view name, int64_t line, int64_t column) {
  return std::string(name) + ":" + std::to_string(line) + ":" + std::to_string(column);
}

bool parse_integer(std::string_view text, int64_t& value) {
  if (!text.empty() && text[0] == '+') {
    text.remove_prefix(1);
  }
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool parse_float(std::string_view text, double& value) {
  if (!text.empty() && text[0] == '+') {
    text.remove_prefix(1);
  }
  // from_chars also takes "inf" and "nan", which the core schema spells .inf and .nan.
  if (text.empty() || text.find_first_not_of("0123456789+-.eE") != std::string_view::npos) {
    return false;
  }
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

// A plain (unquoted) scalar by the YAML 1.2 core schema. "1e-4" is a number here, as its author
// meant; YAML 1.1 readers make it a string.
Json plain_scalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") {
    return {};
  }
  if (text == "true" || text == "True" || text == "TRUE") {
    return {true};
  }
  if (text == "false" || text == "False" || text == "FALSE") {
    return {false};
  }
  int64_t integer = 0;
  if (parse_integer(text, integer)) {
    return {integer};
  }
  double number = 0;
  if (parse_float(text, number)) {
    return {number};
  }
  return {text};
}

// Receives yaml-cpp's events and builds the tree. Events (not yaml-cpp's nodes) are used because a
// node has already lost aliases, tags and all but the first of two equal keys.
class TreeHandler : public YAML::EventHandler {
 public:
  explicit TreeHandler(std::string_view name) : name_(name) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(Json(), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse(mark, "YAML aliases (*name) are not supported");
  }
  void OnScalar(const YAML::Mark& mark,
                const std::string& tag,
                YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    if (tag == "!") {  // quoted
      add(Json(value), mark);
      return;
    }
    refuse_tag(mark, tag);
    add(plain_scalar(value), mark, value);
  }
  void OnSequenceStart(const YAML::Mark& mark,
                       const std::string& tag,
                       YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Json(Json::Array()), mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark,
                  const std::string& tag,
                  YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Json(Json::Object()), mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

  Json take() { return std::move(root_); }

 private:
  struct Level {
    Json value;
    std::string key;
    bool has_key = false;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what) const {
    fail(ExitCode::kUsage, what, place(name_, mark.line + 1, mark.column + 1));
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) const {
    if (anchor != 0) {
      refuse(mark, "YAML anchors (&name) are not supported");
    }
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?") {
      refuse(mark, "YAML tags (" + tag + ") are not supported");
    }
  }

  void open(Json value, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    refuse_anchor(mark, anchor);
    if (tag != "!") {
      refuse_tag(mark, tag);
    }
    if (levels_.size() >= static_cast<size_t>(Json::kMaxDepth)) {
      refuse(mark, "more than " + std::to_string(Json::kMaxDepth) + " levels of nesting");
    }
    if (!levels_.empty() && levels_.back().value.is_object() && !levels_.back().has_key) {
      refuse(mark, "a key must be plain text");
    }
    value.set_mark({mark.line + 1, mark.column + 1});
    levels_.push_back({std::move(value), "", false});
  }

  void close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    const Mark mark = value.mark();
    attach(std::move(value), mark);
  }

  void add(Json value, const YAML::Mark& mark, const std::string& key_text = "") {
    const Mark at{mark.line + 1, mark.column + 1};
    value.set_mark(at);
    if (!levels_.empty() && levels_.back().value.is_object() && !levels_.back().has_key) {
      Level& level = levels_.back();
      level.key = value.is_string() ? value.as_string() : key_text;
      if (level.value.find(level.key) != nullptr) {
        refuse(mark, "duplicate key \"" + level.key + "\"");
      }
      level.has_key = true;
      return;
    }
    attach(std::move(value), at);
  }

  void attach(Json value, Mark) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (levels_.back().value.is_array()) {
      levels_.back().value.push_back(std::move(value));
    } else {
      levels_.back().value.set(std::move(levels_.back().key), std::move(value));
      levels_.back().has_key = false;
    }
  }

  std::string name_;
  std::vector<Level> levels_;
  Json root_;
};

std::vector<std::string_view> views(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
}

std::string number_text(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

}  // namespace

Json parse_yaml(std::string_view text, std::string_view name) {
  const auto parse = [&](std::string_view source) {
    std::istringstream stream{std::string(source)};
    TreeHandler handler(name);
    YAML::Parser parser(stream);
    parser.HandleNextDocument(handler);
    TreeHandler second(name);
    if (parser.HandleNextDocument(second)) {
      fail(ExitCode::kUsage, "more than one YAML document", std::string(name),
           "keep one document in a config file");
    }
    return handler.take();
  };
  try {
    // yaml-cpp 0.7 accepts a quote that is never closed when white space ends the file, so the
    // text is checked without its end first.
    const size_t last = text.find_last_not_of(" \n\r\t");
    parse(text.substr(0, last == std::string_view::npos ? 0 : last + 1));
    return parse(text);
  } catch (const YAML::Exception& error) {
    fail(ExitCode::kUsage, "malformed YAML: " + error.msg,
         place(name, error.mark.line + 1, error.mark.column + 1));
  }
}

Json read_yaml_file(const std::string& path) {
  constexpr int64_t kMaxBytes = 10'000'000;
  return parse_yaml(read_file(path, kMaxBytes), path);
}

Json parse_yaml_value(std::string_view text, std::string_view name) {
  return parse_yaml(text, name);
}

ConfigReader::ConfigReader(const Json& tree, std::string file, std::string path)
    : tree_(&tree), file_(std::move(file)), path_(std::move(path)) {
  if (!tree.is_null() && !tree.is_object()) {
    fail(ExitCode::kUsage, "expected a mapping, got " + std::string(tree.type_name()),
         place(file_, tree.mark().line, tree.mark().column) + (path_.empty() ? "" : ": " + path_),
         "write `key: value` lines there");
  }
}

const Json* ConfigReader::take(std::string_view key) {
  // A key may be looked at more than once: "auto" or a number.
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.emplace_back(key);
  return tree_->find(key);
}

bool ConfigReader::has(std::string_view key) const {
  return tree_->find(key) != nullptr;
}

std::string ConfigReader::where(std::string_view key) const {
  const std::string full = path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  const Json* value = tree_->find(key);
  const Mark mark = value != nullptr ? value->mark() : tree_->mark();
  if (mark.line == 0) {  // not in the file: an override
    return (value != nullptr ? "command line: " : file_ + ": ") + full;
  }
  return place(file_, mark.line, mark.column) + ": " + full;
}

void ConfigReader::fail_at(std::string_view key, std::string what, std::string fix) const {
  fail(ExitCode::kUsage, std::move(what), where(key), std::move(fix));
}

const Json* ConfigReader::get(std::string_view key) {
  return take(key);
}

std::string ConfigReader::get_string(std::string_view key, std::string_view fallback) {
  const Json* value = take(key);
  if (value == nullptr || value->is_null()) {
    return std::string(fallback);
  }
  if (!value->is_string()) {
    fail_at(key, "expected text, got " + std::string(value->type_name()),
            "put the value in quotes");
  }
  return value->as_string();
}

std::string ConfigReader::need_string(std::string_view key, std::string_view fix) {
  const std::string value = get_string(key, "");
  if (value.empty()) {
    fail_at(key, "missing key \"" + std::string(key) + "\"", std::string(fix));
  }
  return value;
}

std::string ConfigReader::get_choice(std::string_view key,
                                     std::string_view fallback,
                                     std::span<const std::string_view> allowed) {
  const std::string value = get_string(key, fallback);
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
    fail_at(key, unknown_name("value", value, allowed), "use one of the known values");
  }
  return value;
}

int64_t ConfigReader::get_int(std::string_view key, int64_t fallback, IntRange range) {
  const Json* value = take(key);
  if (value == nullptr || value->is_null()) {
    return fallback;
  }
  const std::string bounds = std::to_string(range.min) + ".." + std::to_string(range.max);
  if (!value->is_int()) {
    fail_at(key, "expected an integer in " + bounds + ", got " + std::string(value->type_name()),
            "write a whole number");
  }
  if (value->as_int() < range.min || value->as_int() > range.max) {
    fail_at(key,
            std::string(key) + " must be in " + bounds + ", got " + std::to_string(value->as_int()),
            "set it to a value in " + bounds);
  }
  return value->as_int();
}

double ConfigReader::get_float(std::string_view key, double fallback, FloatRange range) {
  const Json* value = take(key);
  if (value == nullptr || value->is_null()) {
    return fallback;
  }
  const std::string bounds = number_text(range.min) + ".." + number_text(range.max);
  if (!value->is_number()) {
    fail_at(key, "expected a number in " + bounds + ", got " + std::string(value->type_name()),
            "write a number, for example 1e-4");
  }
  const double number = value->as_double();
  if (!(number >= range.min && number <= range.max)) {
    fail_at(key, std::string(key) + " must be in " + bounds + ", got " + number_text(number),
            "set it to a value in " + bounds);
  }
  return number;
}

bool ConfigReader::get_bool(std::string_view key, bool fallback) {
  const Json* value = take(key);
  if (value == nullptr || value->is_null()) {
    return fallback;
  }
  if (!value->is_bool()) {
    fail_at(key, "expected true or false, got " + std::string(value->type_name()),
            "write true or false without quotes");
  }
  return value->as_bool();
}

std::vector<std::string> ConfigReader::get_strings(std::string_view key,
                                                   std::vector<std::string> fallback) {
  const Json* value = take(key);
  if (value == nullptr || value->is_null()) {
    return fallback;
  }
  if (value->is_string()) {
    return {value->as_string()};
  }
  if (!value->is_array()) {
    fail_at(key, "expected a list of texts, got " + std::string(value->type_name()),
            "write [a, b]");
  }
  std::vector<std::string> result;
  for (const Json& item : value->as_array()) {
    if (!item.is_string()) {
      fail_at(key, "expected a list of texts, got an item of type " + std::string(item.type_name()),
              "put every item in quotes");
    }
    result.push_back(item.as_string());
  }
  return result;
}

ConfigReader ConfigReader::section(std::string_view key) {
  static const Json kEmpty;
  const Json* value = take(key);
  const std::string path = path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  return {value == nullptr ? kEmpty : *value, file_, path};
}

void ConfigReader::finish() const {
  if (!tree_->is_object()) {
    return;
  }
  for (const auto& [key, value] : tree_->as_object()) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
      fail_at(key, unknown_name("key", key, views(known_)), "correct or remove the key");
    }
  }
}

void set_path(Json& tree, std::string_view key_path, Json value) {
  Json* node = &tree;
  size_t begin = 0;
  while (true) {
    const size_t dot = key_path.find('.', begin);
    const std::string key(
        key_path.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (key.empty() || (!node->is_null() && !node->is_object())) {
      fail(ExitCode::kUsage, "\"" + std::string(key_path) + "\" does not name a config key",
           "command line", "write section.key=value");
    }
    if (dot == std::string_view::npos) {
      node->set(key, std::move(value));
      return;
    }
    const Json* next = node->find(key);
    if (next == nullptr) {
      node->set(key, Json(Json::Object()));
    }
    for (auto& member : node->as_object()) {
      if (member.first == key) {
        node = &member.second;
      }
    }
    begin = dot + 1;
  }
}

}  // namespace graft
