#include "data/text/show.h"

namespace graft::data {

ShownDocument show_document(const TokenStore& store, const Tokenizer& tokenizer, int64_t document) {
  const auto ids = store.tokens(document);
  const auto loss = store.loss(document);
  const auto roles = store.roles(document);
  ShownDocument shown;
  shown.source = store.source(document);
  shown.tokens = static_cast<int64_t>(ids.size());
  StreamDecoder decoder(tokenizer);
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool trained = loss[i] != 0;
    shown.trained += trained ? 1 : 0;
    if (roles[i] < shown.tokens_by_role.size()) ++shown.tokens_by_role[roles[i]];
    if (shown.segments.empty() || shown.segments.back().trained != trained) {
      shown.segments.push_back({"", trained});
    }
    shown.segments.back().text += decoder.next(ids[i]);
  }
  if (!shown.segments.empty()) shown.segments.back().text += decoder.finish();
  return shown;
}

}  // namespace graft::data
