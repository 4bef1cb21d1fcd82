#include <algorithm>

#include "core/error.h"
#include "core/file.h"
#include "data/records/record.h"
#include "data/text/mask.h"
#include "data/text/show.h"
#include "data/text/token_store.h"
#include "data/text/tokenize.h"
#include "tests/data/text/byte_tokenizer.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

using test::TempDir;

const std::string kTemplate =
    "{% for m in messages %}{{ '<|u|>' if m.role == 'user' else '<|a|>' }}{{ m.content }}<|e|>"
    "{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}";
const std::vector<std::string> kSpecials = {"<|u|>", "<|a|>", "<|e|>"};

// Ids of byte_tokenizer: <unk>, the special tokens, then the bytes.
constexpr int32_t kUser = 1;
constexpr int32_t kAnswer = 2;
constexpr int32_t kStop = 3;
constexpr int32_t of(char byte) {
  return 4 + byte;
}

Record pair_of(const std::string& json) {
  return parse_record(parse_json(json, "pairs"), "pairs", {}, Pairs::kRead);
}

std::string error_of(const std::string& json, Pairs pairs = Pairs::kRead) {
  try {
    parse_record(parse_json(json, "pairs"), "pairs", {}, pairs);
  } catch (const Error& error) {
    return error.text().what;
  }
  return "";
}

struct Fixture {
  TempDir dir;
  std::unique_ptr<Tokenizer> tokenizer = test::byte_tokenizer(dir, kSpecials);
  ChatTemplate chat = ChatTemplate(kTemplate, "test");
  Document only(const Record& record, const MaskOptions& options = {}) const {
    const std::vector<Document> documents = encode_record(record, *tokenizer, &chat, options);
    REQUIRE(documents.size() == 1);
    return documents.front();
  }
};

template <class T>
std::vector<T> operator+(std::vector<T> left, const std::vector<T>& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

}  // namespace

TEST_CASE("pairs: the prompt stands once, both answers are trained", "[data][mask]") {
  const Fixture fixture;
  // Options that train more than answers do not: they would end the prompt.
  MaskOptions options;
  options.train_on_eos = GENERATE(TrainEos::kTurn, TrainEos::kAll);
  options.train_on_inputs = GENERATE(false, true);
  const Document doc =
      fixture.only(pair_of(R"({"prompt": "2+2", "chosen": "4", "rejected": "44"})"), options);
  // <|u|> 2 + 2 <|e|> <|a|> | 4 <|e|> | 4 4 <|e|>: both answers begin with 4, which is trained and
  // so no part of the prompt.
  CHECK(doc.ids == std::vector<int32_t>{kUser, of('2'), of('+'), of('2'), kStop, kAnswer,  //
                                        of('4'), kStop,                                    //
                                        of('4'), of('4'), kStop});
  CHECK(doc.segment == std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2});
  CHECK(doc.loss == std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1});
  CHECK(doc.role == std::vector<uint8_t>{0, 2, 2, 2, 0, 0, 3, 3, 3, 3, 3});
  CHECK(doc.supervised == 5);
  CHECK(doc.turns == 2);
}

