#include "data/text/commands.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "data/text/encode_lines.h"
#include "data/text/packing.h"
#include "data/text/show.h"
#include "data/text/template.h"
#include "data/text/token_store.h"
#include "data/text/tokenize.h"
#include "data/text/tokenizer.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    fail_io("cannot write", "stdout");
  }
}

void print_json(const Json& value) {
  print(dump_json(value) + "\n");
}

void flush_stdout() {
  if (std::fflush(stdout) != 0) fail_io("cannot write", "stdout");
}

// ---- commands that answer one line of stdin by one line of stdout

// parse_json counts lines within its text, which is one line of stdin.
Json parse_line(std::string_view line, int64_t number) {
  try {
    return parse_json(line, "stdin");
  } catch (const Error& error) {
    constexpr std::string_view kFirst = "stdin:1:";
    ErrorText text = error.text();
    if (text.where.rfind(kFirst, 0) == 0) {
      text.where = "stdin:" + std::to_string(number) + ":" + text.where.substr(kFirst.size());
    }
    fail(error.code(), text.what, text.where, text.fix);
  }
}

int answer_lines(const std::function<Json(const Json&, const std::string& where)>& answer) {
  std::ios::sync_with_stdio(false);
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = "stdin:" + std::to_string(number);
    print_json(answer(parse_line(line, number), where));
  }
  if (std::cin.bad()) fail_io("cannot read", "stdin");
  flush_stdout();
  return 0;
}

const Json& need_member(const Json& object, std::string_view key, const std::string& where) {
  const Json* value = object.find(key);
  if (value) return *value;
  fail(ExitCode::kData, "each line must be an object with \"" + std::string(key) + "\"", where,
       "write lines like {\"" + std::string(key) + "\": …}");
}

Json ranges_json(const std::vector<ByteRange>& ranges) {
  Json list = Json::array();
  for (const ByteRange& range : ranges) list.push_back(Json::array({range.begin, range.end}));
  return list;
}

int run_encode(const Args& args) {
  const auto tokenizer = load_tokenizer(args.need("--tokenizer"));
  EncodeOptions options;
  options.special = args.flag("--special");
  if (args.flag("--literal")) options.special_text = SpecialText::kLiteral;
  LineEncoder encoder(*tokenizer, options);
  constexpr size_t kFlushBytes = size_t{1} << 18;
  std::ios::sync_with_stdio(false);
  std::string line;
  std::string out;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (!encoder.answer(line, out)) {
      const std::string where = "stdin:" + std::to_string(number);
      need_member(parse_line(line, number), "text", where).as_string();
      fail(ExitCode::kData, "each line must be one JSON object with \"text\"", where);
    }
    // Someone who writes a line and waits gets the answer.
    if (out.size() < kFlushBytes && std::cin.rdbuf()->in_avail() > 0) continue;
    print(out);
    flush_stdout();
    out.clear();
  }
  if (std::cin.bad()) fail_io("cannot read", "stdin");
  print(out);
  flush_stdout();
  return 0;
}

int run_decode(const Args& args) {
  const auto tokenizer = load_tokenizer(args.need("--tokenizer"));
  const auto skip =
      args.flag("--skip-special") ? Tokenizer::SkipSpecial::kYes : Tokenizer::SkipSpecial::kNo;
  return answer_lines([&](const Json& row, const std::string& where) {
    std::vector<int32_t> ids;
    for (const Json& id : need_member(row, "ids", where).as_array()) {
      ids.push_back(static_cast<int32_t>(std::clamp<int64_t>(id.as_int(), -1, INT32_MAX)));
    }
    Json answer = Json::object();
    answer.set("text", tokenizer->decode(ids, skip));
    return answer;
  });
}

ChatTemplate template_of(const Args& args) {
  if (args.has("--template") == args.has("--model")) {
    fail(ExitCode::kUsage, "render needs --template FILE or --model DIR, one of them");
  }
  if (args.has("--template")) {
    const std::string file = args.need("--template");
    return ChatTemplate(read_file(file), file);
  }
  std::optional<ChatTemplate> chat = ChatTemplate::load(args.need("--model"));
  if (!chat) {
    fail(ExitCode::kData, "the model has no chat template", args.need("--model"),
         "add chat_template.jinja to the directory, or use --template FILE");
  }
  return std::move(*chat);
}

// Byte ranges as ranges of code points.
std::vector<ByteRange> in_characters(std::string_view text, const std::vector<ByteRange>& ranges) {
  std::vector<ByteRange> result;
  for (const ByteRange& range : ranges) {
    const auto begin =
        static_cast<int64_t>(utf8_count(text.substr(0, static_cast<size_t>(range.begin))));
    const auto length = static_cast<int64_t>(utf8_count(text.substr(
        static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin))));
    result.push_back({begin, begin + length});
  }
  return result;
}

