// report.html of a run.
#pragma once

#include <string>
#include <string_view>

#include "data/curate/clean.h"

namespace graft::data {

// One page without network or scripts: figures, rows by rule, examples of each rule with the place
// marked, lengths, the largest clusters, the sources and what to do next.
std::string curation_report(const RecordSource& source,
                            const CleanResult& result,
                            const CleanOptions& options,
                            std::string_view command);

// Shares of word counts in buckets of doubling width: {"1-2", n}, {"3-4", n}, …
std::vector<std::pair<std::string, int64_t>> length_histogram(const std::vector<uint32_t>& words);

}  // namespace graft::data
