#include "data/curate/clean.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "core/yaml.h"
#include "data/curate/conflicts.h"
#include "data/curate/parallel.h"
#include "data/records/scan.h"

namespace graft::data {
namespace {

constexpr int64_t kItemBlock = 128;  // items a thread takes at once

size_t rule_index(std::string_view name) {
  return static_cast<size_t>(&rule_named(name, "") - rules().data());
}

// The item with the value of its top-level `key` replaced by an empty string.
std::string with_empty_member(std::string_view raw, std::string_view key) {
  const std::string_view value = json_member(raw, key);
  if (value.empty()) {
    return std::string(raw);
  }
  const auto begin = static_cast<size_t>(value.data() - raw.data());
  return std::string(raw.substr(0, begin)) + "\"\"" + std::string(raw.substr(begin + value.size()));
}

std::string edit_noinput(std::string_view raw) {
  std::string edited = with_empty_member(raw, "input");
  return edited == raw ? with_empty_member(raw, "context") : edited;
}

// The place of an error within its file: "line 3, column 7" without the path.
std::string error_detail(const ErrorText& text, std::string_view file) {
  std::string place = text.where;
  if (place.rfind(file, 0) == 0) {
    place.erase(0, file.size());
  }
  const size_t first = place.find_first_not_of(": ");
  return text.what + (first == std::string::npos ? "" : " at " + place.substr(first));
}

class Cleaner {
 public:
  Cleaner(RecordSource& source, const OnProgress& progress) : source_(source), progress_(progress) {
    result_.items = read_items(source);
    result_.results.resize(result_.items.size());
    prints_.resize(result_.items.size());
    prompts_.resize(result_.items.size());
  }

  // Reads every item; `judge` looks at the readable ones.
  template <typename Judge>
  void for_each_record(int threads, Judge judge) {
    const auto count = static_cast<int64_t>(result_.items.size());
    parallel_for((count + kItemBlock - 1) / kItemBlock, threads, [&](int64_t block) {
      const int64_t end = std::min(count, (block + 1) * kItemBlock);
      for (int64_t i = block * kItemBlock; i < end; ++i) {
        const RawItem& item = result_.items[static_cast<size_t>(i)];
        try {
          Record record = read_record(source_, item);
          if (record.schema == Schema::kTokens) {
            fail(ExitCode::kData, "the record holds token ids, no text to judge", "",
                 "give pretokenized files to `graft data tokenize` or the trainer");
          }
          judge(static_cast<size_t>(i), std::move(record));
        } catch (const Error& error) {
          if (error.code() != ExitCode::kData) {
            throw;
          }
          unreadable(static_cast<size_t>(i), error);
        }
      }
      const std::lock_guard<std::mutex> lock(progress_mutex_);
      done_ += end - block * kItemBlock;
      progress_(done_, count);
    });
  }

  void judge(size_t i, Record record, const CleanOptions& options) {
    ItemResult& result = result_.results[i];
    apply_rules(record, options, result);
    if (result.fate == Fate::kEdited) {
      result.edited = edit_noinput(result_.items[i].raw);
      record = parse_record(parse_json(result.edited, ""), "");
      apply_rules(record, options, result);
    }
    prints_[i] = fingerprint(record, View::kAll);
    describe(record, prints_[i], result);
    if (result.fate == Fate::kQuarantined) {
      prints_[i] = {};
    } else {
      prompts_[i] = hash128(folded_view(record, View::kPrompt));
    }
  }

  void describe_only(size_t i, const Record& record, View view) {
    prints_[i] = fingerprint(record, view);
    describe(record, view == View::kAll ? prints_[i] : fingerprint(record, View::kAll),
             result_.results[i]);
  }

  void remove_duplicates(const DedupOptions& options,
                         const RuleSetting& exact,
                         const RuleSetting& near) {
    std::vector<int64_t> index;
    std::vector<Fingerprint> prints;
    for (size_t i = 0; i < result_.items.size(); ++i) {
      const ItemResult& item = result_.results[i];
      if (item.readable && item.fate != Fate::kQuarantined) {
        index.push_back(static_cast<int64_t>(i));
        prints.push_back(std::move(prints_[i]));  // folded_answer stays readable in both
      }
    }
    // Copies of one record are asked about one after another: its text is folded once.
    int64_t folded_item = -1;
    std::string folded;
    const DedupResult found = deduplicate(prints, options, [&](int64_t a, int64_t b) {
      if (folded_item != a) {
        folded_item = a;
        folded = folded_view(record_of(index[static_cast<size_t>(a)]), options.view);
      }
      return folded == folded_view(record_of(index[static_cast<size_t>(b)]), options.view);
    });
    for (size_t k = 0; k < index.size(); ++k) {
      ItemResult& item = result_.results[static_cast<size_t>(index[k])];
      item.cluster = index[static_cast<size_t>(found.cluster[k])];
      if (found.duplicate_of[k] == DedupResult::kNone) {
        continue;
      }
      const bool is_exact = found.exact[k];
      const RuleSetting& setting = is_exact ? exact : near;
      if (setting.action == Action::kOff) {
        continue;
      }
      item.similarity = found.similarity[k];
      item.duplicate_of = index[static_cast<size_t>(found.duplicate_of[k])];
      const std::string_view rule = is_exact ? "exact_duplicate" : "near_duplicate";
      item.verdicts.push_back({rule, setting.action, item.similarity, setting.threshold, {}, ""});
      item.fate = setting.action == Action::kQuarantine ? Fate::kQuarantined : item.fate;
    }
  }

