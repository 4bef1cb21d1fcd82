#include <array>
#include <atomic>
#include <functional>
#include <thread>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer/bpe.h"  // byte_level_text
#include "data/text/utf8.h"
#include "tests/data/text/golden.h"
#include "tests/data/text/model_proto.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

const std::string kTiny = test::source_path("tests/golden/tokenizer_tiny/");

// Random text of characters that the tiny tokenizers treat in different ways.
std::string random_text(uint64_t seed) {
  const Philox random(seed, 1);
  constexpr std::array<std::string_view, 16> parts = {
      " ", "  ", "\n",   "\t",     "the printer", "order", "e",    "1",
      "é", "日", "🙂", "\u2581", "<",           "s>",    "</s>", "="};
  std::string text;
  const uint64_t count = random.below(0, 40);
  for (uint64_t i = 1; i <= count; ++i) text += parts[random.below(i, parts.size())];
  return text;
}

// tokenizer.json with one member of its model or of itself replaced.
std::string changed(const std::function<void(Json&)>& change) {
  Json root = read_json_file(kTiny + "tokenizer.json");
  change(root);
  return dump_json(root);
}

Json& model_of(Json& root) {
  for (auto& [key, value] : root.as_object()) {
    if (key == "model") return value;
  }
  FAIL("no model");
  return root;
}

std::unique_ptr<Tokenizer> load_text(const std::string& text) {
  const test::TempDir dir;
  write_file_atomically(dir.file("tokenizer.json"), text);
  return load_tokenizer(dir.file("tokenizer.json"));
}

// A byte-level file with 27,900 merges: of two letters, then of those and one more. `gap` stands
// behind each comma of the merges; `broken` is left out of the vocabulary.
std::string long_merges(const std::string& gap, const std::string& broken = "") {
  constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcd";
  std::string vocab;
  std::string merges;
  int64_t id = 0;
  const auto add_token = [&](std::string_view token) {
    if (token == broken) return;
    vocab += (id == 0 ? "" : ",") + dump_json(Json(std::string(token))) + ":" + std::to_string(id);
    ++id;
  };
  const auto add_merge = [&](const std::string& left, const std::string& right) {
    add_token(left + right);
    const std::string comma = merges.empty() ? "" : "," + gap;
    merges += comma + "[" + gap + "\"" + left + "\"," + gap + "\"" + right + "\"" + gap + "]";
  };
  for (int byte = 0; byte < 256; ++byte) {
    add_token(byte_level_text(static_cast<unsigned char>(byte)));
  }
  for (const char first : letters) {
    for (const char second : letters) add_merge({first}, {second});
  }
  for (const char first : letters) {
    for (const char second : letters) {
      for (const char third : letters) add_merge({first, second}, {third});
    }
  }
  return R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)"
         R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
         vocab + "}," + gap + "\"merges\":[" + merges + gap + "]}}";
}

std::string load_error(const std::string& text) {
  try {
    load_text(text);
  } catch (const Error& error) {
    return error.text().what;
  }
  return "";
}

}  // namespace

TEST_CASE("tokenizer: the tiny models give the ids and text of tokenizers", "[data][tokenizer]") {
  int rows = 0;
  for (const Json& row : test::read_golden(kTiny + "golden.jsonl")) {
    const std::string name = row.at("tok").as_string();
    const std::string text = row.at("text").as_string();
    CAPTURE(name, text);
    const auto tokenizer = load_tokenizer(kTiny + name + ".json");
    const Encoding encoding = tokenizer->encode(text);
    CHECK(encoding.ids == test::ids_of(row, "ids"));
    CHECK(tokenizer->encode_ids(text, {.special = true}) == test::ids_of(row, "ids_special"));
    CHECK(reference_offsets(text, encoding) == test::ranges_of(row, "offsets"));
    CHECK(tokenizer->decode(encoding.ids) == row.at("decoded").as_string());
    CHECK(tokenizer->decode(encoding.ids, Tokenizer::SkipSpecial::kYes) ==
          row.at("decoded_skip").as_string());
    if (row.find("sentencepiece")) {
      const auto model = load_tokenizer(kTiny + "tokenizer.model");
      CHECK(model->encode_ids(text) == test::ids_of(row, "sentencepiece"));
    }
    ++rows;
  }
  CHECK(rows == 4 * 48);
}

