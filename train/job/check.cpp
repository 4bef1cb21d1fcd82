#include "train/job/check.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string_view>

#include "core/file.h"
#include "core/progress.h"
#include "train/job/config.h"
#include "train/job/dataset.h"
#include "train/job/memory.h"
#include "train/job/run_file.h"
#include "train/job/scratch.h"
#include "train/job/vocabulary.h"
#include "train/model/init/initialisation.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

// What a rule of the tokenizer's report means for a run, and what helps.
struct RuleAdvice {
  std::string_view rule;
  std::string_view part;
  const char* what;
  const char* fix;
};
constexpr RuleAdvice kAdvice[] = {
    {"unreadable", "data", "records cannot be read and are left out",
     "correct them, or clean the file: graft data clean"},
    {"template", "text", "records are refused by the chat template and left out",
     "correct the records, or the model's chat template"},
    {"special_in_content", "data", "records hold the text of special tokens and are left out",
     "clean them, or set content_specials: literal"},
    {"nothing_trained", "mask", "records have no trained token and are left out",
     "look at roles_to_train, and at `train` and `weight` of the messages"},
    {"too_long", "data", "documents are longer than sequence_len",
     "raise sequence_len, or set excess_length_strategy"},
    {"double_bos", "mask", "documents begin with two BOS and are left out",
     "take BOS out of the chat template, or out of the data"},
    {"unstopped_turn", "mask",
     "documents have trained turns that do not end in a trained stop token",
     "end assistant turns with a special token in the chat template, or the model never learns to "
     "stop"},
    {"unlike_serving", "mask",
     "documents have turns behind another text than when the model is served",
     "let the chat template write the same in front of a turn in training and in serving"},
    {"straddling", "mask",
     "documents have tokens across the border of a turn, which are not trained",
     "the template should part turns by special tokens or line ends"},
    {"truncated", "data", "documents are cut off", "raise sequence_len"},
    {"bad_member", "data", "records have a `train`, `weight` or ids of the wrong kind",
     "correct them"},
};

const RuleAdvice* find_advice(std::string_view rule) {
  const auto* found = std::find_if(std::begin(kAdvice), std::end(kAdvice),
                                   [&](const RuleAdvice& one) { return one.rule == rule; });
  return found == std::end(kAdvice) ? nullptr : found;
}

// Lines of the tokenizer's report by rule, with the first of each.
struct RuleCount {
  int64_t count = 0;
  int64_t left_out = 0;  // of these
  std::string first;     // "data.jsonl:3: …"
};

std::map<std::string, RuleCount> count_rules(const std::string& report) {
  std::map<std::string, RuleCount> counts;
  std::ifstream lines(report);
  for (std::string line; std::getline(lines, line);) {
    const Json one = parse_json(line, report);
    RuleCount& rule = counts[one.at("rule").as_string()];
    rule.left_out += one.at("kept").as_bool() ? 0 : 1;
    if (++rule.count > 1) continue;
    rule.first = one.at("file").as_string() + ":" + std::to_string(one.at("line").as_int()) + ": " +
                 one.at("reason").as_string();
  }
  return counts;
}

class Checker {
 public:
  Checker(const std::string& path, const std::vector<std::string>& overrides)
      : config_report_(report_config(path, overrides)), config_(config_report_.config) {}

  CheckReport run();

 private:
  // Runs the check of a part where what it needs is there.
  void part(const char* name, bool possible, const std::function<void()>& body);
  void add(Severity severity, std::string_view part, ErrorText text) {
    report_.findings.push_back({severity, std::string(part), std::move(text)});
  }
  bool is_good(std::string_view key) const { return !config_report_.is_bad(key); }

  void check_data();
  void check_file(const Dataset& dataset, const std::string& scratch);
  void check_new_tokens();
  void add_rules(const Dataset& dataset, const std::map<std::string, RuleCount>& rules);
  Severity severity_of(std::string_view rule) const;
  void check_adapter();
  void check_plan();

