#include "tests/fuzz/seeds.h"

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/gguf_file.h"

namespace graft::fuzz {
namespace {

std::vector<std::string> tokenizer_files(const std::string& golden) {
  std::vector<std::string> seeds;
  for (const char* folder : {"tokenizer_steps", "tokenizer_tiny"}) {
    const std::string directory = join_path(golden, folder);
    for (const std::string& name : list_directory(directory)) {
      const bool is_tokenizer = name.ends_with(".json") && name != "tokenizer_config.json";
      if (is_tokenizer) seeds.push_back(read_file(join_path(directory, name)));
    }
  }
  // The smallest that is no refusal: characters without byte fallback, and Unigram.
  seeds.push_back(R"({"added_tokens":[{"id":3,"content":"<x>","special":true,"rstrip":true}],)"
                  R"("normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},)"
                  R"("pre_tokenizer":null,"decoder":{"type":"Fuse"},"model":{"type":"BPE",)"
                  R"("unk_token":"u","vocab":{"u":0,"a":1,"aa":2},"merges":["a a"]}})");
  seeds.push_back(R"({"normalizer":{"type":"NFKC"},"pre_tokenizer":{"type":"Metaspace",)"
                  R"("replacement":"▁","prepend_scheme":"first","split":false},"decoder":null,)"
                  R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":)"
                  R"({"id":"u","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],)"
                  R"("special_tokens":{"u":{"id":"u","ids":[0],"tokens":["u"]}}},"model":)"
                  R"({"type":"Unigram","unk_id":0,"vocab":[["u",0.0],["▁",-1.5],["a",-2]]}})");
  return seeds;
}

std::vector<std::string> templates(const std::string& golden) {
  std::vector<std::string> seeds;
  const std::string path = join_path(golden, "template_golden.jsonl");
  const std::string lines = read_file(path);
  for (size_t at = 0; at < lines.size();) {
    const size_t end = std::min(lines.find('\n', at), lines.size());
    const Json row = parse_json(lines.substr(at, end - at), path);
    seeds.push_back(row.at("template").as_string());
    seeds.push_back(seeds.back() + '\0' + dump_json(row.at("messages")));
    at = end + 1;
  }
  return seeds;
}

std::vector<std::string> gguf_files(const std::string& golden) {
  std::vector<std::string> seeds;
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"};
  std::vector<float> scores = {0, 0, 0, -3, -4, -5, -1, -2};
  std::vector<int32_t> types = {2, 3, 3, 1, 1, 1, 1, 1};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    tokens.push_back({'<', '0', 'x', kDigits[static_cast<size_t>(byte) >> 4],
                      kDigits[static_cast<size_t>(byte) & 15U], '>'});
    scores.push_back(0);
    types.push_back(6);
  }
  seeds.push_back(test::GgufFile()
                      .text("tokenizer.ggml.model", "llama")
                      .texts("tokenizer.ggml.tokens", tokens)
                      .numbers("tokenizer.ggml.scores", scores)
                      .numbers("tokenizer.ggml.token_type", types)
                      .number("tokenizer.ggml.bos_token_id", 1)
                      .number("tokenizer.ggml.eos_token_id", 2)
                      .number("tokenizer.ggml.unknown_token_id", 0)
                      .bytes());
  const std::string path = join_path(golden, "tokenizer_steps/gpt2.json");
  for (const char* pre : {"gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "deepseek-v3"}) {
    seeds.push_back(test::gguf_of_tokenizer_json(path, pre));
  }
  return seeds;
}

}  // namespace

std::vector<std::string> seeds_of(std::string_view target, const std::string& golden) {
  if (target == "chat_template") return templates(golden);
  if (target == "gguf") return gguf_files(golden);
  if (target == "tokenizer_json") return tokenizer_files(golden);
  if (target == "tokenizer_model") {
    std::vector<std::string> seeds = {
        read_file(join_path(golden, "tokenizer_tiny/tokenizer.model"))};
    for (const char* name : {"bpe_map", "bpe_spaces", "unigram", "unigram_map", "unigram_plain"}) {
      seeds.push_back(
          read_file(join_path(golden, std::string("tokenizer_spm/") + name + ".model")));
    }
    return seeds;
  }
  fail(ExitCode::kUsage, "no fuzz target \"" + std::string(target) + "\"");
}

}  // namespace graft::fuzz
