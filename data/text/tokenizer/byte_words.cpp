// Words of byte-level models, from the text to their tokens: the loop that speed depends on.
#include "data/text/tokenizer/bpe_workspace.h"

namespace graft::data {

template <SplitterKind kKind>
void BpeModel::encode_split(std::string_view text,
                            size_t begin,
                            size_t end,
                            Workspace& workspace,
                            std::vector<int32_t>& ids,
                            std::vector<ByteRange>* spans) const {
  const splitter::Cursor cursor = {text.data(), end, flag_table()};
  while (begin < end) {
    const bool is_wide = end - begin >= 16;
    size_t size = is_wide ? splitter::short_word_end<kKind>(text.data() + begin) : 0;
    if (size == 0) size = splitter::word_end<kKind>(cursor, begin) - begin;
    const size_t next = begin + size;
    const uint64_t key = is_wide && size <= ShortWords::kMaxBytes
                             ? ShortWords::key_of(text.data() + begin, size)
                             : 0;
    int32_t id = key != 0 ? workspace.short_words.find(key) : -1;
    if (id < 0) {
      const std::span<const int32_t> tokens = byte_word_tokens(text, begin, next, workspace);
      if (tokens.size() > 1) {
        auto at = static_cast<int64_t>(begin);
        for (const int32_t token : tokens) {
          ids.push_back(token);
          if (!spans) continue;
          const int64_t after = at + lengths_[static_cast<size_t>(token)];
          spans->push_back({at, after});
          at = after;
        }
        begin = next;
        continue;
      }
      id = tokens[0];
      if (key != 0) workspace.short_words.store(key, id);
    }
    ids.push_back(id);
    if (spans) spans->push_back({static_cast<int64_t>(begin), static_cast<int64_t>(next)});
    begin = next;
  }
}

void BpeModel::encode_words(SplitterKind splitter,
                            std::string_view text,
                            size_t begin,
                            size_t end,
                            Workspace& workspace,
                            std::vector<int32_t>& ids,
                            std::vector<ByteRange>* spans) const {
  switch (splitter) {
    case SplitterKind::kGpt2:
      return encode_split<SplitterKind::kGpt2>(text, begin, end, workspace, ids, spans);
    case SplitterKind::kLlama3:
      return encode_split<SplitterKind::kLlama3>(text, begin, end, workspace, ids, spans);
    case SplitterKind::kQwen2:
      return encode_split<SplitterKind::kQwen2>(text, begin, end, workspace, ids, spans);
  }
}

}  // namespace graft::data
