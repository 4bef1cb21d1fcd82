#include "data/curate/commands.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "core/yaml.h"
#include "data/curate/clean.h"
#include "data/curate/examples.h"
#include "data/curate/leaks.h"
#include "data/curate/outputs.h"
#include "data/curate/report.h"
#include "data/records/scan.h"

namespace graft::data {
namespace {

constexpr size_t kExampleWidth = 72;

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void print_json(const Json& json) {
  print(dump_json(json) + "\n");
}

int thread_count(const Args& args) {
  const auto asked = static_cast<int>(args.integer("--threads", 0, 1024));
  return asked > 0 ? asked : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::string share(int64_t part, int64_t whole) {
  const double percent =
      whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  return format_fixed(percent, 2) + " %";
}

CleanOptions clean_options(const Args& args) {
  constexpr std::array<std::string_view, 1> kProfiles = {"sft"};
  if (args.text("--profile") != kProfiles[0]) {
    fail(ExitCode::kUsage, unknown_name("profile", args.text("--profile"), kProfiles), "--profile");
  }
  CleanOptions options;
  if (args.has("--config")) {
    const std::string path = args.text("--config");
    apply_config(read_yaml_file(path), path, options);
  }
  if (args.has("--seed")) {
    options.seed = static_cast<uint64_t>(args.integer("--seed", 0, INT64_MAX));
  }
  options.threads = thread_count(args);
  return options;
}

// Progress of one pass over the records; the bar appears with the first block that is done.
class WorkProgress {
 public:
  explicit WorkProgress(std::string label) : label_(std::move(label)) {}
  OnProgress callback() {
    return [this](int64_t done, int64_t total) {
      if (!progress_) {
        progress_ = std::make_unique<Progress>(label_, total, "records");
      }
      progress_->update(done);
    };
  }

 private:
  std::string label_;
  std::unique_ptr<Progress> progress_;
};

int64_t removed_count(const CleanResult& result) {
  return std::count_if(result.results.begin(), result.results.end(),
                       [](const ItemResult& item) { return item.fate == Fate::kQuarantined; });
}

int64_t edited_count(const CleanResult& result) {
  return std::count_if(result.results.begin(), result.results.end(),
                       [](const ItemResult& item) { return item.fate == Fate::kEdited; });
}

const Verdict& verdict_of(const CleanResult& result, const RuleCount& count) {
  for (const Verdict& verdict : result.results[static_cast<size_t>(count.first_item)].verdicts) {
    if (verdict.rule == count.rule->name) {
      return verdict;
    }
  }
  fail(ExitCode::kBug, "a counted rule has no verdict");
}

void print_counts(const RecordSource& source,
                  const CleanResult& result,
                  const CleanOptions& options) {
  const bool colour = stdout_is_terminal();
  const auto total = static_cast<int64_t>(result.items.size());
  std::vector<std::vector<std::string>> rows = {{"rule", "does", "rows", "share", "example"}};
  for (const RuleCount& count : count_by_rule(result, options)) {
    if (count.rows > 0) {
      const Excerpt text = example_of(source, result, static_cast<size_t>(count.first_item),
                                      verdict_of(result, count), kExampleWidth);
      rows.push_back({std::string(count.rule->name), std::string(action_name(count.setting.action)),
                      format_count(count.rows), share(count.rows, total), text.line()});
    }
  }
  if (rows.size() > 1) {
    print(format_table("<<>><", rows));
  }
  const int64_t removed = removed_count(result);
  print(styled(format_count(total) + " records in, " + format_count(total - removed) + " kept (" +
                   format_count(edited_count(result)) + " edited), " + format_count(removed) +
                   " quarantined (" + share(removed, total) + ")",
               "1", colour) +
        "\n");
}

Json counts_json(const RecordSource& source,
                 const CleanResult& result,
                 const CleanOptions& options) {
  Json list = Json::array();
  for (const RuleCount& count : count_by_rule(result, options)) {
    Json row = Json::object({{"rule", count.rule->name},
                             {"action", action_name(count.setting.action)},
                             {"threshold", count.setting.threshold},
                             {"rows", count.rows}});
    if (count.rows > 0) {
      row.set("example", example_of(source, result, static_cast<size_t>(count.first_item),
                                    verdict_of(result, count), kExampleWidth)
                             .line());
    }
    list.push_back(std::move(row));
  }
  const int64_t removed = removed_count(result);
  const auto total = static_cast<int64_t>(result.items.size());
  Json stops = Json::array();
  for (const GuardStop& stop : result.stops) {
    stops.push_back(stop.what);
  }
  return Json::object({{"records", total},
                       {"kept", total - removed},
                       {"edited", edited_count(result)},
                       {"quarantined", removed},
                       {"rules", std::move(list)},
                       {"guard_rails_passed", std::move(stops)}});
}

// Every line that is no record, with its place: what to correct by hand.
void print_unreadable(const RecordSource& source, const CleanResult& result) {
  constexpr int kMost = 20;
  int shown = 0;
  int64_t more = 0;
  for (size_t i = 0; i < result.items.size(); ++i) {
    if (result.results[i].readable || result.results[i].verdicts.empty()) {
      continue;
    }
    if (shown++ >= kMost) {
      ++more;
      continue;
    }
    try {
      read_record(source, result.items[i]);
    } catch (const Error& error) {
      std::fprintf(stderr, "%s: %s\n", error.text().where.c_str(), error.text().what.c_str());
    }
  }
  if (more > 0) {
    std::fprintf(stderr, "and %s more\n", format_count(more).c_str());
  }
}

// ---- inspect

struct Lengths {
  int64_t median = 0;
  int64_t p90 = 0;
  int64_t longest = 0;
};

Lengths lengths_of(std::vector<uint32_t> words) {
  if (words.empty()) {
    return {};
  }
  std::sort(words.begin(), words.end());
  return {words[words.size() / 2], words[words.size() * 9 / 10], words.back()};
}

Json lengths_json(const Lengths& lengths) {
  return Json::object({{"median", lengths.median}, {"p90", lengths.p90}, {"max", lengths.longest}});
}

struct FileFacts {
  int64_t items = 0;
  int64_t unreadable = 0;
  std::map<std::string_view, int64_t> schemas;
  std::vector<uint32_t> prompt_words;
  std::vector<uint32_t> answer_words;
  std::vector<std::string> samples;
  std::string first_error;  // place and reason of the first unreadable item
};

std::vector<FileFacts> gather_facts(RecordSource& source) {
  constexpr size_t kSamples = 3;
  std::vector<FileFacts> facts(source.files().size());
  for (const RawItem& item : read_items(source)) {
    FileFacts& file = facts[static_cast<size_t>(item.file)];
    ++file.items;
    try {
      const Record record = read_record(source, item);
      ++file.schemas[schema_name(record.schema)];
      file.prompt_words.push_back(static_cast<uint32_t>(count_words(record.prompt())));
      file.answer_words.push_back(static_cast<uint32_t>(count_words(record.answer())));
      if (file.samples.size() < kSamples) {
        file.samples.push_back(excerpt(record.prompt(), 0, 0, kExampleWidth).line() + " → " +
                               excerpt(record.answer(), 0, 0, kExampleWidth).line());
      }
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) {
        throw;
      }
      if (file.unreadable++ == 0) {
        file.first_error = error.text().where + ": " + error.text().what;
      }
    }
  }
  return facts;
}

void print_histogram(std::string_view title, const std::vector<uint32_t>& words) {
  constexpr int64_t kBarWidth = 40;
  const auto rows = length_histogram(words);
  int64_t most = 1;
  for (const auto& [label, count] : rows) {
    most = std::max(most, count);
  }
  std::vector<std::vector<std::string>> table = {{std::string(title), "records", ""}};
  for (const auto& [label, count] : rows) {
    const int64_t width = (count * kBarWidth + most - 1) / most;
    table.push_back({label, format_count(count), std::string(static_cast<size_t>(width), '#')});
  }
  print(format_table(">><", table));
}

int run_inspect(const Args& args) {
  RecordSource source(args.positionals());
  const std::vector<FileFacts> facts = gather_facts(source);
  Json files = Json::array();
  for (size_t f = 0; f < facts.size(); ++f) {
    const FileFacts& file = facts[f];
    const bool array = source.is_array(static_cast<int>(f));
    const auto bytes = static_cast<int64_t>(source.file_bytes(static_cast<int>(f)).size());
    Json schemas = Json::object();
    std::string schema_text;
    for (const auto& [name, count] : file.schemas) {
      schemas.set(std::string(name), count);
      schema_text +=
          (schema_text.empty() ? "" : ", ") + std::string(name) + " " + format_count(count);
    }
    if (args.json()) {
      Json samples = Json::array();
      for (const std::string& sample : file.samples) {
        samples.push_back(sample);
      }
      files.push_back(Json::object({{"file", source.files()[f]},
                                    {"format", array ? "array" : "jsonl"},
                                    {"bytes", bytes},
                                    {"records", file.items},
                                    {"unreadable", file.unreadable},
                                    {"first_unreadable", file.first_error},
                                    {"schemas", std::move(schemas)},
                                    {"prompt_words", lengths_json(lengths_of(file.prompt_words))},
                                    {"answer_words", lengths_json(lengths_of(file.answer_words))},
                                    {"samples", std::move(samples)}}));
      continue;
    }
    print(source.files()[f] + ": " + (array ? "JSON array" : "JSONL") + ", " + format_bytes(bytes) +
          ", " + format_count(file.items) + " records (" + schema_text +
          (file.unreadable > 0 ? (schema_text.empty() ? "" : ", ") + std::string("unreadable ") +
                                     format_count(file.unreadable)
                               : "") +
          ")\n");
    if (file.unreadable > 0) {
      print("first unreadable: " + file.first_error + "\n");
    }
    const Lengths prompt = lengths_of(file.prompt_words);
    const Lengths answer = lengths_of(file.answer_words);
    print(format_table("<>>>", {{"words", "median", "90 %", "longest"},
                                {"prompt", format_count(prompt.median), format_count(prompt.p90),
                                 format_count(prompt.longest)},
                                {"answer", format_count(answer.median), format_count(answer.p90),
                                 format_count(answer.longest)}}));
    print_histogram("answer words", file.answer_words);
    for (const std::string& sample : file.samples) {
      print("  " + sample + "\n");
    }
  }
  if (args.json()) {
    print_json(Json::object({{"files", std::move(files)}}));
  }
  return 0;
}

// ---- check

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) {
      parts.push_back(text.substr(at, comma - at));
    }
    at = comma + 1;
  }
  return parts;
}