TEST_CASE("tokenizer: spans cover the text, in order and disjoint; decode undoes encode",
          "[data][tokenizer]") {
  const std::string name = GENERATE("tokenizer", "added", "metaspace");
  const auto tokenizer = load_tokenizer(kTiny + name + ".json");
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const std::string text = random_text(seed);
    CAPTURE(name, text);
    const Encoding encoding = tokenizer->encode(text, {.special_text = SpecialText::kLiteral});
    int64_t at = 0;
    for (const ByteRange& span : encoding.spans) {
      REQUIRE(span.begin == at);
      REQUIRE(span.end >= span.begin);
      at = span.end;
    }
    REQUIRE(at == static_cast<int64_t>(text.size()));
    // U+2581 reads back as a space: SentencePiece does not tell them apart.
    std::string expected = text;
    for (size_t mark = 0; (mark = expected.find("\u2581")) != std::string::npos;) {
      expected.replace(mark, 3, " ");
    }
    const bool is_first_mark = !expected.empty() && expected[0] == ' ' && name == "metaspace";
    if (is_first_mark) expected.erase(0, 1);  // no prefix was added, one is stripped
    REQUIRE(tokenizer->decode(encoding.ids) == expected);
    StreamDecoder stream(*tokenizer);
    std::string streamed;
    for (const int32_t id : encoding.ids) {
      const std::string piece = stream.next(id);
      REQUIRE(is_valid_utf8(piece));
      streamed += piece;
    }
    REQUIRE(streamed + stream.finish() == expected);
  }
}

TEST_CASE("tokenizer: special tokens' text can be literal, all of it or in ranges",
          "[data][tokenizer]") {
  const auto tokenizer = load_tokenizer(kTiny + "added.json");
  const std::string text = "<s>a<|im_end|>b</s>";
  const auto specials = [&](const EncodeOptions& options) {
    std::vector<std::string> found;
    for (const int32_t id : tokenizer->encode_ids(text, options)) {
      if (tokenizer->is_special(id)) found.push_back(tokenizer->token(id));
    }
    return found;
  };
  CHECK(specials({}) == std::vector<std::string>{"<s>", "<|im_end|>", "</s>"});
  CHECK(specials({.special_text = SpecialText::kLiteral}).empty());
  const Encoding whole = tokenizer->encode(text, {.special = true});  // BOS in front of the text's
  REQUIRE(whole.specials.size() == 3);
  for (const int32_t place : whole.specials) {
    CHECK(tokenizer->is_special(whole.ids.at(static_cast<size_t>(place))));
  }
  CHECK(whole.specials.front() == 1);
  const std::vector<ByteRange> literal = {{4, 6}};  // touches <|im_end|>
  CHECK(specials({.literal = literal}) == std::vector<std::string>{"<s>", "</s>"});
}

TEST_CASE("tokenizer: settings of tokenizer_config.json are taken", "[data][tokenizer]") {
  const test::TempDir dir;
  write_file_atomically(dir.file("tokenizer.json"), read_file(kTiny + "tokenizer.json"));
  write_file_atomically(dir.file("tokenizer_config.json"),
                        R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>",
                            "add_bos_token": false, "add_eos_token": true})");
  const auto tokenizer = load_tokenizer(dir.path());
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  CHECK_FALSE(tokenizer->adds_bos());
  CHECK(tokenizer->adds_eos());
  const auto plain = tokenizer->encode_ids("order");
  auto expected = plain;
  expected.push_back(2);
  CHECK(tokenizer->encode_ids("order", {.special = true}) == expected);
  const auto other = load_tokenizer(kTiny + "tokenizer.json");
  CHECK(tokenizer->digest() != other->digest());
  CHECK(other->digest() == load_tokenizer(kTiny + "tokenizer.json")->digest());
  write_file_atomically(dir.file("tokenizer_config.json"), R"({"bos_token": "<none>"})");
  CHECK_THROWS_WITH(load_tokenizer(dir.path()), Catch::Contains("<none>"));
}

TEST_CASE("tokenizer: encode from many threads gives the ids of one", "[data][tokenizer]") {
  const auto tokenizer = load_tokenizer(kTiny + "tokenizer.json");
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t seed = 0; seed < 200; ++seed)
    expected.push_back(tokenizer->encode_ids(random_text(seed)));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (uint64_t seed = 0; seed < 200; ++seed) {
        if (tokenizer->encode_ids(random_text(seed)) != expected[seed]) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("tokenizer: a megabyte without a space takes a moment, not minutes",
          "[data][tokenizer]") {
  const auto tokenizer = load_tokenizer(kTiny + "tokenizer.json");
  const std::string text(1 << 20, 'e');
  CHECK(tokenizer->decode(tokenizer->encode_ids(text)) == text);
}

TEST_CASE("tokenizer: kinds that graft does not know are refused by name", "[data][tokenizer]") {
  const auto [key, value, message] = GENERATE(table<std::string, std::string, std::string>({
      {"pre_tokenizer", R"({"type": "BertPreTokenizer"})", "BertPreTokenizer (pre_tokenizer)"},
      {"pre_tokenizer",
       R"({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Punctuation"}]})",
       "pre_tokenizer.pretokenizers[1]"},
      {"normalizer", R"({"type": "Lowercase"})", "Lowercase"},
      {"decoder", R"({"type": "WordPiece"})", "WordPiece"},
      {"post_processor", R"({"type": "BertProcessing"})", "BertProcessing"},
      {"model", R"({"type": "WordPiece", "vocab": {}, "merges": []})", "WordPiece"},
  }));
  const std::string text =
      changed([&, k = key, v = value](Json& root) { root.set(k, parse_json(v, "test")); });
  CHECK_THROWS_WITH(load_text(text), Catch::Contains(message) && Catch::Contains("not supported"));
}

