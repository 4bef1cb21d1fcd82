// What the tests of curation share.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/curate/clean.h"
#include "data/records/record.h"
#include "tests/support/support.h"

namespace graft::test {

// An alpaca line; the texts must need no escapes in JSON.
inline std::string alpaca(const std::string& instruction,
                          const std::string& input,
                          const std::string& output) {
  return R"({"instruction": ")" + instruction + R"(", "input": ")" + input + R"(", "output": ")" +
         output + "\"}";
}

inline std::string lines(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) {
    text += item + "\n";
  }
  return text;
}

// Inputs need no sync, and tests write thousands.
inline void put_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

// Judges the lines with the default options.
inline data::CleanResult clean_text(const std::string& text,
                                    const data::CleanOptions& options = {}) {
  const TempDir folder;
  const std::string path = folder.file("set.jsonl");
  put_file(path, text);
  data::RecordSource source({path});
  data::CleanResult result = data::clean(source, options, [](int64_t, int64_t) {});
  for (data::RawItem& item : result.items) {
    item.raw = {};  // its bytes end with the source
  }
  return result;
}

inline bool has_rule(const data::ItemResult& item, std::string_view rule) {
  for (const data::Verdict& verdict : item.verdicts) {
    if (verdict.rule == rule) {
      return true;
    }
  }
  return false;
}

}  // namespace graft::test
