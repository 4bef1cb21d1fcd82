// More tokens for a tokenizer that is trained already: in memory and in files.
#include "core/error.h"
#include "data/text/extend_tokenizer.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

const std::string kTiny = test::source_path("tests/golden/tokenizer_tiny/");
const std::vector<AddedTokenSpec> kTokens = {
    {.content = "<|tool|>", .special = true},
    {.content = "</s>", .special = true},  // known already
    {.content = "<think>"},
    {.content = "\u00E9t\u00E9", .rstrip = true, .single_word = true},
};

std::string model_dir(const test::TempDir& dir, const std::string& from, const std::string& as) {
  write_file_atomically(dir.file("model/" + as), read_file(kTiny + from));
  write_file_atomically(dir.file("model/tokenizer_config.json"),
                        read_file(kTiny + "tokenizer_config.json"));
  return dir.file("model");
}

}  // namespace

TEST_CASE("new tokens: the files give the ids of with_added_tokens", "[data][tokenizer]") {
  const auto [from, as] = GENERATE(table<std::string, std::string>({
      {"tokenizer.json", "tokenizer.json"},
      {"added.json", "tokenizer.json"},
      {"metaspace.json", "tokenizer.json"},
      {"tokenizer.model", "tokenizer.model"},
  }));
  CAPTURE(from);
  const test::TempDir dir;
  make_directories(dir.file("model"));
  const std::string model = model_dir(dir, from, as);
  const auto old = load_tokenizer(model);
  const std::vector<NewToken> added =
      extend_tokenizer_files(*old, model, kTokens, dir.file("extended"));
  const auto files = load_tokenizer(dir.file("extended"));
  const auto memory = old->with_added_tokens(kTokens);
  REQUIRE(added.size() == 4);
  CHECK(added[0].id == old->vocab_size());
  CHECK(added[0].is_new);
  CHECK(added[0].pieces == old->encode_ids("<|tool|>"));
  CHECK_FALSE(added[1].is_new);
  CHECK(added[1].id == *old->eos_id());
  CHECK(added[2].id == old->vocab_size() + 1);
  CHECK(files->vocab_size() == old->vocab_size() + 3);
  CHECK(files->is_special(added[0].id));
  CHECK_FALSE(files->is_special(added[2].id));
  for (const char* text :
       {"<|tool|>the order</s>", "a <think> b<think>c", "l'\u00E9t\u00E9  x \u00E9t\u00E9s",
        "<s>a graft word <|im_start|>x<|im_end|> y <left> <right> z</s>",
        "  <|tool|>  <think>\u00E9t\u00E9", "order"}) {
    CAPTURE(text);
    const Encoding expected = memory->encode(text);
    CHECK(files->encode(text).ids == expected.ids);
    CHECK(files->encode(text).spans == expected.spans);
    CHECK(files->decode(expected.ids) == memory->decode(expected.ids));
    CHECK(files->decode(expected.ids, Tokenizer::SkipSpecial::kYes) ==
          memory->decode(expected.ids, Tokenizer::SkipSpecial::kYes));
  }
  CHECK(files->digest() != old->digest());  // stores of the old tokenizer are refused
}

TEST_CASE("new tokens: bad ones are refused, and nothing is written", "[data][tokenizer]") {
  const test::TempDir dir;
  make_directories(dir.file("model"));
  const std::string model = model_dir(dir, "tokenizer.json", "tokenizer.json");
  const auto base = load_tokenizer(model);
  for (const char* content : {"", "\xFF"}) {
    const std::vector<AddedTokenSpec> bad = {{.content = content}};
    CHECK_THROWS_AS(extend_tokenizer_files(*base, model, bad, dir.file("out")), Error);
  }
  const std::vector<AddedTokenSpec> twice = {{.content = "<t>"}, {.content = "<t>"}};
  CHECK_THROWS_WITH(extend_tokenizer_files(*base, model, twice, dir.file("out")),
                    Catch::Contains("given twice"));
  CHECK_FALSE(directory_exists(dir.file("out")));
}

TEST_CASE("new tokens: extend says which rows each begins as", "[data][commands]") {
  const test::TempDir dir;
  make_directories(dir.file("model"));
  const std::string model = model_dir(dir, "tokenizer.json", "tokenizer.json");
  const auto made = test::run({"graft-data", "extend", "<|tool|>", "</s>", "--model", model,
                               "--out", dir.file("out"), "--json"});
  REQUIRE(made.exit_code == 0);
  const Json answer = parse_json(made.out, "out");
  const auto& tokens = answer.at("tokens").as_array();
  const auto old = load_tokenizer(model);
  CHECK(tokens[0].at("id").as_int() == old->vocab_size());
  std::vector<int32_t> mean_of;
  for (const Json& id : tokens[0].at("mean_of").as_array()) {
    mean_of.push_back(static_cast<int32_t>(id.as_int()));
  }
  CHECK(mean_of == old->encode_ids("<|tool|>"));
  CHECK_FALSE(tokens[1].at("is_new").as_bool());
  CHECK(load_tokenizer(dir.file("out"))
            ->is_special(*load_tokenizer(dir.file("out"))->id("<|tool|>")));
  CHECK(test::run(
            {"graft-data", "extend", "<t>", "--model", dir.file("none"), "--out", dir.file("x")})
            .exit_code == 2);
}

}  // namespace graft::data