int run_leak_check(const Args& args) {
  DedupOptions options;
  options.threshold = args.number("--threshold", 0.01, 1);
  options.number_guard = args.text("--number-guard") == "on";
  options.threads = thread_count(args);
  RecordSource source(args.positionals());
  RecordSource against(split_commas(args.text("--against")));
  const LeakReport leaks = find_leaks(source, against, options);
  if (args.json()) {
    Json list = Json::array();
    for (const Leak& leak : leaks.leaks) {
      list.push_back(Json::object(
          {{"file", base_name(source.files()[static_cast<size_t>(leak.item.file)])},
           {"line", leak.item.line},
           {"index", leak.item.index},
           {"against_file", base_name(against.files()[static_cast<size_t>(leak.against.file)])},
           {"against_line", leak.against.line},
           {"against_index", leak.against.index},
           {"exact", leak.exact},
           {"jaccard", leak.similarity}}));
    }
    print_json(Json::object({{"records", leaks.records},
                             {"against", leaks.against},
                             {"unreadable", leaks.unreadable},
                             {"threshold", options.threshold},
                             {"exact_prompt_matches", leaks.exact},
                             {"near_prompt_matches", leaks.near},
                             {"leaks", std::move(list)}}));
  } else {
    std::vector<std::vector<std::string>> rows = {{"record", "matches", "jaccard", "prompt"}};
    constexpr size_t kMost = 20;
    for (const Leak& leak : leaks.leaks) {
      if (rows.size() > kMost) {
        break;
      }
      const Record record = read_record(source, leak.item);
      rows.push_back({base_name(source.files()[static_cast<size_t>(leak.item.file)]) + ":" +
                          std::to_string(leak.item.line),
                      base_name(against.files()[static_cast<size_t>(leak.against.file)]) + ":" +
                          std::to_string(leak.against.line),
                      leak.exact ? "exact" : format_fixed(leak.similarity, 3),
                      excerpt(record.prompt(), 0, 0, kExampleWidth).line()});
    }
    if (rows.size() > 1) {
      print(format_table("<<><", rows));
    }
    print(format_count(leaks.exact) + " exact and " + format_count(leaks.near) +
          " near prompt matches (Jaccard >= " + format_fixed(options.threshold, 2) + ") of " +
          format_count(leaks.records) + " records against " + format_count(leaks.against) + "\n");
  }
  return leaks.leaks.empty() ? 0 : static_cast<int>(ExitCode::kFindings);
}