int run_render(const Args& args) {
  const ChatTemplate chat = template_of(args);
  return answer_lines([&](const Json& row, const std::string& where) {
    RenderInput input;
    input.messages = need_member(row, "messages", where);
    if (const Json* tools = row.find("tools")) input.tools = *tools;
    if (const Json* vars = row.find("vars")) input.vars = *vars;
    const Json* prompt = row.find("add_generation_prompt");
    input.add_generation_prompt = prompt && prompt->is_bool() && prompt->as_bool();
    input.now = args.text("--now");
    Json answer = Json::object();
    try {
      const Rendered rendered = chat.render(input);
      answer.set("text", rendered.text);
      answer.set("spans", ranges_json(in_characters(rendered.text, rendered.generation)));
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      answer.set("error", error.text().what);
      answer.set("where", error.text().where);
    }
    return answer;
  });
}

// ---- tokenize

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
                       {"tokens", summary.tokens},
                       {"supervised_tokens", summary.supervised},
                       {"lengths", lengths_json(summary.lengths)},
                       {"turns", summary.turns},
                       {"turns_without_stop", summary.turns_without_stop},
                       {"turns_unlike_serving", summary.turns_unlike_serving},
                       {"straddling_tokens", summary.straddling},
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
          " more\n");
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

int run_tokenize(const Args& args) {
  TokenizeOptions options;
  options.mask = mask_options(args);
  options.out = args.need("--out");
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

// ---- show

Json shown_json(int64_t document, const ShownDocument& shown) {
  Json segments = Json::array();
  for (const ShownSegment& segment : shown.segments) {
    segments.push_back(Json::object({{"text", segment.text}, {"trained", segment.trained}}));
  }
  Json roles = Json::object();
  for (size_t i = 0; i < shown.tokens_by_role.size(); ++i) {
    if (shown.tokens_by_role[i] == 0) continue;
    roles.set(std::string(role_name(static_cast<Role>(i))), shown.tokens_by_role[i]);
  }
  return Json::object({{"document", document},
                       {"file", shown.source.file},
                       {"row", shown.source.row},
                       {"tokens", shown.tokens},
                       {"trained", shown.trained},
                       {"roles", std::move(roles)},
                       {"segments", std::move(segments)}});
}

void print_shown(int64_t document, const ShownDocument& shown, const std::string& file) {
  const bool is_terminal = stdout_is_terminal();
  std::string roles;
  for (size_t i = 0; i < shown.tokens_by_role.size(); ++i) {
    if (shown.tokens_by_role[i] == 0) continue;
    roles += ", " + std::string(role_name(static_cast<Role>(i))) + " " +
             format_count(shown.tokens_by_role[i]);
  }
  print(styled("document " + std::to_string(document) + ": " + file + " row " +
                   std::to_string(shown.source.row) + ": " + format_count(shown.tokens) +
                   " tokens, " + format_count(shown.trained) + " trained" + roles,
               "2", is_terminal) +
        "\n");
  for (const ShownSegment& segment : shown.segments) {
    if (!segment.trained) {
      print(segment.text);
    } else if (is_terminal) {
      print(styled(segment.text, "1;32", true));
    } else {
      print("[[" + segment.text + "]]");
    }
  }
  print("\n\n");
}

std::string file_name(const TokenStore& store, int32_t file) {
  const Json* inputs = store.settings().find("inputs");
  const auto index = static_cast<size_t>(file);
  if (!inputs || !inputs->is_array() || index >= inputs->size())
    return "file " + std::to_string(file);
  return inputs->as_array()[index].at("name").as_string();
}

int run_show(const Args& args) {
  const TokenStore store = TokenStore::open(args.positionals().front());
  std::string model = args.text("--model");
  if (model.empty()) {
    const Json* made_with = store.settings().find("model");
    if (!made_with || !made_with->is_string() || !directory_exists(made_with->as_string())) {
      fail(ExitCode::kUsage, "the model that made this store is not where it was", store.path(),
           "name the model directory with --model DIR");
    }
    model = made_with->as_string();
  }
  const auto tokenizer = load_tokenizer(model);
  const std::optional<ChatTemplate> chat = ChatTemplate::load(model);
  check_store_matches(store, *tokenizer, chat ? &*chat : nullptr);
  const int64_t first = args.integer("--from", 0, std::max<int64_t>(store.document_count() - 1, 0));
  const int64_t count = args.integer("-n", 1, int64_t{1} << 40);
  const int64_t end = std::min(store.document_count(), first + count);
  Json documents = Json::array();
  for (int64_t document = first; document < end; ++document) {
    const ShownDocument shown = show_document(store, *tokenizer, document);
    if (args.json()) {
      documents.push_back(shown_json(document, shown));
    } else {
      print_shown(document, shown, file_name(store, shown.source.file));
    }
  }
  if (args.json()) {
    print_json(Json::object({{"store", store.path()},
                             {"digest", store.digest()},
                             {"documents", store.document_count()},
                             {"tokens", store.token_count()},
                             {"shown", std::move(documents)}}));
  } else {
    print("trained text is " + std::string(stdout_is_terminal() ? "green" : "in [[…]]") + "; " +
          format_count(store.document_count()) + " documents, " +
          format_count(store.token_count()) + " tokens\n");
  }
  flush_stdout();
  return 0;
}

constexpr Option kTokenizer{"--tokenizer", "DIR|FILE", "",
                            "a model directory, tokenizer.json or tokenizer.model"};

}  // namespace