  ConfigReport config_report_;
  const TrainConfig& config_;
  CheckReport report_;
  std::optional<ModelConfig> model_;
  std::optional<ModelText> text_;
  std::vector<int64_t> new_tokens_;  // how often each stands in `datasets`
};

void Checker::part(const char* name, bool possible, const std::function<void()>& body) {
  if (!possible) {
    report_.skipped.emplace_back(name);
    return;
  }
  report_.parts.emplace_back(name);
  try {
    body();
  } catch (const Error& error) {
    add(Severity::kError, name, error.text());
  }
}

Severity Checker::severity_of(std::string_view rule) const {
  const bool raises =
      (rule == "too_long" && config_.mask.over_long == data::OverLong::kRaise) ||
      (rule == "unstopped_turn" && config_.mask.faults.unstopped_turn == data::FaultLevel::kRaise);
  return raises ? Severity::kError : Severity::kWarning;
}

void Checker::add_rules(const Dataset& dataset, const std::map<std::string, RuleCount>& rules) {
  for (const auto& [rule, seen] : rules) {
    const RuleAdvice* advice = find_advice(rule);
    std::string what = advice != nullptr ? advice->what : "records are left out: " + rule;
    std::string fix = advice != nullptr ? advice->fix : "";
    if (rule == "unlike_serving" && config_.mask.turns == data::Turns::kAll) {
      what += ": train_on_turns: all differs from serving";
      fix = "set train_on_turns: expand";
    }
    add(severity_of(rule), advice != nullptr ? advice->part : "data",
        {dataset.path + ": " + format_count(seen.count) + " " + what, seen.first, fix});
  }
}

// Tokenizes the file as training would, but goes on where that would end with an error.
void Checker::check_file(const Dataset& dataset, const std::string& scratch) {
  data::MaskOptions mask = config_.mask;
  if (mask.over_long == data::OverLong::kRaise) mask.over_long = data::OverLong::kDrop;
  if (mask.faults.unstopped_turn == data::FaultLevel::kRaise) {
    mask.faults.unstopped_turn = data::FaultLevel::kReport;
  }
  const data::TokenizeInput input = {{dataset.path},
                                     {dataset.fields},
                                     text_->tokenizer.get(),
                                     text_->chat_or_null(),
                                     text_->directory};
  data::TokenizeOptions options;
  options.mask = mask;
  options.out = join_path(scratch, "store.h5");
  options.report = join_path(scratch, "report.jsonl");
  options.threads = static_cast<int>(config_.threads);
  remove_tree(options.report);
  DataCounts counts;
  counts.file = dataset.path;
  Progress progress("check " + base_name(dataset.path), file_size(dataset.path), "bytes");
  try {
    const data::TokenizeSummary summary =
        data::tokenize_files(input, data::tokenize_settings(input, mask), options,
                             [&](int64_t done, int64_t) { progress.update(done); });
    counts.records = summary.records;
    counts.documents = summary.documents;
    counts.tokens = summary.tokens;
    counts.supervised = summary.supervised;
    counts.longest = summary.lengths.empty() ? 0 : summary.lengths.rbegin()->first;
  } catch (const Error& error) {
    add(Severity::kError, "data", error.text());
  }
  progress.finish();
  const std::map<std::string, RuleCount> rules = count_rules(options.report);
  for (const auto& [rule, seen] : rules) {
    counts.by_rule.emplace_back(rule, seen.count);
    // Without a document there is no summary.
    if (counts.documents == 0) counts.records += seen.left_out;
  }
  add_rules(dataset, rules);
  report_.data.push_back(std::move(counts));
}

void Checker::check_new_tokens() {
  for (size_t i = 0; i < new_tokens_.size(); ++i) {
    if (new_tokens_[i] > 0) continue;
    const bool refused = config_.new_tokens[i].special &&
                         config_.mask.content_specials != data::ContentSpecials::kParse;
    add(Severity::kWarning, "data",
        {"\"" + config_.new_tokens[i].content + "\" stands in no document: it is not learnt",
         "new_tokens[" + std::to_string(i) + "]",
         refused ? "where messages hold it, set content_specials: parse, or special: false"
                 : "leave it out, or add records that hold it"});
  }
}