int run_check(const Args& args) {
  if (args.has("--against")) {
    return run_leak_check(args);
  }
  const CleanOptions options = clean_options(args);
  RecordSource source(args.positionals());
  const CleanResult result = [&] {
    WorkProgress progress("check");
    return clean(source, options, progress.callback());
  }();
  if (args.json()) {
    print_json(counts_json(source, result, options));
  } else {
    print_counts(source, result, options);
  }
  print_unreadable(source, result);
  const double bad =
      100.0 * static_cast<double>(removed_count(result)) / static_cast<double>(result.items.size());
  return bad > args.number("--max-bad", 0, 100) ? static_cast<int>(ExitCode::kFindings) : 0;
}

// ---- clean and dedup

// A run that passed a guard rail leaves the folder's earlier outputs alone: a training job behind
// it finds no half-emptied set. What it would have written lies in a folder of its own.
std::string folder_of_run(const Args& args, const CleanResult& result) {
  const std::string folder = args.need("--out");
  const bool stopped = !result.stops.empty() && !args.flag("--allow");
  return stopped ? join_path(folder, "stopped") : folder;
}

int finish_run(const Args& args,
               const CleanResult& result,
               const std::string& folder,
               const std::vector<std::string_view>& names) {
  const bool stopped = !result.stops.empty() && !args.flag("--allow");
  if (stopped) {
    const GuardStop& stop = result.stops.front();
    fail(ExitCode::kData, stop.what, folder, stop.fix);
  }
  if (!args.json()) {
    std::string list;
    for (const std::string_view name : names) {
      list += (list.empty() ? "" : ", ") + std::string(name);
    }
    print("written to " + folder + ": " + list + "\n");
    print("next: open " + join_path(folder, "report.html") + "; `graft data restore " + folder +
          " --out FILE` rebuilds the input\n");
  }
  return 0;
}

