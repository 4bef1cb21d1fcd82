// Prompts that two sets share.
#pragma once

#include <cstdint>
#include <vector>

#include "data/curate/dedup.h"
#include "data/records/record.h"

namespace graft::data {

struct Leak {
  RawItem item;
  RawItem against;
  double similarity;
  bool exact;
};

struct LeakReport {
  int64_t records = 0;  // readable ones
  int64_t against = 0;
  int64_t unreadable = 0;  // of both
  int64_t exact = 0;
  int64_t near = 0;
  std::vector<Leak> leaks;
};

// For each record of `source` the likest prompt in `against`, if it is the same up to case and
// white space, or of Jaccard similarity >= options.threshold. Records without turns (Schema::kText)
// are compared as a whole. `options.view` is not read.
LeakReport find_leaks(RecordSource& source, RecordSource& against, const DedupOptions& options);

}  // namespace graft::data