void Checker::check_data() {
  const ScratchDirectory scratch;
  new_tokens_.assign(config_.new_tokens.size(), 0);
  for (const std::vector<Dataset>* const list : {&config_.datasets, &config_.test_datasets}) {
    for (const Dataset& dataset : *list) {
      if (dataset.path == "-") continue;  // the key is missing
      try {
        check_file(dataset, scratch.path());
        if (list == &config_.datasets && report_.data.back().documents > 0) {
          const std::vector<int64_t> counts = count_new_tokens(
              *model_, data::TokenStore::open(join_path(scratch.path(), "store.h5")));
          for (size_t i = 0; i < counts.size(); ++i) new_tokens_[i] += counts[i];
        }
      } catch (const Error& error) {
        add(Severity::kError, "data", error.text());
      }
    }
  }
  check_new_tokens();
}

void Checker::check_adapter() {
  const std::unique_ptr<Model> model = empty_model(*model_);
  report_.coverage = coverage_of(*model, config_.lora);
  add_lora_shapes(*model, config_.lora, config_.precision());  // ranks, patterns, modules to save
  const Initialisation& init = *find_initialisation(config_.lora.init).row;
  if (init.takes_iterations)
    OriginalWeights{config_.base_model};  // not those of a 4-bit checkpoint
}

void Checker::check_plan() {
  const RunPlan plan = plan_run(config_, *model_);
  report_.planned_bytes = plan.memory.total();
  report_.limit_bytes = plan.request.cap;
  refuse_unfit(config_, *model_, plan);
}

CheckReport Checker::run() {
  report_.parts.emplace_back("config");
  for (const ErrorText& problem : config_report_.problems) {
    add(Severity::kError, "config", problem);
  }
  part("model", is_good("base_model"), [&] { model_ = read_model_config(config_.base_model); });
  part("weights", model_.has_value() && !config_.random_weights,
       [&] { check_weight_files(*model_, config_.base_model); });
  part("text", model_.has_value(), [&] {
    const Vocabulary vocabulary = read_vocabulary(config_);
    model_ = vocabulary.model;
    const ScratchDirectory scratch;
    text_ = load_run_text(config_, vocabulary, join_path(scratch.path(), "tokenizer"));
  });
  part("data", text_.has_value(), [&] { check_data(); });
  const bool adapts = config_.method != Method::kFull;
  bool fits_model = true;
  if (adapts) {
    const size_t before = report_.findings.size();
    part("adapter", model_.has_value(), [&] { check_adapter(); });
    fits_model = report_.findings.size() == before;
  }
  // Without its text nobody knows how large a model with new tokens is.
  const bool is_whole = config_.new_tokens.empty() || text_.has_value();
  part("plan", model_.has_value() && is_whole && fits_model, [&] { check_plan(); });
  part("output", is_good("output_dir"),
       [&] { check_output_directory(config_, RunFile(config_.output_dir)); });
  return std::move(report_);
}

// ---- the command

constexpr const char* kSeverityNames[] = {"error", "warning"};

Json report_to_json(const CheckReport& report) {
  Json findings = Json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back(
        Json::object({{"severity", kSeverityNames[static_cast<size_t>(finding.severity)]},
                      {"part", finding.part},
                      {"what", finding.text.what},
                      {"where", finding.text.where},
                      {"fix", finding.text.fix}}));
  }
  Json data = Json::array();
  for (const DataCounts& counts : report.data) {
    Json rules = Json::object();
    for (const auto& [rule, count] : counts.by_rule) rules.set(rule, count);
    data.push_back(Json::object({{"file", counts.file},
                                 {"records", counts.records},
                                 {"documents", counts.documents},
                                 {"tokens", counts.tokens},
                                 {"supervised", counts.supervised},
                                 {"longest", counts.longest},
                                 {"by_rule", rules}}));
  }
  Json coverage = Json::array();
  for (const Coverage& one : report.coverage) {
    Json layers = Json::array();
    for (const int64_t count : one.of_layer) layers.push_back(count);
    coverage.push_back(Json::object({{"pattern", one.pattern}, {"linears_by_layer", layers}}));
  }
  const auto names = [](const std::vector<std::string>& list) {
    Json array = Json::array();
    for (const std::string& name : list) array.push_back(name);
    return array;
  };
  return Json::object({{"passed", report.errors() == 0},
                       {"findings", findings},
                       {"checked", names(report.parts)},
                       {"not_checked", names(report.skipped)},
                       {"data", data},
                       {"coverage", coverage},
                       {"planned_bytes", report.planned_bytes},
                       {"limit_bytes", report.limit_bytes}});
}