Json clean_settings(const CleanOptions& options) {
  return Json::object({{"profile", "sft"},
                       {"number_guard", options.number_guard},
                       {"seed", options.seed},
                       {"max_removed_percent", options.guards.max_removed_percent},
                       {"max_cluster_percent", options.guards.max_cluster_percent},
                       {"small_cluster", options.guards.small_cluster}});
}

int run_clean(const Args& args) {
  const CleanOptions options = clean_options(args);
  args.need("--out");
  RecordSource source(args.positionals());
  const CleanResult result = [&] {
    WorkProgress progress("clean");
    return clean(source, options, progress.callback());
  }();
  const std::string folder = folder_of_run(args, result);
  write_outputs(source, result, options,
                {"clean",
                 {"clean.jsonl", "quarantine.jsonl"},
                 clean_settings(options),
                 curation_report(source, result, options, "clean")},
                {}, folder);
  if (args.json()) {
    print_json(counts_json(source, result, options));
  } else {
    print_counts(source, result, options);
  }
  return finish_run(args, result, folder,
                    {"clean.jsonl", "quarantine.jsonl", "edits.jsonl", "layout.json",
                     "manifest.json", "report.html"});
}

// {"id","cluster"}: the record's own id (a number where the record holds one), else its index over
// all files.
std::string clusters_text(const CleanResult& result) {
  std::string text;
  for (size_t i = 0; i < result.items.size(); ++i) {
    const ItemResult& item = result.results[i];
    const int64_t cluster = item.cluster < 0 ? static_cast<int64_t>(i) : item.cluster;
    const std::string_view own_id =
        item.id.empty() ? std::string_view() : json_member(result.items[i].raw, "id");
    text += "{\"id\":";
    text += own_id.empty() ? std::to_string(i) : std::string(own_id);
    text += ",\"cluster\":" + std::to_string(cluster) +
            (item.fate == Fate::kQuarantined ? ",\"kept\":false}\n" : ",\"kept\":true}\n");
  }
  return text;
}

int run_dedup(const Args& args) {
  DedupOptions options;
  options.threshold = args.number("--threshold", 0.01, 1);
  options.view = parse_view(args.text("--view"));
  const std::string guard = args.text("--number-guard");
  if (guard != "on" && guard != "off") {
    fail(ExitCode::kUsage, "--number-guard must be on or off, got \"" + guard + "\"");
  }
  options.number_guard = guard == "on";
  options.threads = thread_count(args);
  args.need("--out");
  RecordSource source(args.positionals());
  const CleanResult result = [&] {
    WorkProgress progress("dedup");
    return dedup_only(source, options, GuardRails{}, progress.callback());
  }();
  CleanOptions report_options;  // the two rules that ran, with their threshold
  for (size_t r = 0; r < rules().size(); ++r) {
    const bool near = rules()[r].name == "near_duplicate";
    report_options.settings[r] = near ? RuleSetting{Action::kQuarantine, options.threshold}
                                 : rules()[r].name == "exact_duplicate"
                                     ? report_options.settings[r]
                                     : RuleSetting{Action::kOff, rules()[r].threshold};
  }
  const std::string folder = folder_of_run(args, result);
  write_outputs(source, result, report_options,
                {"dedup",
                 {"kept.jsonl", "removed.jsonl"},
                 Json::object({{"threshold", options.threshold},
                               {"view", args.text("--view")},
                               {"number_guard", options.number_guard}}),
                 curation_report(source, result, report_options, "dedup")},
                {{"clusters.jsonl", clusters_text(result)}}, folder);
  if (args.json()) {
    print_json(counts_json(source, result, report_options));
  } else {
    print_counts(source, result, report_options);
  }
  return finish_run(args, result, folder,
                    {"kept.jsonl", "removed.jsonl", "clusters.jsonl", "edits.jsonl", "layout.json",
                     "manifest.json", "report.html"});
}

