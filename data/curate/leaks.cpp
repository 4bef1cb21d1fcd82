#include "data/curate/leaks.h"

#include "core/error.h"
#include "data/curate/clean.h"
#include "data/curate/parallel.h"

namespace graft::data {
namespace {

struct Prompts {
  std::vector<RawItem> items;
  std::vector<Fingerprint> prints;
  int64_t unreadable = 0;
};

Prompts read_prompts(RecordSource& source, int threads) {
  const std::vector<RawItem> items = read_items(source);
  std::vector<Fingerprint> prints(items.size());
  std::vector<char> readable(items.size(), 0);
  parallel_for(static_cast<int64_t>(items.size()), threads, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    try {
      const Record record = read_record(source, items[at]);
      prints[at] = fingerprint(record, record.schema == Schema::kText ? View::kAll : View::kPrompt);
      readable[at] = 1;
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) {
        throw;
      }
    }
  });
  Prompts prompts;
  for (size_t i = 0; i < items.size(); ++i) {
    if (readable[i] == 0) {
      ++prompts.unreadable;
      continue;
    }
    prompts.items.push_back(items[i]);
    prompts.prints.push_back(std::move(prints[i]));
  }
  return prompts;
}

}  // namespace

LeakReport find_leaks(RecordSource& source, RecordSource& against, const DedupOptions& options) {
  const Prompts ours = read_prompts(source, options.threads);
  const Prompts theirs = read_prompts(against, options.threads);
  LeakReport report;
  report.records = static_cast<int64_t>(ours.items.size());
  report.against = static_cast<int64_t>(theirs.items.size());
  report.unreadable = ours.unreadable + theirs.unreadable;
  for (const Overlap& overlap : find_overlaps(ours.prints, theirs.prints, options)) {
    report.leaks.push_back({ours.items[static_cast<size_t>(overlap.record)],
                            theirs.items[static_cast<size_t>(overlap.against)], overlap.similarity,
                            overlap.exact});
    ++(overlap.exact ? report.exact : report.near);
  }
  return report;
}

}  // namespace graft::data
