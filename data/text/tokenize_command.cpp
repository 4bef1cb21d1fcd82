// graft data tokenize: its options as MaskOptions, and the table at its end.
#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "data/text/command_parts.h"
#include "data/text/packing.h"
#include "data/text/template.h"
#include "data/text/tokenize.h"
#include "data/text/tokenizer.h"

namespace graft::data {
namespace {

// The option's value as one of an enum's names.
template <class Enum, size_t Count>
Enum choice(const Args& args,
            std::string_view option,
            const std::array<std::string_view, Count>& names) {
  const std::string given = args.text(option);
  const auto found = std::find(names.begin(), names.end(), given);
  if (found == names.end()) {
    fail(ExitCode::kUsage, unknown_name("value", given, names), std::string(option));
  }
  return static_cast<Enum>(found - names.begin());
}

// The parts of "a,b,c".
std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// "known=given,known=given".
std::vector<FieldMapping::Rename> renames(const Args& args, std::string_view option) {
  std::vector<FieldMapping::Rename> list;
  for (const std::string& part : split_list(args.text(option))) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == part.size()) {
      fail(ExitCode::kUsage, "expected GRAFTS-NAME=FILES-NAME, got \"" + part + "\"",
           std::string(option), "for example " + std::string(option) + " messages=dialogue");
    }
    list.push_back({part.substr(0, equals), part.substr(equals + 1)});
  }
  return list;
}

FieldMapping field_mapping(const Args& args) {
  FieldMapping mapping;
  for (FieldMapping::Rename& rename : renames(args, "--fields")) {
    const bool is_message = rename.known == "role" || rename.known == "content";
    (is_message ? mapping.message : mapping.record).push_back(std::move(rename));
  }
  mapping.roles = renames(args, "--speakers");
  return mapping;
}

MaskOptions mask_options(const Args& args) {
  MaskOptions options;
  options.content_specials = choice<ContentSpecials>(args, "--specials", kContentSpecialsNames);
  options.over_long = choice<OverLong>(args, "--over-long", kOverLongNames);
  options.sequence_len = args.integer("--sequence-len", 0, int64_t{1} << 30);
  options.chunk_overlap = args.integer("--overlap", 0, int64_t{1} << 30);
  if (options.chunk_overlap * 2 > options.sequence_len) {
    fail(ExitCode::kUsage,
         "the overlap must be at most half of --sequence-len, got " +
             std::to_string(options.chunk_overlap) + " of " + std::to_string(options.sequence_len),
         "--overlap", "lower it");
  }
  if (options.over_long != OverLong::kRaise && options.sequence_len == 0) {
    fail(ExitCode::kUsage, "there is no length to hold documents to", "--over-long",
         "add --sequence-len N");
  }
  options.turns = choice<Turns>(args, "--turns", kTurnsNames);
  options.roles_to_train = split_list(args.text("--roles"));
  options.train_on_eos = choice<TrainEos>(args, "--train-on-eos", kTrainEosNames);
  options.train_on_inputs = args.flag("--train-on-inputs");
  options.faults.nothing_trained = choice<FaultLevel>(args, "--on-untrained", kFaultLevelNames);
  options.faults.unstopped_turn = choice<FaultLevel>(args, "--on-unstopped", kFaultLevelNames);
  options.faults.double_bos = choice<FaultLevel>(args, "--on-double-bos", kFaultLevelNames);
  if (options.faults.nothing_trained == FaultLevel::kReport) {
    fail(ExitCode::kUsage, "a record without a trained token teaches nothing", "--on-untrained",
         "choose drop or raise");
  }
  options.now = args.text("--now");
  return options;
}

using Lengths = std::map<int64_t, int64_t>;  // documents by their tokens

// The share q of the documents is at most so long.
int64_t quantile(const Lengths& lengths, double q) {
  int64_t documents = 0;
  for (const auto& [length, count] : lengths) documents += count;
  auto left = static_cast<int64_t>(q * static_cast<double>(documents - 1));
  for (const auto& [length, count] : lengths) {
    left -= count;
    if (left < 0) return length;
  }
  return 0;
}

Json lengths_json(const Lengths& lengths) {
  return Json::object({{"median", quantile(lengths, 0.5)},
                       {"p90", quantile(lengths, 0.9)},
                       {"p99", quantile(lengths, 0.99)},
                       {"longest", quantile(lengths, 1)}});
}

// Rows of sequence_len that the documents fill, and the tokens left free in them.
struct Packing {
  int64_t rows = 0;
  int64_t waste = 0;
};
Packing packing_of(const TokenizeSummary& summary, int64_t sequence_len) {
  Packing packing;
  packing.rows = packed_row_count(summary.lengths, sequence_len);
  packing.waste = packing.rows * sequence_len - summary.tokens;
  return packing;
}

