#include "data/curate/report.h"

#include <algorithm>
#include <map>

#include "core/file.h"
#include "core/html.h"
#include "core/progress.h"
#include "data/curate/examples.h"

namespace graft::data {
namespace {

constexpr size_t kExamples = 5;  // per rule
constexpr size_t kExampleBytes = 320;
constexpr size_t kClusters = 10;

std::string percent(int64_t part, int64_t whole) {
  return format_fixed(
             whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole), 2) +
         " %";
}

// At most three decimals, without zeros at the end: 1, 0.8, 0.001.
std::string short_number(double value) {
  std::string text = format_fixed(value, 3);
  text.erase(text.find_last_not_of('0') + 1);
  return text.back() == '.' ? text.substr(0, text.size() - 1) : text;
}

std::string counted(int64_t count, std::string_view noun) {
  return format_count(count) + " " + std::string(noun) + (count == 1 ? "" : "s");
}

int64_t count_fate(const CleanResult& result, Fate fate) {
  return std::count_if(result.results.begin(), result.results.end(),
                       [&](const ItemResult& item) { return item.fate == fate; });
}

const Verdict* verdict_of(const ItemResult& item, std::string_view rule) {
  for (const Verdict& verdict : item.verdicts) {
    if (verdict.rule == rule) {
      return &verdict;
    }
  }
  return nullptr;
}

std::string item_name(const RecordSource& source, const RawItem& item) {
  return base_name(source.files()[static_cast<size_t>(item.file)]) + ":" +
         std::to_string(item.line) + " (item " + std::to_string(item.index) + ")";
}

void add_figures(HtmlReport& page, const CleanResult& result) {
  const auto total = static_cast<int64_t>(result.items.size());
  const int64_t removed = count_fate(result, Fate::kQuarantined);
  page.figures({{"records in", format_count(total)},
                {"kept", format_count(total - removed)},
                {"quarantined", format_count(removed) + " (" + percent(removed, total) + ")"},
                {"edited", format_count(count_fate(result, Fate::kEdited))}});
  for (const GuardStop& stop : result.stops) {
    page.paragraph("Stopped: " + stop.what + ". Next: " + stop.fix + ".");
  }
}

void add_rules(HtmlReport& page, const CleanResult& result, const std::vector<RuleCount>& counts) {
  page.heading("Rows by rule");
  std::vector<HtmlReport::Bar> bars;
  std::vector<std::vector<std::string>> rows = {
      {"rule", "does", "threshold", "rows", "share", "finds"}};
  const auto total = static_cast<int64_t>(result.items.size());
  std::string silent;
  for (const RuleCount& count : counts) {
    if (count.rows == 0) {
      silent += (silent.empty() ? "" : ", ") + std::string(count.rule->name) +
                (count.setting.action == Action::kOff ? " (off)" : "");
      continue;
    }
    bars.push_back(
        {std::string(count.rule->name), static_cast<double>(count.rows), format_count(count.rows)});
    rows.push_back({std::string(count.rule->name), std::string(action_name(count.setting.action)),
                    short_number(count.setting.threshold), format_count(count.rows),
                    percent(count.rows, total), std::string(count.rule->doc)});
  }
  std::stable_sort(bars.begin(), bars.end(),
                   [](const auto& a, const auto& b) { return a.value > b.value; });
  if (bars.empty()) {
    page.paragraph("No rule found anything.");
  } else {
    page.bar_chart("rows found by each rule (a row may count for several)", bars);
    page.table("<<>>><", rows);
  }
  if (!silent.empty()) {
    page.paragraph("Found nothing: " + silent + ".");
  }
}

void add_examples(HtmlReport& page,
                  const RecordSource& source,
                  const CleanResult& result,
                  const std::vector<RuleCount>& counts) {
  page.heading("Examples");
  for (const RuleCount& count : counts) {
    if (count.rows == 0) {
      continue;
    }
    std::string body = "<ol>";
    size_t shown = 0;
    for (size_t i = 0; i < result.results.size() && shown < kExamples; ++i) {
      const Verdict* verdict = verdict_of(result.results[i], count.rule->name);
      if (verdict == nullptr) {
        continue;
      }
      ++shown;
      const Excerpt text = example_of(source, result, i, *verdict, kExampleBytes);
      body += "<li><small>" + html_escape(item_name(source, result.items[i])) + ", value " +
              short_number(verdict->value) +
              (verdict->detail.empty() ? "" : ", " + html_escape(verdict->detail)) +
              "</small><br>" + html_escape(text.before) + "<mark>" + html_escape(text.marked) +
              "</mark>" + html_escape(text.after);
      if (result.results[i].duplicate_of >= 0) {
        const auto kept = static_cast<size_t>(result.results[i].duplicate_of);
        const Excerpt other = example_of(source, result, kept, {}, kExampleBytes);
        body += "<br><small>kept: " + html_escape(item_name(source, result.items[kept])) +
                "</small><br>" + html_escape(other.line());
      }
      body += "</li>";
    }
    page.details(std::string(count.rule->name) + ": " + counted(count.rows, "row"), body + "</ol>");
  }
}

void add_lengths(HtmlReport& page, const CleanResult& result) {
  page.heading("Lengths of what was kept");
  std::vector<uint32_t> prompts;
  std::vector<uint32_t> answers;
  for (const ItemResult& item : result.results) {
    if (item.readable && item.fate != Fate::kQuarantined) {
      prompts.push_back(item.prompt_words);
      answers.push_back(item.answer_words);
    }
  }
  const auto chart = [&](std::string_view title, const std::vector<uint32_t>& words) {
    std::vector<HtmlReport::Bar> bars;
    for (const auto& [label, count] : length_histogram(words)) {
      bars.push_back({label, static_cast<double>(count), format_count(count)});
    }
    if (!bars.empty()) {
      page.bar_chart(title, bars);
    }
  };
  chart("words in the prompt", prompts);
  chart("words in the answer", answers);
}

void add_clusters(HtmlReport& page, const RecordSource& source, const CleanResult& result) {
  std::map<int64_t, int64_t> removed;  // by kept item
  for (const ItemResult& item : result.results) {
    if (item.duplicate_of >= 0 && item.fate == Fate::kQuarantined) {
      ++removed[item.duplicate_of];
    }
  }
  std::vector<std::pair<int64_t, int64_t>> largest(removed.begin(), removed.end());
  std::stable_sort(largest.begin(), largest.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  largest.resize(std::min(largest.size(), kClusters));
  if (largest.empty()) {
    return;
  }
  page.heading("Largest clusters of duplicates");
  std::vector<std::vector<std::string>> rows = {{"kept", "removed for it", "text"}};
  for (const auto& [kept, count] : largest) {
    const auto at = static_cast<size_t>(kept);
    rows.push_back({item_name(source, result.items[at]), format_count(count),
                    example_of(source, result, at, {}, 160).line()});
  }
  page.table("<><", rows);
}

void add_sources(HtmlReport& page, const RecordSource& source, const CleanResult& result) {
  page.heading("Sources");
  std::vector<std::vector<std::string>> rows = {
      {"file", "records", "kept", "quarantined", "share"}};
  for (size_t f = 0; f < source.files().size(); ++f) {
    int64_t all = 0;
    int64_t gone = 0;
    for (size_t i = 0; i < result.items.size(); ++i) {
      const bool here = result.items[i].file == static_cast<int>(f);
      all += here ? 1 : 0;
      gone += here && result.results[i].fate == Fate::kQuarantined ? 1 : 0;
    }
    rows.push_back({base_name(source.files()[f]), format_count(all), format_count(all - gone),
                    format_count(gone), percent(gone, all)});
  }
  page.table("<>>>>", rows);
}

}  // namespace

std::vector<std::pair<std::string, int64_t>> length_histogram(const std::vector<uint32_t>& words) {
  std::vector<int64_t> counts;
  for (const uint32_t count : words) {
    size_t bucket = 0;
    while ((uint64_t{1} << bucket) <= count) {
      ++bucket;
    }
    counts.resize(std::max(counts.size(), bucket + 1));
    ++counts[bucket];
  }
  std::vector<std::pair<std::string, int64_t>> rows;
  for (size_t b = 0; b < counts.size(); ++b) {
    const uint64_t low = b == 0 ? 0 : uint64_t{1} << (b - 1);
    const uint64_t high = b == 0 ? 0 : (uint64_t{1} << b) - 1;
    if (counts[b] > 0 || !rows.empty()) {
      rows.emplace_back(
          low == high ? std::to_string(low) : std::to_string(low) + "-" + std::to_string(high),
          counts[b]);
    }
  }
  return rows;
}

std::string curation_report(const RecordSource& source,
                            const CleanResult& result,
                            const CleanOptions& options,
                            std::string_view command) {
  HtmlReport page("graft data " + std::string(command),
                  counted(static_cast<int64_t>(result.items.size()), "record") + " in " +
                      counted(static_cast<int64_t>(source.files().size()), "file"));
  std::vector<RuleCount> counts = count_by_rule(result, options);
  if (command == "dedup") {
    std::erase_if(counts, [](const RuleCount& count) {
      return count.rule->name != "exact_duplicate" && count.rule->name != "near_duplicate";
    });
  }
  add_figures(page, result);
  add_rules(page, result, counts);
  add_examples(page, source, result, counts);
  add_lengths(page, result);
  add_clusters(page, source, result);
  add_sources(page, source, result);
  page.heading("What to do next");
  page.paragraph(
      "Read the examples of each rule. A rule that is wrong for this data is turned off, or given "
      "another threshold, in a config: rules: {NAME: off} with --config. Every removed record is "
      "in the quarantine with its reasons; `graft data restore` rebuilds the input byte for byte.");
  return page.finish();
}

}  // namespace graft::data
