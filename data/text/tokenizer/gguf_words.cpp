#include "data/text/tokenizer/gguf_words.h"

#include <algorithm>
#include <array>
#include <memory>
#include <span>

#include "core/error.h"
#include "data/text/tokenizer/known_patterns.h"

namespace graft::data {
namespace {

using namespace known;  // NOLINT(google-build-using-namespace): a table of them

// The steps that cut words, each on the pieces of the one before; what a pattern does not match is
// a piece as well.
constexpr std::array kGpt2Words = {kGpt2};
constexpr std::array kDigitsWords = {kOneDigit, kGpt2};
constexpr std::array kLlama3Words = {kLlama3};
constexpr std::array kQwen2Words = {kQwen2};
constexpr std::array kQwen35Words = {kQwen35};
constexpr std::array kTekkenWords = {kTekken};
constexpr std::array kBailingWords = {kBailing};
constexpr std::array kSeedCoderWords = {kSeedCoder};
constexpr std::array kO200kWords = {kO200k};
constexpr std::array kDeepSeekV3Words = {kThreeDigits, kDeepSeekEastern, kDeepSeekRest};
constexpr std::array kDeepSeekCoderWords = {kNewline, kLetters, kMarks, kDeepSeekCoderEastern,
                                            kOneDigit};
constexpr std::array kFalconWords = {kFalconMarks, kGpt2, kDigitTriples};

struct Row {
  std::string_view pre;
  std::span<const std::string_view> words;
  bool nfc = false;
  bool ignore_merges = false;
  bool adds_bos = false;
};
constexpr bool kNfc = true;
constexpr bool kIgnoreMerges = true;
constexpr bool kAddsBos = true;
constexpr std::array kRows = {
    Row{"gpt-2", kGpt2Words},
    Row{"phi-2", kGpt2Words},
    Row{"mpt", kGpt2Words},
    Row{"olmo", kGpt2Words},
    Row{"jais", kGpt2Words},
    Row{"trillion", kGpt2Words},
    Row{"granite-docling", kGpt2Words},
    Row{"gigachat", kGpt2Words},
    Row{"a.x-4.0", kGpt2Words},
    Row{"mellum", kGpt2Words},
    Row{"exaone4", kGpt2Words},
    Row{"smollm", kDigitsWords},
    Row{"starcoder", kDigitsWords},
    Row{"refact", kDigitsWords},
    Row{"command-r", kDigitsWords},
    Row{"codeshell", kDigitsWords},
    Row{"exaone", kDigitsWords},
    Row{"minerva-7b", kDigitsWords},
    Row{"mellum2", kDigitsWords},
    Row{"llama3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"llama-v3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"llama-bpe", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"falcon3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"falcon-h1", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"midm-2.0", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"lfm2", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"pixtral", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"dbrx", kLlama3Words},
    Row{"smaug-bpe", kLlama3Words},
    Row{"glm4", kLlama3Words},
    Row{"chatglm-bpe", kLlama3Words},
    Row{"qwen2", kQwen2Words, kNfc},
    Row{"deepseek-r1-qwen", kQwen2Words, kNfc},
    Row{"megrez", kQwen2Words, kNfc},
    Row{"stablelm2", kQwen2Words},
    Row{"hunyuan", kQwen2Words},
    Row{"solar-open", kQwen2Words},
    Row{"grok-2", kQwen2Words},
    Row{"qwen35", kQwen35Words, kNfc},
    Row{"tekken", kTekkenWords, false, kIgnoreMerges, kAddsBos},
    Row{"gpt-4o", kO200kWords},
    Row{"llama4", kO200kWords},
    Row{"kanana2", kO200kWords},
    Row{"minimax-m2", kO200kWords},
    Row{"bailingmoe", kBailingWords},
    Row{"bailingmoe2", kBailingWords},
    Row{"llada-moe", kBailingWords},
    Row{"seed-coder", kSeedCoderWords},
    Row{"deepseek-v3", kDeepSeekV3Words},
    Row{"hunyuan-dense", kDeepSeekV3Words},
    Row{"deepseek-coder", kDeepSeekCoderWords},
    Row{"falcon", kFalconWords},
};

}  // namespace

GgufWords gguf_words(std::string_view pre, const std::string& name) {
  const auto row = std::find_if(kRows.begin(), kRows.end(),
                                [&](const Row& candidate) { return candidate.pre == pre; });
  if (row == kRows.end()) {
    fail(ExitCode::kData, "tokenizer.ggml.pre \"" + std::string(pre) + "\" is not supported", name,
         "use the tokenizer.json of the model");
  }
  GgufWords words;
  words.ignore_merges = row->ignore_merges;
  words.adds_bos = row->adds_bos;
  if (row->nfc) words.normalizer.emplace_back(NormalForm::kC);
  for (const std::string_view pattern : row->words) {
    SplitStep split;
    split.known = known_splitter(pattern);
    if (!split.known) split.pattern = std::make_shared<Pattern>(pattern, name);
    words.pre_tokenizer.emplace_back(std::move(split));
  }
  return words;
}

}  // namespace graft::data