Json summary_json(const TokenizeSummary& summary, int64_t sequence_len) {
  Json refused = Json::object();
  for (const auto& [rule, count] : summary.refused_by_rule) refused.set(rule, count);
  Json packed;
  if (sequence_len > 0) {
    const Packing packing = packing_of(summary, sequence_len);
    packed = Json::object({{"rows", packing.rows}, {"waste_tokens", packing.waste}});
  }
  Json specials = Json::object();
  for (const SpecialCount& special : summary.specials) {
    specials.set(special.token,
                 Json::object({{"count", special.count}, {"trained", special.trained}}));
  }
  return Json::object({{"store", summary.store},
                       {"specials", std::move(specials)},
                       {"packed", std::move(packed)},
                       {"digest", summary.digest},
                       {"records", summary.records},
                       {"documents", summary.documents},
                       {"preference_pairs", summary.pairs},
                       {"tokens", summary.tokens},
                       {"supervised_tokens", summary.supervised},
                       {"lengths", lengths_json(summary.lengths)},
                       {"turns", summary.turns},
                       {"turns_without_stop", summary.turns_without_stop},
                       {"turns_unlike_serving", summary.turns_unlike_serving},
                       {"straddling_tokens", summary.straddling},
                       {"double_bos", summary.double_bos},
                       {"truncated_documents", summary.truncated_documents},
                       {"truncated_tokens", summary.truncated_tokens},
                       {"refused", std::move(refused)}});
}

void print_summary(const TokenizeSummary& summary, int64_t sequence_len) {
  const double share = 100.0 * static_cast<double>(summary.supervised) /
                       static_cast<double>(std::max<int64_t>(summary.tokens, 1));
  std::vector<std::vector<std::string>> rows = {
      {"what", "count"},
      {"records", format_count(summary.records)},
      {"documents", format_count(summary.documents)},
      {"tokens", format_count(summary.tokens)},
      {"  trained on", format_count(summary.supervised) + " (" + format_fixed(share, 1) + " %)"},
      {"document, median", format_count(quantile(summary.lengths, 0.5))},
      {"  90 % are at most", format_count(quantile(summary.lengths, 0.9))},
      {"  longest", format_count(quantile(summary.lengths, 1))},
      {"trained turns", format_count(summary.turns)},
      {"  without a stop token", format_count(summary.turns_without_stop)},
      {"  with another context than at serving", format_count(summary.turns_unlike_serving)},
      {"tokens across a border", format_count(summary.straddling)},
  };
  if (summary.pairs > 0) rows.push_back({"preference pairs", format_count(summary.pairs)});
  if (summary.double_bos > 0) {
    rows.push_back({"documents with BOS twice", format_count(summary.double_bos)});
  }
  for (const SpecialCount& special : summary.specials) {
    rows.push_back(
        {"special token " + special.token,
         format_count(special.count) + " (" + format_count(special.trained) + " trained)"});
  }
  if (sequence_len > 0) {
    const Packing packing = packing_of(summary, sequence_len);
    const double waste = 100.0 * static_cast<double>(packing.waste) /
                         static_cast<double>(packing.rows * sequence_len);
    rows.push_back({"rows of " + format_count(sequence_len), format_count(packing.rows)});
    rows.push_back(
        {"  left free", format_count(packing.waste) + " (" + format_fixed(waste, 1) + " %)"});
  }
  if (summary.truncated_documents > 0) {
    rows.push_back({"truncated documents", format_count(summary.truncated_documents)});
    rows.push_back({"  tokens cut off", format_count(summary.truncated_tokens)});
  }
  for (const auto& [rule, count] : summary.refused_by_rule) {
    rows.push_back({"left out: " + rule, format_count(count)});
  }
  print(format_table("<>", rows));
  for (const RefusedRecord& record : summary.refused) {
    print("  " + record.file + ":" + std::to_string(record.line) + ": row " +
          std::to_string(record.row) + ": " + record.rule + ": " + record.reason + "\n");
  }
  if (summary.refused_count > static_cast<int64_t>(summary.refused.size())) {
    print("  and " +
          format_count(summary.refused_count - static_cast<int64_t>(summary.refused.size())) +
          " more (--report FILE.jsonl lists all)\n");
  }
  if (summary.turns_without_stop > 0) {
    print(
        "warning: turns without a trained stop token teach the model to go on for ever;\n"
        "  fix: end assistant turns with a special token in the chat template\n");
  }
  if (summary.turns_unlike_serving > 0) {
    print(
        "warning: in front of some turns the template writes something else than when the model\n"
        "  is served (a dropped thought, another system text);\n"
        "  fix: --turns expand gives one document a turn, each as it is served\n");
  }
  print(summary.store + "  " + format_bytes(file_size(summary.store)) + "  digest " +
        summary.digest.substr(0, 16) + "\n");
}

}  // namespace

int run_tokenize(const Args& args) {
  TokenizeOptions options;
  options.mask = mask_options(args);
  options.out = args.need("--out");
  options.report = args.text("--report");
  options.pairs = Pairs::kRead;
  options.threads = static_cast<int>(args.integer("--threads", 0, 1024));
  const std::string model = args.need("--model");
  const auto tokenizer = load_tokenizer(model);
  const std::optional<ChatTemplate> chat = ChatTemplate::load(model);
  const std::vector<std::string>& files = args.positionals();
  const TokenizeInput input = {files, std::vector<FieldMapping>(files.size(), field_mapping(args)),
                               tokenizer.get(), chat ? &*chat : nullptr, model};
  std::optional<Progress> bar;
  const TokenizeSummary summary = tokenize_files(input, tokenize_settings(input, options.mask),
                                                 options, [&](int64_t done, int64_t total) {
                                                   if (!bar)
                                                     bar.emplace("tokenize", total, "bytes");
                                                   bar->update(done);
                                                 });
  if (bar) bar->finish();
  if (args.json()) {
    print_json(summary_json(summary, options.mask.sequence_len));
  } else {
    print_summary(summary, options.mask.sequence_len);
  }
  flush_stdout();
  return 0;
}

}  // namespace graft::data