std::vector<Command> text_commands() {
  return {
      {"tokenize",
       "FILE…",
       1,
       -1,
       "records to tokens and masks, in a store that training maps",
       {{"--model", "DIR", "", "directory with the tokenizer and the chat template"},
        {"--out", "STORE.h5", "", "the store; its sidecar STORE.h5.json stands beside it"},
        {"--sequence-len", "N", "0", "longest document in tokens; 0 = any"},
        {"--over-long", "P", "raise",
         "longer ones: raise, drop, truncate_left, truncate_right or split"},
        {"--overlap", "N", "0", "tokens that the pieces of --over-long split share"},
        {"--turns", "P", "all",
         "train all turns, the last one, or expand: a document for each, as it is served"},
        {"--roles", "LIST", "assistant", "whose turns are trained on"},
        {"--train-on-eos", "P", "turn",
         "stop tokens to train: of each trained turn, the last, all turns, or none"},
        {"--train-on-inputs", "", "", "train on every token"},
        {"--on-untrained", "P", "drop", "records without a trained token: drop or raise"},
        {"--on-unstopped", "P", "report", "turns without a stop token: report, drop or raise"},
        {"--on-double-bos", "P", "drop", "documents with BOS twice: report, drop or raise"},
        {"--fields", "LIST", "",
         "the files' names of members: messages=dialogue,role=speaker,content=said"},
        {"--speakers", "LIST", "", "the files' names of roles: user=client,assistant=agent"},
        {"--specials", "P", "refuse",
         "special tokens' text in the data: refuse the record, literal, or parse"},
        {"--now", "YYYY-MM-DD", "", "the date for templates that write one"},
        {"--threads", "N", "0", "0 = all cores; the store is the same for any"}},
       {"graft data tokenize clean.jsonl --model base/ --out train.h5",
        "graft data tokenize a.jsonl b.jsonl --model base/ --out t.h5 --sequence-len 2048 "
        "--over-long drop",
        "graft data tokenize talks.jsonl --model base/ --out t.h5 --turns expand "
        "--fields messages=dialogue,role=speaker"},
       run_tokenize},
      {"show",
       "STORE.h5",
       1,
       1,
       "documents of a token store, with what is trained on marked",
       {{"-n", "N", "5", "how many documents"},
        {"--from", "N", "0", "the first one"},
        {"--model", "DIR", "", "the model directory, when it has moved since tokenize"}},
       {"graft data show train.h5 -n 5"},
       run_show},
      {"encode",
       "",
       0,
       0,
       R"(stdin lines {"text"} to {"ids", "offsets"} (bytes))",
       {kTokenizer,
        {"--special", "", "", "add BOS and EOS as the tokenizer does"},
        {"--literal", "", "", "special tokens' text in the input is plain text"}},
       {R"(echo '{"text": "Hello"}' | graft data encode --tokenizer base/)"},
       run_encode},
      {"decode",
       "",
       0,
       0,
       R"(stdin lines {"ids"} to {"text"})",
       {kTokenizer, {"--skip-special", "", "", "leave special tokens out"}},
       {R"(echo '{"ids": [15043]}' | graft data decode --tokenizer base/)"},
       run_decode},
      {"render",
       "",
       0,
       0,
       R"(stdin lines {"messages", "tools"?, "vars"?} to {"text", "spans"} or {"error"})",
       {{"--template", "FILE", "", "a chat template"},
        {"--model", "DIR", "", "the chat template of a model directory"},
        {"--now", "YYYY-MM-DD", "", "the date for templates that write one"}},
       {R"(echo '{"messages": [{"role": "user", "content": "Hi"}]}' | graft data render --model base/)"},
       run_render},
  };
}

}  // namespace graft::data
