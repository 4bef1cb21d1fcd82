// Strict YAML into the value tree of core/json.h, and the typed reading of configs.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace graft {

// Parses one YAML document (core schema: null, booleans, integers, floats, else strings).
// Refused with line and column: duplicate keys, aliases, anchors, tags, several documents,
// non-scalar keys, more than Json::kMaxDepth levels. Errors: kUsage.
Json parse_yaml(std::string_view text, std::string_view name);
Json read_yaml_file(const std::string& path);

// Parses the right side of a command-line override `key.path=value` as one YAML scalar or flow
// value.
Json parse_yaml_value(std::string_view text, std::string_view name);

// Typed reading of one mapping of a config. Each getter records its key; `finish` refuses every
// key of the mapping that no getter asked for and names the nearest known one.
//   ConfigReader root(tree, "run.yaml", "");
//   config.rank = root.section("lora").get_int("r", 8, {1, 512});
//   root.finish();
struct IntRange {
  int64_t min;
  int64_t max;
};
struct FloatRange {
  double min;
  double max;
};

class ConfigReader {
 public:
  // `tree` must outlive the reader; null reads as an empty mapping. `path` is "" for the root.
  ConfigReader(const Json& tree, std::string file, std::string path);

  bool has(std::string_view key) const;
  std::string get_string(std::string_view key, std::string_view fallback);
  std::string need_string(std::string_view key, std::string_view fix);
  // One of `allowed`.
  std::string get_choice(std::string_view key,
                         std::string_view fallback,
                         std::span<const std::string_view> allowed);
  int64_t get_int(std::string_view key, int64_t fallback, IntRange range);
  double get_float(std::string_view key, double fallback, FloatRange range);
  bool get_bool(std::string_view key, bool fallback);
  std::vector<std::string> get_strings(std::string_view key, std::vector<std::string> fallback);
  // The raw value, or nullptr.
  const Json* get(std::string_view key);
  // The reader of a nested mapping; of an empty one when absent. Each section needs its own
  // finish().
  ConfigReader section(std::string_view key);
  void finish() const;

  // Throws kUsage at the place of `key`.
  [[noreturn]] void fail_at(std::string_view key, std::string what, std::string fix) const;
  // "run.yaml:14:11: lora.r", or "command line: lora.r" for a value without a place in the file.
  std::string where(std::string_view key) const;

 private:
  const Json* take(std::string_view key);
  const Json* tree_;
  std::string file_;
  std::string path_;
  std::vector<std::string> known_;
};

// Sets `key.path` in a tree (creating mappings) to `value`. Errors: kUsage when a part of the path
// is not a mapping.
void set_path(Json& tree, std::string_view key_path, Json value);

}  // namespace graft
