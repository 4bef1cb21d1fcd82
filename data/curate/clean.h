// Judging a whole set of records: the rules, the duplicates, the prompts with several answers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "data/curate/dedup.h"
#include "data/curate/rules.h"
#include "data/records/record.h"

namespace graft::data {

struct RuleSetting {
  Action action;
  double threshold;
};

// Limits above which a run stops for a person (exit 3) unless --allow is given.
struct GuardRails {
  double max_removed_percent = 30;  // of one input file
  double max_cluster_percent = 1;   // of all items, in one cluster of duplicates
  int64_t small_cluster = 20;       // clusters up to this size never stop a run
};

struct CleanOptions {
  CleanOptions();                     // the profile `sft`
  std::vector<RuleSetting> settings;  // one per row of rules(), in its order
  GuardRails guards;
  bool number_guard = true;
  uint64_t seed = 0;
  int threads = 1;
  const RuleSetting& of(std::string_view rule) const;
};

// Reads a config: {rules: {NAME: off|report|edit|quarantine | NUMBER | {action, threshold}},
// number_guard, guards: {max_removed_percent, max_cluster_percent, small_cluster}}. Unknown keys
// are refused. Errors: kUsage with file, line and column.
void apply_config(const Json& tree, const std::string& file, CleanOptions& options);

enum class Fate : uint8_t { kKept, kEdited, kQuarantined };

struct ItemResult {
  Fate fate = Fate::kKept;
  bool readable = false;  // it is a record of a known schema
  Schema schema = Schema::kText;
  uint32_t prompt_words = 0;
  uint32_t answer_words = 0;
  std::vector<Verdict> verdicts;  // also those that only report
  std::string edited;             // the JSON that replaces the item; "" when it stands as it is
  std::string id;                 // the record's own id
  int64_t duplicate_of = -1;      // index of the kept item
  double similarity = 0;
  int64_t cluster = -1;  // least index of its cluster; -1 when not readable
};

struct GuardStop {
  std::string what;
  std::string fix;
};

struct CleanResult {
  std::vector<RawItem> items;       // all items of all files, in order
  std::vector<ItemResult> results;  // one per item
  std::vector<GuardStop> stops;     // guard rails that were passed; empty = fine
};

// Called with the number of items done, from one thread at a time.
using OnProgress = std::function<void(int64_t done, int64_t total)>;

// Judges every item of the source. The result does not depend on the number of threads.
CleanResult clean(RecordSource& source, const CleanOptions& options, const OnProgress& progress);

// Duplicates alone: no rule is applied, unreadable items are kept.
CleanResult dedup_only(RecordSource& source,
                       const DedupOptions& options,
                       const GuardRails& guards,
                       const OnProgress& progress);

// All items of a source; progress is not told.
std::vector<RawItem> read_items(RecordSource& source);

// Rows with at least one verdict of that rule, and whether they left because of it.
struct RuleCount {
  const Rule* rule;
  RuleSetting setting;
  int64_t rows = 0;
  int64_t first_item = -1;  // the first such row
};
std::vector<RuleCount> count_by_rule(const CleanResult& result, const CleanOptions& options);

}  // namespace graft::data