// ---- restore and rules

int run_restore(const Args& args) {
  const std::vector<std::string> paths = restore(args.positionals().front(), args.need("--out"));
  Json list = Json::array();
  for (const std::string& path : paths) {
    list.push_back(path);
    if (!args.json()) {
      print("restored " + path + " (" + format_bytes(file_size(path)) +
            ", SHA-256 as in the manifest)\n");
    }
  }
  if (args.json()) {
    print_json(Json::object({{"restored", std::move(list)}}));
  }
  return 0;
}

int run_rules(const Args& args) {
  Json list = Json::array();
  std::vector<std::vector<std::string>> rows = {{"rule", "does", "threshold", "finds"}};
  for (const Rule& rule : rules()) {
    list.push_back(Json::object({{"rule", rule.name},
                                 {"action", action_name(rule.action)},
                                 {"threshold", rule.threshold},
                                 {"version", rule.version},
                                 {"doc", rule.doc}}));
    const int digits = rule.threshold < 1 ? 3 : 0;
    rows.push_back({std::string(rule.name), std::string(action_name(rule.action)),
                    format_fixed(rule.threshold, digits), std::string(rule.doc)});
  }
  if (args.json()) {
    print_json(Json::object({{"rules", std::move(list)}}));
  } else {
    print(format_table("<<><", rows));
  }
  return 0;
}

constexpr Option kProfile{"--profile", "P", "sft", "the set of rules: sft"};
constexpr Option kConfig{"--config", "data.yaml", "", "actions, thresholds and guard rails"};
constexpr Option kThreads{"--threads", "N", "0", "0 = all cores; the result is the same for any"};
constexpr Option kAllow{"--allow", "", "", "accept a result that passes a guard rail"};
constexpr Option kGuard{"--number-guard", "on|off", "on",
                        "texts whose numbers, operators or short answers differ are no duplicates"};

}  // namespace

std::vector<Command> curate_commands() {
  return {
      {"inspect",
       "FILE…",
       1,
       -1,
       "schema, counts, lengths and samples of files",
       {},
       {"graft data inspect train.jsonl"},
       run_inspect},
      {"check",
       "FILE…",
       1,
       -1,
       "what clean would quarantine, read-only; with --against: prompts shared with other files",
       {kProfile,
        kConfig,
        {"--max-bad", "PCT", "0", "exit 1 when more than this share is bad"},
        {"--against", "FILE[,FILE…]", "",
         "look for leaks instead: exact and near prompt matches; exit 1 on any"},
        {"--threshold", "J", "0.8", "with --against: Jaccard similarity of a near match"},
        kGuard,
        kThreads},
       {"graft data check train.jsonl --max-bad 1",
        "graft data check train.jsonl --against eval.jsonl"},
       run_check},
      {"clean",
       "FILE…",
       1,
       -1,
       "quarantine what the rules find, remove duplicates, explain both",
       {{"--out", "DIR", "", "folder of the outputs"},
        kProfile,
        kConfig,
        kThreads,
        {"--seed", "N", "0", "of the duplicate search's hash functions"},
        kAllow},
       {"graft data clean train.json --out out/clean"},
       run_clean},
      {"dedup",
       "FILE…",
       1,
       -1,
       "remove exact and near duplicates only",
       {{"--out", "DIR", "", "folder of the outputs"},
        {"--threshold", "J", "0.7", "Jaccard similarity of word 5-grams"},
        {"--view", "all|prompt|answer", "all", "the text that is compared"},
        kGuard,
        kThreads,
        kAllow},
       {"graft data dedup train.jsonl --out out/dedup --threshold 0.8"},
       run_dedup},
      {"restore",
       "DIR",
       1,
       1,
       "rebuild the input of clean or dedup byte for byte",
       {{"--out", "FILE", "", "the file; a folder when the run had several inputs"}},
       {"graft data restore out/clean --out again.json"},
       run_restore},
      {"rules", "", 0, 0, "the table of rules", {}, {"graft data rules"}, run_rules},
  };
}

}  // namespace graft::data