std::string state_of(const CheckReport& report, const std::string& part) {
  int64_t counts[2] = {0, 0};
  for (const Finding& finding : report.findings) {
    if (finding.part == part) ++counts[static_cast<size_t>(finding.severity)];
  }
  if (counts[0] + counts[1] == 0) return "ok";
  const auto text = [](int64_t count, const char* name) {
    return std::to_string(count) + " " + name + (count > 1 ? "s" : "");
  };
  std::string state = counts[0] > 0 ? text(counts[0], kSeverityNames[0]) : "";
  if (counts[1] > 0) state += (state.empty() ? "" : ", ") + text(counts[1], kSeverityNames[1]);
  return state;
}

void print_data(const std::vector<DataCounts>& data) {
  std::vector<std::vector<std::string>> rows = {
      {"file", "records", "documents", "tokens", "trained", "longest"}};
  for (const DataCounts& counts : data) {
    const double share = 100.0 * static_cast<double>(counts.supervised) /
                         static_cast<double>(std::max<int64_t>(counts.tokens, 1));
    rows.push_back({counts.file, format_count(counts.records), format_count(counts.documents),
                    format_count(counts.tokens), format_fixed(share, 1) + " %",
                    format_count(counts.longest)});
  }
  std::printf("%s\n", format_table("<>>>>>", rows).c_str());
}

void print_report(const CheckReport& report) {
  if (!report.data.empty()) print_data(report.data);
  if (!report.coverage.empty()) std::printf("%s\n", coverage_table(report.coverage).c_str());
  if (report.planned_bytes > 0) {
    std::printf("memory  %s planned, %s may be used\n\n",
                format_bytes(report.planned_bytes).c_str(),
                format_bytes(report.limit_bytes).c_str());
  }
  for (const Finding& finding : report.findings) {
    const ErrorText& text = finding.text;
    std::printf("%s: %s\n", kSeverityNames[static_cast<size_t>(finding.severity)],
                text.what.c_str());
    if (!text.where.empty()) std::printf("  at %s\n", text.where.c_str());
    if (!text.fix.empty()) std::printf("  fix: %s\n", text.fix.c_str());
  }
  if (!report.findings.empty()) std::printf("\n");
  std::vector<std::vector<std::string>> rows = {{"part", "found"}};
  std::vector<std::string> parts = report.parts;
  if (state_of(report, "mask") != "ok") parts.emplace_back("mask");
  for (const std::string& part : parts) rows.push_back({part, state_of(report, part)});
  for (const std::string& part : report.skipped) rows.push_back({part, "not checked"});
  std::printf("%s", format_table("<<", rows).c_str());
}

}  // namespace

int64_t CheckReport::errors() const {
  return std::count_if(findings.begin(), findings.end(),
                       [](const Finding& finding) { return finding.severity == Severity::kError; });
}

CheckReport check_config(const std::string& path, const std::vector<std::string>& overrides) {
  return Checker(path, overrides).run();
}

int run_check(const Args& args) {
  const std::vector<std::string>& words = args.positionals();
  const CheckReport report =
      check_config(words[0], std::vector<std::string>(words.begin() + 1, words.end()));
  if (args.json()) {
    std::printf("%s\n", dump_json(report_to_json(report), {.indent = 2}).c_str());
  } else {
    print_report(report);
  }
  return static_cast<int>(report.errors() == 0 ? ExitCode::kOk : ExitCode::kFindings);
}

}  // namespace graft::train
