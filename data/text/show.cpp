#include "data/text/show.h"

#include <optional>

namespace graft::data {

ShownDocument show_document(const TokenStore& store, const Tokenizer& tokenizer, int64_t document) {
  const auto ids = store.tokens(document);
  const auto loss = store.loss(document);
  const auto roles = store.roles(document);
  ShownDocument shown;
  shown.source = store.source(document);
  shown.tokens = static_cast<int64_t>(ids.size());
  const std::optional<PairParts> pair = store.pair(document);
  shown.is_pair = pair.has_value();
  const auto part_of = [&](size_t i) {
    if (!pair || static_cast<int64_t>(i) < pair->chosen_begin) return Segment::kPrompt;
    return static_cast<int64_t>(i) < pair->rejected_begin ? Segment::kChosen : Segment::kRejected;
  };
  std::optional<StreamDecoder> decoder(tokenizer);
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool trained = loss[i] != 0;
    const Segment part = part_of(i);
    shown.trained += trained ? 1 : 0;
    if (roles[i] < shown.tokens_by_role.size()) ++shown.tokens_by_role[roles[i]];
    if (pair && static_cast<int64_t>(i) == pair->rejected_begin) {
      // It follows the prompt, not the chosen answer.
      shown.segments.back().text += decoder->finish();
      decoder.emplace(tokenizer);
      for (const int32_t id : ids.first(static_cast<size_t>(pair->chosen_begin))) decoder->next(id);
    }
    if (shown.segments.empty() || shown.segments.back().trained != trained ||
        shown.segments.back().part != part) {
      shown.segments.push_back({"", trained, part});
    }
    shown.segments.back().text += decoder->next(ids[i]);
  }
  if (!shown.segments.empty()) shown.segments.back().text += decoder->finish();
  return shown;
}

}  // namespace graft::data
