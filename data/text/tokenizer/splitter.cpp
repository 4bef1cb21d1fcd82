#include "data/text/tokenizer/splitter.h"

#include <utility>

#include "data/text/tokenizer/known_patterns.h"

namespace graft::data {
namespace {

constexpr std::pair<SplitterKind, std::string_view> kPatterns[] = {
    {SplitterKind::kGpt2, known::kGpt2},
    {SplitterKind::kLlama3, known::kLlama3},
    {SplitterKind::kQwen2, known::kQwen2},
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
