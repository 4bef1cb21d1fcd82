#include "data/text/tokenizer/gguf_words.h"

#include <algorithm>
#include <array>
#include <memory>
#include <span>

#include "core/error.h"

namespace graft::data {
namespace {

// The steps that cut words, each on the pieces of the one before; what a pattern does not match is
// a piece as well. The patterns are those of the families' own tokenizer.json.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kOneDigit = R"(\p{N})";
constexpr std::string_view kThreeDigits = R"(\p{N}{1,3})";
// Han, Hiragana and Katakana; a word with one mark of ASCII in front, marks, white space.
constexpr std::string_view kDeepSeekEastern = "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+";
constexpr std::string_view kDeepSeekRest =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kNewline = "[\r\n]";
constexpr std::string_view kLetters = R"(\s?\p{L}+)";
constexpr std::string_view kMarks = R"(\s?\p{P}+)";
constexpr std::string_view kDeepSeekCoderEastern = "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+";
constexpr std::string_view kFalconMarks = R"([\p{P}\$\+<=>\^~\|`]+)";
constexpr std::string_view kDigitTriples = "[0-9][0-9][0-9]";

constexpr std::array kGpt2Words = {kGpt2};
constexpr std::array kDigitsWords = {kOneDigit, kGpt2};
constexpr std::array kLlama3Words = {kLlama3};
constexpr std::array kQwen2Words = {kQwen2};
constexpr std::array kQwen35Words = {kQwen35};
constexpr std::array kTekkenWords = {kTekken};
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
    Row{"llama3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"llama-v3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"llama-bpe", kLlama3Words, false, kIgnoreMerges, kAddsBos},
    Row{"falcon3", kLlama3Words, false, kIgnoreMerges, kAddsBos},
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
    Row{"minimax-m2", kO200kWords},
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