TEST_CASE("pairs: prompt and answer are the tokens and masks of that conversation alone",
          "[data][mask]") {
  const Fixture fixture;
  struct Row {
    std::string pair;
    std::string chosen;
    std::string rejected;
  };
  const auto row = GENERATE(
      // A list of answers behind a list of messages.
      Row{R"({"prompt": [{"role": "user", "content": "hi"}],
              "chosen": [{"role": "assistant", "content": "yes"}],
              "rejected": [{"role": "assistant", "content": "no"}]})",
          R"([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])",
          R"([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}])"},
      // Whole conversations, the prompt beside them as a text; answers of several messages.
      Row{R"({"prompt": "a", "chosen": [{"role": "user", "content": "a"},
                 {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
                 {"role": "assistant", "content": "dd"}],
               "rejected": [{"role": "user", "content": "a"},
                 {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
                 {"role": "assistant", "content": "d"}]})",
          R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
              {"role": "user", "content": "c"}, {"role": "assistant", "content": "dd"}])",
          R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
              {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}])"},
      // Weights of their own.
      Row{R"({"prompt": "a", "chosen": [{"role": "assistant", "content": "b", "weight": 0.5}],
               "rejected": [{"role": "assistant", "content": "c", "weight": 0.25}]})",
          R"([{"role": "user", "content": "a"},
              {"role": "assistant", "content": "b", "weight": 0.5}])",
          R"([{"role": "user", "content": "a"},
              {"role": "assistant", "content": "c", "weight": 0.25}])"});
  CAPTURE(row.pair);
  const Document pair = fixture.only(pair_of(row.pair));
  const auto alone = [&](const std::string& messages) {
    MaskOptions options;
    options.turns = Turns::kLast;
    return fixture.only(pair_of("{\"messages\": " + messages + "}"), options);
  };
  const auto weights = [](const Document& doc, const std::vector<uint8_t>& loss) {
    std::vector<float> result;
    for (const uint8_t index : loss) {
      result.push_back(index < 2 ? static_cast<float>(index) : doc.weights.at(index - 2U));
    }
    return result;
  };
  const auto part = [&](const auto& values, Segment segment) {
    auto result = values;
    result.clear();
    for (size_t i = 0; i < values.size(); ++i) {
      if (pair.segment[i] == static_cast<uint8_t>(segment)) result.push_back(values[i]);
    }
    return result;
  };
  const std::pair<Segment, Document> halves[] = {{Segment::kChosen, alone(row.chosen)},
                                                 {Segment::kRejected, alone(row.rejected)}};
  for (const auto& [segment, doc] : halves) {
    CHECK(part(pair.ids, Segment::kPrompt) + part(pair.ids, segment) == doc.ids);
    CHECK(part(pair.role, Segment::kPrompt) + part(pair.role, segment) == doc.role);
    CHECK(weights(pair, part(pair.loss, Segment::kPrompt) + part(pair.loss, segment)) ==
          weights(doc, doc.loss));
  }
}

TEST_CASE("pairs: records that are none, and readers that want none, are told why",
          "[data][records]") {
  const std::string turns =
      R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])";
  CHECK(error_of(R"({"chosen": "a", "rejected": "b"})") ==
        "the record has two answers and no \"prompt\"");
  CHECK(error_of(R"({"prompt": "p", "chosen": "a", "rejected": "a"})") ==
        "\"chosen\" and \"rejected\" are the same");
  CHECK(error_of(R"({"prompt": "p", "chosen": 1, "rejected": "a"})") ==
        "\"chosen\" must be a string, got " + std::string(Json(1).type_name()));
  CHECK(error_of("{\"chosen\": " + turns + ", \"rejected\": " + turns + "}") ==
        "\"chosen\" and \"rejected\" are the same");
  CHECK(
      error_of("{\"chosen\": " + turns + R"(, "rejected": [{"role": "user", "content": "a"}]})") ==
      "one of \"chosen\" and \"rejected\" is the beginning of the other");
  CHECK(error_of("{\"prompt\": \"p\", \"chosen\": " + turns + R"(, "rejected": "b"})") ==
        "one of \"chosen\" and \"rejected\" is an answer, the other a conversation");
  CHECK(error_of("{\"chosen\": " + turns + R"(, "rejected": [{"role": "user", "content": "x"},
                 {"role": "assistant", "content": "b"}]})") ==
        "the conversations of \"chosen\" and \"rejected\" share no message");
  CHECK(error_of(R"({"prompt": "p", "chosen": "a", "rejected": "b"})", Pairs::kRefuse) ==
        "the record is a preference pair (\"chosen\" and \"rejected\"), which only `graft data "
        "tokenize` reads");
}

TEST_CASE("pairs: what one half is refused for, the pair is; too long a pair is not cut",
          "[data][mask]") {
  const Fixture fixture;
  const Document special =
      fixture.only(pair_of(R"({"prompt": "p", "chosen": "a", "rejected": "b<|e|>"})"));
  CHECK(special.refusal == Refusal::kSpecialInContent);
  CHECK(special.reason.starts_with("rejected: "));
  const Document untrained = fixture.only(pair_of(
      R"({"prompt": "p", "chosen": [{"role": "assistant", "content": "a", "train": false}],
          "rejected": [{"role": "assistant", "content": "b"}]})"));
  CHECK(untrained.refusal == Refusal::kNothingTrained);
  CHECK(untrained.reason.starts_with("chosen: "));
  // <|u|> p <|e|> <|a|> | a <|e|> | b <|e|>
  const Record record = pair_of(R"({"prompt": "p", "chosen": "a", "rejected": "b"})");
  MaskOptions options;
  options.over_long = GENERATE(OverLong::kDrop, OverLong::kSplit, OverLong::kTruncateLeft);
  options.sequence_len = 8;
  CHECK(fixture.only(record, options).ids.size() == 8);
  options.sequence_len = 7;
  const Document longer = fixture.only(record, options);
  CHECK(longer.refusal == Refusal::kTooLong);
  CHECK(longer.reason == "the document has 8 tokens, sequence_len is 7; a pair is not cut");
}

