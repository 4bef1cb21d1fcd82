// Lines of JSON into a file.
#pragma once

#include <string>
#include <string_view>

#include "core/file.h"
#include "core/json.h"

namespace quickstart {

class JsonLines {
 public:
  explicit JsonLines(const std::string& path) : file_(path) {}
  void add(const graft::Json& value) { add_raw(graft::dump_json(value, {.spaces = true})); }
  void add_raw(std::string_view text) {
    file_.write(text);
    file_.write("\n");
  }
  void commit() { file_.commit(); }

 private:
  graft::AtomicFile file_;
};

inline graft::Json alpaca(const std::string& instruction, const std::string& output) {
  return graft::Json::object({{"instruction", instruction}, {"output", output}});
}

}  // namespace quickstart