TEST_CASE("tokenizer: damaged files are refused with a reason", "[data][tokenizer]") {
  const std::string json = read_file(kTiny + "tokenizer.json");
  SECTION("truncated at any place") {
    const size_t part = GENERATE(0, 1, 2, 3, 4, 5, 6, 7);
    CHECK_THROWS_AS(load_text(json.substr(0, json.size() * part / 8)), Error);
  }
  SECTION("huge, negative and double ids") {
    const int64_t id = GENERATE(-1, int64_t{1} << 30, int64_t{1} << 62, 5);
    const std::string text = changed([&](Json& root) {
      for (auto& [key, value] : model_of(root).as_object()) {
        if (key == "vocab") value.set("strange", id);
      }
    });
    CHECK_THROWS_WITH(load_text(text), Catch::Contains("id"));
  }
  SECTION("a token that is no word of any language") {
    const std::string text = changed([&](Json& root) {
      for (auto& [key, value] : model_of(root).as_object()) {
        if (key == "vocab") value.set(std::string(size_t{1} << 16, 'x'), 900);
      }
    });
    CHECK_THROWS_WITH(load_text(text), Catch::Contains("65535 bytes, got 65536"));
  }
  SECTION("merges whose result is no token, and empty parts") {
    const std::string merge = GENERATE(R"([["e", "zz"]])", R"([["", "e"]])", R"(["e"])", "[7]");
    const std::string text =
        changed([&](Json& root) { model_of(root).set("merges", parse_json(merge, "test")); });
    CHECK_THROWS_AS(load_text(text), Error);
  }
  SECTION("a merge in front of the vocabulary, which is read after it") {
    const std::string text = R"({"model": {"type": "BPE", "merges": [["a", "b"], 7], "vocab": )"
                             R"({"a": 0, "b": 1, "ab": 2}}})";
    CHECK_THROWS_WITH(load_text(text), Catch::Contains("expected '\"', found '7'") &&
                                           Catch::Contains("tokenizer.json: model.merges:1:14"));
  }
  SECTION("a post-processor with an id outside the vocabulary") {
    std::string text = json;
    const size_t at = text.find("\"ids\":[1]");
    REQUIRE(at != std::string::npos);
    CHECK_THROWS_WITH(load_text(text.replace(at, 9, "\"ids\":[99999]")), Catch::Contains("99999"));
  }
  SECTION("a truncated tokenizer.model") {
    const test::TempDir dir;
    const std::string model = read_file(kTiny + "tokenizer.model");
    const size_t cut = GENERATE(0, 1, 7, 100, 3001);
    write_file_atomically(dir.file("tokenizer.model"), model.substr(0, cut));
    CHECK_THROWS_AS(load_tokenizer(dir.path()), Error);
  }
  SECTION("an empty directory") {
    const test::TempDir dir;
    CHECK_THROWS_WITH(load_tokenizer(dir.path()), Catch::Contains("neither"));
  }
  SECTION("text that is not UTF-8, ids that do not exist") {
    const auto tokenizer = load_tokenizer(kTiny + "tokenizer.json");
    CHECK_THROWS_WITH(tokenizer->encode("a\xff"), Catch::Contains("UTF-8"));
    const std::vector<int32_t> ids = {5, 100000};
    CHECK_THROWS_WITH(tokenizer->decode(ids), Catch::Contains("100000"));
  }
}

TEST_CASE("tokenizer: SentencePiece merges the pair with the best score first, whatever its id",
          "[data][tokenizer]") {
  const test::TempDir dir;
  const auto ids_of_abc = [&](float score_ab, float score_bc) {
    write_file_atomically(dir.file("tokenizer.model"),
                          test::piece("<unk>", 0, 2) + test::piece("a", -9) + test::piece("b", -9) +
                              test::piece("c", -9) + test::piece("ab", score_ab) +
                              test::piece("bc", score_bc) +
                              test::field(2, "\x18\x02") +  // trainer_spec.model_type = BPE
                              test::field(3, std::string("\x18\0", 2)));  // no dummy prefix
    return load_tokenizer(dir.file("tokenizer.model"))->encode_ids("abc");
  };
  CHECK(ids_of_abc(-1, -2) == std::vector<int32_t>{4, 3});  // ab c
  CHECK(ids_of_abc(-2, -1) == std::vector<int32_t>{1, 5});  // a bc
}

