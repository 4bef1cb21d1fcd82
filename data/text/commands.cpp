#include "data/text/commands.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "data/text/command_parts.h"
#include "data/text/extend_tokenizer.h"
#include "data/text/show.h"
#include "data/text/template.h"
#include "data/text/token_store.h"
#include "data/text/tokenizer.h"

namespace graft::data {

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

namespace {

Json shown_json(int64_t document, const ShownDocument& shown) {
  Json segments = Json::array();
  for (const ShownSegment& segment : shown.segments) {
    Json one = Json::object({{"text", segment.text}, {"trained", segment.trained}});
    if (shown.is_pair) one.set("part", kSegmentNames[static_cast<size_t>(segment.part)]);
    segments.push_back(std::move(one));
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
  Segment part = Segment::kPrompt;
  for (const ShownSegment& segment : shown.segments) {
    if (segment.part != part) {
      part = segment.part;
      print("\n" +
            styled("-- " + std::string(kSegmentNames[static_cast<size_t>(part)]) + ":", "2",
                   is_terminal) +
            "\n");
    }
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

}  // namespace

int run_show(const Args& args) {
  const TokenStore store = TokenStore::open(args.positionals().front(), Pairs::kRead);
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

int run_extend(const Args& args) {
  const std::string model = args.need("--model");
  const std::string out = args.need("--out");
  if (!directory_exists(model)) {
    fail(ExitCode::kUsage, "expected a model directory", model, "name it with --model DIR");
  }
  std::vector<AddedTokenSpec> tokens;
  for (const std::string& content : args.positionals()) {
    tokens.push_back({.content = content, .special = !args.flag("--normal")});
  }
  const std::vector<NewToken> added =
      extend_tokenizer_files(*load_tokenizer(model), model, tokens, out);
  Json list = Json::array();
  std::vector<std::vector<std::string>> rows = {{"id", "token", "row begins as the mean of"}};
  for (const NewToken& token : added) {
    Json pieces = Json::array();
    std::string names;
    for (const int32_t piece : token.pieces) {
      pieces.push_back(piece);
      names += (names.empty() ? "" : " ") + std::to_string(piece);
    }
    rows.push_back({std::to_string(token.id), token.content, token.is_new ? names : "(known)"});
    list.push_back(Json::object({{"id", token.id},
                                 {"token", token.content},
                                 {"is_new", token.is_new},
                                 {"mean_of", std::move(pieces)}}));
  }
  if (args.json()) {
    print_json(Json::object({{"out", out}, {"tokens", std::move(list)}}));
  } else {
    print(format_table("><<", rows));
  }
  flush_stdout();
  return 0;
}

namespace {

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
        {"--report", "FILE.jsonl", "", "a line for each row that is refused or has a fault"},
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
      {"extend",
       "TOKEN…",
       1,
       -1,
       "a tokenizer with more tokens, and the rows that theirs begin as",
       {{"--model", "DIR", "", "directory with the tokenizer"},
        {"--out", "DIR", "", "where the extended tokenizer's files go"},
        {"--normal", "", "", "plain tokens; else special ones, which decoding can leave out"}},
       {"graft data extend '<|tool|>' '<|observation|>' --model base/ --out extended/"},
       run_extend},
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
