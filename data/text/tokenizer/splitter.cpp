#include "data/text/tokenizer/splitter.h"

#include <utility>

namespace graft::data {
namespace {

constexpr std::pair<SplitterKind, std::string_view> kPatterns[] = {
    {SplitterKind::kGpt2,
     R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {SplitterKind::kLlama3,
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {SplitterKind::kQwen2,
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

}  // namespace

std::optional<SplitterKind> known_splitter(std::string_view pattern) {
  for (const auto& [kind, text] : kPatterns) {
    if (text == pattern) return kind;
  }
  return std::nullopt;
}

std::string_view splitter_pattern(SplitterKind kind) {
  for (const auto& [known, text] : kPatterns) {
    if (known == kind) return text;
  }
  return {};
}

}  // namespace graft::data