TEST_CASE("tokenizer: ignore_merges takes a word that is a token without asking the merges",
          "[data][tokenizer]") {
  const bool ignores = GENERATE(true, false);
  CAPTURE(ignores);
  const std::string path = test::source_path("tests/golden/tokenizer_steps/llama3.json");
  const auto old = load_tokenizer(path);
  const auto id = static_cast<int32_t>(old->vocab_size());
  Json root = read_json_file(path);
  model_of(root).set("ignore_merges", ignores);
  for (auto& [key, value] : model_of(root).as_object()) {
    if (key == "vocab") value.set("\u0120zqzqzq", id);  // " zqzqzq", which no merge makes
  }
  const std::vector<int32_t> ids = load_text(dump_json(root))->encode_ids(" zqzqzq");
  CHECK(ids == (ignores ? std::vector<int32_t>{id} : old->encode_ids(" zqzqzq")));
}

TEST_CASE("tokenizer: a long list of merges, read in two halves, is that of one",
          "[data][tokenizer]") {
  // A list is cut at the end of a line: the one without lines is read as a whole.
  const std::string gap = "\n              ";
  const auto halves = load_text(long_merges(gap));
  const auto whole = load_text(long_merges(""));
  // 256 bytes, 900 pairs, 27,000 triples. By rank: "AB" (rank 1, id 257), then "ABC" (the triples
  // begin at rank 900; A * 900 + B * 30 + C = 32, id 256 + 900 + 32); "dd" is the last pair and
  // "ddd" the last triple.
  CHECK(halves->encode_ids("ABC") == std::vector<int32_t>{256 + 900 + 32});
  CHECK(halves->encode_ids("AB") == std::vector<int32_t>{257});
  CHECK(halves->encode_ids("ddd") == std::vector<int32_t>{256 + 900 + 26999});
  const Philox random(7, 0);
  for (uint64_t text = 0; text < 500; ++text) {
    std::string letters;
    for (uint64_t i = 0; i < 20; ++i) {
      letters += static_cast<char>('A' + random.below(text * 20 + i, 26));
    }
    REQUIRE(halves->encode_ids(letters) == whole->encode_ids(letters));
  }
}

TEST_CASE("tokenizer: what is wrong with a long list of merges is said as with a short one",
          "[data][tokenizer]") {
  const std::string gap = "\n              ";
  // In the first half, in the second, and the very last one.
  const std::string broken = GENERATE("ABC", "cAA", "ddd");
  const std::string message = load_error(long_merges(gap, broken));
  CHECK(message.find("has a part or a result that is not in the vocabulary") != std::string::npos);
  CHECK(message == load_error(long_merges("", broken)));
  std::string text = long_merges(gap);
  text.insert(text.rfind("}}") - 1, ",");  // a comma in front of the closing bracket
  CHECK(load_error(text) == "expected '\"', found ']'");
  text = long_merges(gap);
  const size_t pair = text.find("\"Q\",", text.find("merges"));
  text.replace(pair, 3, "\"\x01\"");
  CHECK(load_error(text) == "a control character in a string");
}

TEST_CASE("utf8: characters are counted whatever their place in the text", "[data][tokenizer]") {
  const std::vector<std::string> characters = {"a", "\u00E9", "\u4E00", "\U0001F680"};
  for (size_t size = 0; size < 40; ++size) {
    CAPTURE(size);
    std::string text;
    for (size_t i = 0; i < size; ++i) text += characters[(i * 7 + size) % 4];
    CHECK(utf8_count(text) == size);
    CHECK(utf8_count(std::string(size, 'x')) == size);
  }
}

TEST_CASE("tokenizer: bytes that form no character become U+FFFD", "[data][tokenizer]") {
  const auto tokenizer = load_tokenizer(kTiny + "tokenizer.json");
  const auto byte = [&](const char* name) { return *tokenizer->id(name); };
  const std::vector<int32_t> bad = {byte("<0xF0>"), byte("<0x9F>")};
  CHECK(tokenizer->decode(bad) == "\uFFFD\uFFFD");
  StreamDecoder stream(*tokenizer);
  CHECK(stream.next(byte("<0xC3>")).empty());
  CHECK(stream.next(byte("<0xA9>")) == "é");
  CHECK(stream.next(byte("<0xF0>")).empty());
  CHECK(stream.finish() == "\uFFFD");
}

}  // namespace graft::data