  void compare_prompts(const CleanOptions& options) {
    const RuleSetting& conflict = options.of("prompt_conflict");
    const RuleSetting& repeated = options.of("prompt_repeated");
    std::vector<PromptAnswer> answers;
    for (size_t i = 0; i < result_.items.size(); ++i) {
      const ItemResult& item = result_.results[i];
      const bool exact_copy =
          !item.verdicts.empty() && item.verdicts.back().rule == "exact_duplicate";
      const bool alive = item.readable && (item.fate != Fate::kQuarantined || exact_copy);
      if (alive && item.prompt_words > 0) {
        answers.push_back({static_cast<int64_t>(i), prompts_[i], prints_[i].folded_answer,
                           item.answer_words, item.fate != Fate::kQuarantined});
      }
    }
    const auto decide = find_conflicts(std::move(answers), conflict.threshold,
                                       [&](int64_t i) { return record_of(i); });
    for (const PromptDecision& decision : decide) {
      const RuleSetting& setting = decision.conflict ? conflict : repeated;
      ItemResult& item = result_.results[static_cast<size_t>(decision.item)];
      if (setting.action == Action::kOff) {
        continue;
      }
      const std::string_view rule = decision.conflict ? "prompt_conflict" : "prompt_repeated";
      item.verdicts.push_back({rule,
                               setting.action,
                               static_cast<double>(decision.answers),
                               setting.threshold,
                               {},
                               decision.detail});
      item.fate = setting.action == Action::kQuarantine ? Fate::kQuarantined : item.fate;
    }
  }

  CleanResult finish(const GuardRails& guards) {
    check_removed_share(guards);
    check_largest_cluster(guards);
    return std::move(result_);
  }

  void quarantine_unreadable(const CleanOptions* options) { options_ = options; }

 private:
  Record record_of(int64_t i) const {
    const ItemResult& result = result_.results[static_cast<size_t>(i)];
    if (!result.edited.empty()) {
      return parse_record(parse_json(result.edited, ""), "");
    }
    return read_record(source_, result_.items[static_cast<size_t>(i)]);
  }

  // An item that is no record always leaves: nothing could be trained on.
  void unreadable(size_t i, const Error& error) {
    if (options_ == nullptr) {
      return;
    }
    const RawItem& item = result_.items[i];
    bool is_json = true;
    try {
      is_json = static_cast<size_t>(item.end - item.begin) <= (size_t{64} << 20);
      if (is_json) {
        parse_json(item.raw, "");
      }
    } catch (const Error&) {
      is_json = false;
    }
    ItemResult& result = result_.results[i];
    result.fate = Fate::kQuarantined;
    result.verdicts.push_back(
        {is_json ? "schema" : "malformed",
         Action::kQuarantine,
         1,
         1,
         {},
         error_detail(error.text(), source_.files()[static_cast<size_t>(item.file)])});
  }

  static void apply_rules(const Record& record, const CleanOptions& options, ItemResult& result) {
    const Subject subject(record);
    const std::span<const Rule> table = rules();
    for (size_t r = 0; r < table.size(); ++r) {
      const RuleSetting& setting = options.settings[r];
      const bool edited_before = result.fate == Fate::kEdited && setting.action == Action::kEdit;
      const bool seen =
          std::any_of(result.verdicts.begin(), result.verdicts.end(),
                      [&](const Verdict& verdict) { return verdict.rule == table[r].name; });
      if (table[r].check == nullptr || setting.action == Action::kOff || edited_before || seen) {
        continue;
      }
      std::optional<Finding> finding = table[r].check(subject, setting.threshold);
      if (!finding || finding->value < setting.threshold) {
        continue;
      }
      result.verdicts.push_back({table[r].name, setting.action, finding->value, setting.threshold,
                                 finding->span, std::move(finding->detail)});
      if (setting.action == Action::kQuarantine) {
        result.fate = Fate::kQuarantined;
      } else if (setting.action == Action::kEdit && result.fate == Fate::kKept) {
        result.fate = Fate::kEdited;
      }
    }
  }

  static void describe(const Record& record, const Fingerprint& print, ItemResult& result) {
    result.readable = true;
    result.schema = record.schema;
    result.id = record.id;
    result.prompt_words = print.prompt_words;
    result.answer_words = print.answer_words;
  }

