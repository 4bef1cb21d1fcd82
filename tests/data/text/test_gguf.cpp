// Vocabularies of GGUF files: every way to cut words against the tokenizer.json of its family, and
// damaged files.
#include "core/error.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "tests/data/text/golden.h"
#include "tests/support/gguf_file.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

const std::string kSteps = test::source_path("tests/golden/tokenizer_steps/");

std::string gguf_of(const std::string& name, const std::string& pre) {
  return test::gguf_of_tokenizer_json(kSteps + name + ".json", pre);
}

// The tokenizer.json without its added tokens.
std::unique_ptr<Tokenizer> plain_tokenizer(const test::TempDir& dir, const std::string& name) {
  Json root = read_json_file(kSteps + name + ".json");
  root.set("added_tokens", Json::array());
  root.set("post_processor", nullptr);
  write_file_atomically(dir.file("tokenizer.json"), dump_json(root));
  return load_tokenizer(dir.file("tokenizer.json"));
}

}  // namespace

TEST_CASE("gguf: words are cut as in the family's tokenizer.json", "[data][tokenizer]") {
  const auto [pre, name] = GENERATE(table<std::string, std::string>({
      {"gpt-2", "gpt2"},
      {"smollm", "smollm"},
      {"llama-bpe", "llama3"},
      {"qwen2", "qwen2"},
      {"qwen35", "qwen35"},
      {"gpt-4o", "o200k"},
      {"deepseek-v3", "deepseek"},
  }));
  CAPTURE(pre);
  const test::TempDir dir;
  write_file_atomically(dir.file("v.gguf"), gguf_of(name, pre));
  const auto gguf = load_tokenizer(dir.file("v.gguf"));
  const auto json = plain_tokenizer(dir, name);
  int rows = 0;
  for (const Json& row : test::read_golden(kSteps + "golden.jsonl")) {
    if (row.at("tok").as_string() != name) continue;
    const std::string text = row.at("text").as_string();
    CAPTURE(text);
    const Encoding expected = json->encode(text);
    CHECK(gguf->encode(text).ids == expected.ids);
    CHECK(gguf->encode(text).spans == expected.spans);
    CHECK(gguf->decode(expected.ids) == json->decode(expected.ids));
    ++rows;
  }
  CHECK(rows == 67);
}

TEST_CASE("gguf: every family's words cover the text, and its patterns need no unbounded time",
          "[data][tokenizer]") {
  const std::string pre = GENERATE(
      "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0",
      "mellum", "exaone4", "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
      "minerva-7b", "mellum2", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1",
      "midm-2.0", "lfm2", "pixtral", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe", "qwen2",
      "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2", "qwen35",
      "tekken", "gpt-4o", "llama4", "kanana2", "minimax-m2", "bailingmoe", "bailingmoe2",
      "llada-moe", "seed-coder", "deepseek-v3", "hunyuan-dense", "deepseek-coder", "falcon");
  CAPTURE(pre);
  const test::TempDir dir;
  write_file_atomically(dir.file("v.gguf"), gguf_of("gpt2", pre));
  const auto tokenizer = load_tokenizer(dir.file("v.gguf"));
  const std::string text = "It's 12345 caf\u00E9s,\r\n\n  \u4E00\u3042 (x)!? ''ll\t \u0E01\u0E33 ";
  const Encoding encoding = tokenizer->encode(text);
  int64_t at = 0;
  for (const ByteRange& span : encoding.spans) {
    CHECK(span.begin == at);
    at = span.end;
  }
  CHECK(at == static_cast<int64_t>(text.size()));
  CHECK(tokenizer->decode(encoding.ids) == text);
  const double start = test::cpu_seconds();
  for (const char* part : {"a", " ", "1", "!", "\n", "\u0301"}) {
    std::string hostile;
    for (int i = 0; i < 20'000; ++i) hostile += part;
    tokenizer->encode_ids(hostile);
  }
  CHECK(test::cpu_seconds() - start < 1.0);
}

TEST_CASE("gguf: cut short anywhere, it is refused", "[data][tokenizer]") {
  const std::string whole = gguf_of("gpt2", "gpt-2");
  const auto read = [](const std::string& bytes) {
    Tokenizer::Parts parts;
    read_gguf_vocabulary(bytes, "v.gguf", parts);
  };
  read(whole);
  for (size_t size = 0; size < whole.size(); size += 1 + size / 64) {
    CAPTURE(size);
    CHECK_THROWS_AS(read(whole.substr(0, size)), Error);
  }
}

TEST_CASE("gguf: what is wrong is named", "[data][tokenizer]") {
  const auto read = [](const test::GgufFile& file) {
    Tokenizer::Parts parts;
    read_gguf_vocabulary(file.bytes(), "v.gguf", parts);
  };
  CHECK_THROWS_WITH(read(test::GgufFile().text("tokenizer.ggml.model", "bert")),
                    Catch::Contains("\"bert\"") && Catch::Contains("v.gguf"));
  CHECK_THROWS_WITH(read(test::GgufFile().text("tokenizer.ggml.model", "gpt2")),
                    Catch::Contains("tokenizer.ggml.tokens must be a list of strings"));
  CHECK_THROWS_WITH(read(test::GgufFile()
                             .text("tokenizer.ggml.model", "gpt2")
                             .texts("tokenizer.ggml.tokens", {"a", "b"})
                             .numbers("tokenizer.ggml.token_type", std::vector<int32_t>{1})),
                    Catch::Contains("one number a token"));
  CHECK_THROWS_WITH(read(test::GgufFile()
                             .text("tokenizer.ggml.model", "gpt2")
                             .text("tokenizer.ggml.pre", "morse")
                             .texts("tokenizer.ggml.tokens", {"a"})
                             .numbers("tokenizer.ggml.token_type", std::vector<int32_t>{1})),
                    Catch::Contains("\"morse\""));
  CHECK_THROWS_WITH(read(test::GgufFile()
                             .text("tokenizer.ggml.model", "llama")
                             .text("tokenizer.ggml.model", "llama")),
                    Catch::Contains("twice"));
}

}  // namespace graft::data
