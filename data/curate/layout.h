// What the outputs lack of the input: the bytes between the items, the order of kept and removed
// items, and the white space of items that were folded to one line.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace graft::data {

// Where the bytes of an item went.
enum class Place : uint8_t {
  kVerbatim,  // a line of the kept file, as it stood
  kRemoved,   // "raw" of the removed file
  kEdited,    // "raw" of edits.jsonl; the kept file holds the edited line
  kFolded,    // a line of the kept file; the white space outside strings is in a template
};

// One line for a valid JSON text: white space outside of strings removed.
std::string fold_json(std::string_view raw);
// The white space that fold_json removed: every token replaced by one 'x'.
std::string json_template(std::string_view raw);
// Inverse of the two. Errors: kData when they do not belong together.
std::string unfold_json(std::string_view folded, std::string_view shape);

// Values that repeat, kept as a dictionary and runs [value, count].
class RunList {
 public:
  void add(std::string_view value);
  Json json() const;                           // {"values": […], "runs": [value, count, …]}
  static RunList from_json(const Json& json);  // Errors: kData
  // Reads the values back in order. Errors: kData past the end.
  const std::string& next();
  bool at_end() const { return run_ >= runs_.size(); }

 private:
  std::vector<std::string> values_;
  std::map<std::string, size_t, std::less<>> index_;
  struct Run {
    size_t value;
    int64_t count;
  };
  std::vector<Run> runs_;
  size_t run_ = 0;    // of the next value to read
  int64_t used_ = 0;  // of that run
};

// The file layout.json.
struct Layout {
  struct File {
    std::string name;  // without its folder
    int64_t bytes = 0;
    std::string sha256;
    int64_t items = 0;
  };
  std::vector<File> files;
  RunList gaps;       // per file: before each item, and one after the last
  RunList places;     // one digit per item
  RunList templates;  // one per folded item
  Json json() const;
  static Layout from_json(const Json& json);  // Errors: kData
};

}  // namespace graft::data
