// Token ids, offsets and decoded text against Hugging Face `tokenizers`.
#include <cstdio>
#include <iterator>
#include <map>
#include <sstream>

#include "data/text/tokenizer.h"
#include "data/text/utf8.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

enum class Cover { kAll, kWithGaps };

// Checks one golden row (the keys of tests/golden/make_tokenizer_goldens.py). Spans cover the text
// unless the tokenizer drops parts of it.
void check_row(const Tokenizer& tokenizer, const Json& row, Cover cover = Cover::kAll) {
  const std::string text = row.at("text").as_string();
  CAPTURE(text);
  const Encoding encoding = tokenizer.encode(text);
  const std::vector<int32_t> ids = test::ids_of(row, "ids");
  CHECK(encoding.ids == ids);
  CHECK(tokenizer.encode_ids(text) == ids);
  CHECK(tokenizer.encode_ids(text, {.special = true}) == test::ids_of(row, "ids_special"));
  CHECK(reference_offsets(text, encoding) == test::ranges_of(row, "offsets"));
  CHECK(tokenizer.decode(ids) == row.at("decoded").as_string());
  CHECK(tokenizer.decode(ids, Tokenizer::SkipSpecial::kYes) == row.at("decoded_skip").as_string());
  int64_t at = 0;
  for (const ByteRange& span : encoding.spans) {
    CHECK(span.begin >= at);
    if (cover == Cover::kAll) CHECK(span.begin == at);
    CHECK(span.end >= span.begin);
    at = span.end;
  }
  if (cover == Cover::kAll) CHECK(at == static_cast<int64_t>(text.size()));
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) {
    streamed += stream.next(id);
    CHECK(is_valid_utf8(streamed));
  }
  CHECK(streamed + stream.finish() == row.at("decoded").as_string());
}

}  // namespace

TEST_CASE("tokenizer: ids, offsets and text of real models equal tokenizers", "[data][tokenizer]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::map<std::string, std::string> directories = {
      {"gpt2", "/data/tokenizers/gpt2"},
      {"llama2", "/data/tokenizers/llama2"},
      {"llama3", "/data/tokenizers/llama3"},
      {"qwen2", "/data/tokenizers/qwen2"},
      {"mistral_v3", "/data/tokenizers/mistral_v3"},
      {"phi3", "/data/tokenizers/phi3"},
      {"stories260K", "/data/models/stories260K"},
  };
  const std::string name =
      GENERATE("gpt2", "llama2", "llama3", "mistral_v3", "phi3", "qwen2", "stories260K");
  CAPTURE(name);
  const auto tokenizer = load_tokenizer(shared + directories.at(name));
  int rows = 0;
  for (const Json& row : test::read_golden(shared + "/data/tokenizers/golden.jsonl")) {
    if (row.at("tok").as_string() != name) continue;
    check_row(*tokenizer, row);
    ++rows;
  }
  CHECK(rows == 49);
  std::printf(
      "tokenizer goldens: %-12s %d texts, ids with and without specials, offsets, decoding\n",
      name.c_str(), rows);
}

TEST_CASE("tokenizer: tokenizer.model alone gives the ids of tokenizer.json", "[data][tokenizer]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::string directory = GENERATE("/data/tokenizers/llama2", "/data/models/stories260K");
  const auto from_json = load_tokenizer(shared + directory + "/tokenizer.json");
  const auto from_model = load_tokenizer(shared + directory + "/tokenizer.model");
  for (const Json& row : test::read_golden(shared + "/data/tokenizers/golden.jsonl")) {
    const std::string text = row.at("text").as_string();
    CAPTURE(text);
    CHECK(from_model->encode_ids(text) == from_json->encode_ids(text));
  }
}

TEST_CASE("tokenizer: tokenizer.model of every kind gives sentencepiece's ids",
          "[data][tokenizer]") {
  const std::string directory = test::source_path("tests/golden/tokenizer_spm/");
  const std::string name =
      GENERATE("bpe_map", "bpe_spaces", "unigram", "unigram_map", "unigram_plain");
  CAPTURE(name);
  const auto tokenizer = load_tokenizer(directory + name + ".model");
  int rows = 0;
  for (const Json& row : test::read_golden(directory + "golden.jsonl")) {
    if (row.at("model").as_string() != name) continue;
    const std::string text = row.at("text").as_string();
    CAPTURE(text);
    const Encoding encoding = tokenizer->encode(text);
    CHECK(encoding.ids == test::ids_of(row, "ids"));
    CHECK(tokenizer->encode_ids(text) == encoding.ids);
    int64_t at = 0;
    for (const ByteRange& span : encoding.spans) {
      CHECK(span.begin == at);
      CHECK(span.end >= span.begin);
      at = span.end;
    }
    // White space that vanishes with the whole text belongs to no token.
    if (!encoding.ids.empty()) CHECK(at == static_cast<int64_t>(text.size()));
    ++rows;
  }
  CHECK(rows == 51);
}

TEST_CASE("tokenizer: every kind of step gives what tokenizers gives", "[data][tokenizer]") {
  const std::string steps = test::source_path("tests/golden/tokenizer_steps/");
  const std::string name =
      GENERATE("gpt2", "gpt2_prefix", "llama3", "llama3_removed", "qwen2", "qwen35", "smollm",
               "cl100k", "o200k", "deepseek", "nfkc_trim", "nfd", "nfkd_gaps", "unigram",
               "unigram_bytes", "unigram_words");
  CAPTURE(name);
  // Strip and WhitespaceSplit drop white space.
  const bool drops = name == "unigram_words" || name == "unigram_bytes" || name == "nfd";
  const auto tokenizer = load_tokenizer(steps + name + ".json");
  int rows = 0;
  for (const Json& row : test::read_golden(steps + "golden.jsonl")) {
    if (row.at("tok").as_string() != name) continue;
    check_row(*tokenizer, row, drops ? Cover::kWithGaps : Cover::kAll);
    ++rows;
  }
  CHECK(rows == 67);
}

TEST_CASE("tokenizer: GGUF vocabularies give llama.cpp's ids", "[data][tokenizer]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::string name = GENERATE("llama-bpe", "llama-spm", "qwen2");
  const std::string stem = shared + "/data/tokenizers/gguf/ggml-vocab-" + name + ".gguf";
  CAPTURE(stem);
  const auto tokenizer = load_tokenizer(stem);
  const std::string input = read_file(stem + ".inp");
  const std::string output = read_file(stem + ".out");
  constexpr std::string_view kBetween = "\n__ggml_vocab_test__\n";
  int vectors = 0;
  size_t at = 0;
  for (size_t line = 0; line < output.size(); ++vectors) {
    const size_t end = std::min(input.find(kBetween, at), input.size());
    const size_t line_end = std::min(output.find('\n', line), output.size());
    std::istringstream numbers(output.substr(line, line_end - line));
    const std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
    CHECK(tokenizer->encode_ids(input.substr(at, end - at)) == expected);
    at = std::min(end + kBetween.size(), input.size());
    line = line_end + 1;
  }
  CHECK(vectors >= 46);
  std::printf("GGUF vectors: %-9s %d\n", name.c_str(), vectors);
}

}  // namespace graft::data