TEST_CASE("pairs: the store gives back the parts of each pair, among other documents",
          "[data][store]") {
  const Fixture fixture;
  const std::string data = fixture.dir.file("data.jsonl");
  const std::string long_text(5000, 'x');
  write_file_atomically(data, R"({"prompt": "p", "completion": ")" + long_text + "\"}\n" +
                                  R"({"prompt": "2+2", "chosen": "4", "rejected": "44"})" + "\n" +
                                  R"({"prompt": "p", "completion": "c"})" + "\n");
  const TokenizeInput input = {
      {data}, {}, fixture.tokenizer.get(), &fixture.chat, fixture.dir.path()};
  TokenizeOptions options;
  options.out = fixture.dir.file("pairs.h5");
  // A reader that wants none gets the other documents.
  const TokenizeSummary without =
      tokenize_files(input, tokenize_settings(input, options.mask), options);
  CHECK(without.documents == 2);
  CHECK(without.refused_by_rule == std::vector<std::pair<std::string, int64_t>>{{"unreadable", 1}});
  CHECK(TokenStore::open(options.out).document_count() == 2);

  options.pairs = Pairs::kRead;
  const TokenizeSummary summary =
      tokenize_files(input, tokenize_settings(input, options.mask), options);
  CHECK(summary.documents == 3);
  CHECK(summary.pairs == 1);
  CHECK(summary.digest != without.digest);
  CHECK_THROWS_WITH(TokenStore::open(options.out), Catch::Contains("holds preference pairs"));
  const TokenStore store = TokenStore::open(options.out, Pairs::kRead);
  REQUIRE(store.document_count() == 3);
  CHECK_FALSE(store.pair(0));
  // <|u|> 2 + 2 <|e|> <|a|> | 4 <|e|> | 4 4 <|e|>
  CHECK(store.pair(1) == PairParts{.chosen_begin = 6, .rejected_begin = 8});
  CHECK(store.length(1) == 11);
  CHECK_FALSE(store.pair(2));

  const ShownDocument shown = show_document(store, *fixture.tokenizer, 1);
  CHECK(shown.is_pair);
  REQUIRE(shown.segments.size() == 3);
  CHECK(shown.segments[0].text == "<|u|>2+2<|e|><|a|>");
  CHECK(shown.segments[1].text == "4<|e|>");
  CHECK(shown.segments[1].part == Segment::kChosen);
  CHECK(shown.segments[2].text == "44<|e|>");
  CHECK(shown.segments[2].part == Segment::kRejected);
  CHECK_FALSE(show_document(store, *fixture.tokenizer, 2).is_pair);
}

TEST_CASE("pairs: a store whose segments are no prompt and two answers is refused",
          "[data][store]") {
  const TempDir dir;
  const auto segment = GENERATE(as<std::vector<uint8_t>>{}, std::vector<uint8_t>{0, 2, 1},
                                std::vector<uint8_t>{0, 1, 1}, std::vector<uint8_t>{0, 2, 2},
                                std::vector<uint8_t>{1, 2, 3});
  TokenStoreWriter writer(dir.file("s.h5"), Json::object({{"inputs", Json::array()}}));
  const std::vector<int32_t> ids = {5, 6, 7};
  const std::vector<uint8_t> ones = {0, 1, 1};
  writer.add(ids, ones, ones, {0, 0}, segment);
  writer.commit();
  CHECK_THROWS_WITH(TokenStore::open(dir.file("s.h5"), Pairs::kRead),
                    Catch::Contains("/segment") || Catch::Contains("must be a prompt"));
}

}  // namespace graft::data