  void check_removed_share(const GuardRails& guards) {
    std::vector<int64_t> all(source_.files().size(), 0);
    std::vector<int64_t> gone(source_.files().size(), 0);
    for (size_t i = 0; i < result_.items.size(); ++i) {
      const auto file = static_cast<size_t>(result_.items[i].file);
      ++all[file];
      gone[file] += result_.results[i].fate == Fate::kQuarantined ? 1 : 0;
    }
    for (size_t f = 0; f < all.size(); ++f) {
      const double percent =
          all[f] == 0 ? 0 : 100.0 * static_cast<double>(gone[f]) / static_cast<double>(all[f]);
      if (percent > guards.max_removed_percent && gone[f] > 1) {
        result_.stops.push_back(
            {format_fixed(percent, 1) + " % of " + base_name(source_.files()[f]) +
                 " would be removed (" + format_count(gone[f]) + " of " + format_count(all[f]) +
                 "; the limit is " + format_fixed(guards.max_removed_percent, 0) + " %)",
             "look at the reasons in report.html; turn the rule off or raise its threshold with "
             "--config, or accept with --allow"});
      }
    }
  }

  void check_largest_cluster(const GuardRails& guards) {
    std::unordered_map<int64_t, int64_t> removed;
    for (const ItemResult& item : result_.results) {
      if (item.duplicate_of >= 0 && item.fate == Fate::kQuarantined) {
        ++removed[item.cluster];
      }
    }
    int64_t largest = 0;
    int64_t at = -1;
    for (const auto& [cluster, count] : removed) {
      if (count > largest || (count == largest && cluster < at)) {
        largest = count;
        at = cluster;
      }
    }
    const auto total = static_cast<double>(result_.items.size());
    const double percent = 100.0 * static_cast<double>(largest + 1) / std::max(1.0, total);
    if (largest + 1 > guards.small_cluster && percent > guards.max_cluster_percent) {
      const RawItem& item = result_.items[static_cast<size_t>(at)];
      result_.stops.push_back(
          {"one cluster of duplicates holds " + format_count(largest + 1) + " items (" +
               format_fixed(percent, 1) + " % of the data; the limit is " +
               format_fixed(guards.max_cluster_percent, 1) + " %), first seen at item " +
               std::to_string(item.index) + " of " +
               base_name(source_.files()[static_cast<size_t>(item.file)]),
           "look at the largest clusters in report.html: a template, or a file given twice? Raise "
           "the threshold, or accept with --allow"});
    }
  }

  RecordSource& source_;
  const OnProgress& progress_;
  const CleanOptions* options_ = nullptr;
  std::mutex progress_mutex_;
  int64_t done_ = 0;
  CleanResult result_;
  std::vector<Fingerprint> prints_;
  std::vector<Hash128> prompts_;
};

}  // namespace

CleanOptions::CleanOptions() {
  for (const Rule& rule : rules()) {
    settings.push_back({rule.action, rule.threshold});
  }
}

const RuleSetting& CleanOptions::of(std::string_view rule) const {
  return settings[rule_index(rule)];
}

std::vector<RawItem> read_items(RecordSource& source) {
  std::vector<RawItem> items;
  for (RawItem item; source.next(item);) {
    items.push_back(item);
  }
  if (items.empty()) {
    fail(ExitCode::kData, "no records in the input",
         source.files().empty() ? "" : source.files()[0],
         "give a JSONL file or a JSON array of records");
  }
  return items;
}

CleanResult clean(RecordSource& source, const CleanOptions& options, const OnProgress& progress) {
  Cleaner cleaner(source, progress);
  cleaner.quarantine_unreadable(&options);
  cleaner.for_each_record(options.threads, [&](size_t i, Record record) {
    cleaner.judge(i, std::move(record), options);
  });
  DedupOptions dedup;
  dedup.threshold = options.of("near_duplicate").threshold;
  dedup.number_guard = options.number_guard;
  dedup.seed = options.seed;
  dedup.threads = options.threads;
  dedup.near = options.of("near_duplicate").action != Action::kOff;
  cleaner.remove_duplicates(dedup, options.of("exact_duplicate"), options.of("near_duplicate"));
  cleaner.compare_prompts(options);
  return cleaner.finish(options.guards);
}

CleanResult dedup_only(RecordSource& source,
                       const DedupOptions& options,
                       const GuardRails& guards,
                       const OnProgress& progress) {
  Cleaner cleaner(source, progress);
  cleaner.for_each_record(options.threads, [&](size_t i, const Record& record) {
    cleaner.describe_only(i, record, options.view);
  });
  cleaner.remove_duplicates(options, {Action::kQuarantine, 1},
                            {Action::kQuarantine, options.threshold});
  return cleaner.finish(guards);
}

std::vector<RuleCount> count_by_rule(const CleanResult& result, const CleanOptions& options) {
  std::vector<RuleCount> counts;
  std::map<std::string_view, size_t> at;
  for (size_t r = 0; r < rules().size(); ++r) {
    at[rules()[r].name] = r;
    counts.push_back({&rules()[r], options.settings[r], 0, -1});
  }
  for (size_t i = 0; i < result.results.size(); ++i) {
    for (const Verdict& verdict : result.results[i].verdicts) {
      RuleCount& count = counts[at.at(verdict.rule)];
      ++count.rows;
      count.first_item = count.first_item < 0 ? static_cast<int64_t>(i) : count.first_item;
    }
  }
  return counts;
}

}  // namespace graft::data
