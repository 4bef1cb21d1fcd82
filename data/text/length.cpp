#include "data/text/length.h"

#include <algorithm>
#include <string>
#include <utility>

namespace graft::data {
namespace {

// Tokens [begin, end) as a document; the first `context` of them are not trained.
Document piece_of(const Document& doc, bool has_bos, int64_t begin, int64_t end, int64_t context) {
  Document piece;
  piece.weights = doc.weights;
  if (has_bos && begin > 0) {
    piece.ids.push_back(doc.ids[0]);
    piece.loss.push_back(0);
    piece.role.push_back(doc.role[0]);
  }
  const auto copy = [begin, end](const auto& from, auto& to) {
    to.insert(to.end(), from.begin() + begin, from.begin() + end);
  };
  copy(doc.ids, piece.ids);
  copy(doc.role, piece.role);
  const auto first = static_cast<int64_t>(piece.loss.size());
  copy(doc.loss, piece.loss);
  std::fill_n(piece.loss.begin() + first, context, uint8_t{0});
  piece.supervised =
      std::count_if(piece.loss.begin(), piece.loss.end(), [](uint8_t loss) { return loss != 0; });
  return piece;
}

std::vector<Document> split(const Document& doc, bool has_bos, const MaskOptions& options) {
  const auto length = static_cast<int64_t>(doc.ids.size());
  std::vector<Document> pieces;
  int64_t empty = 0;
  int64_t empty_tokens = 0;
  for (int64_t begin = 0, context = 0; begin < length;) {
    const int64_t room = options.sequence_len - (has_bos && begin > 0 ? 1 : 0);
    const int64_t end = std::min(length, begin + room);
    Document piece = piece_of(doc, has_bos, begin, end, context);
    if (piece.supervised > 0) {
      pieces.push_back(std::move(piece));
    } else {
      ++empty;
      empty_tokens += end - begin - context;
    }
    if (end == length) break;
    context = std::min(options.chunk_overlap, end - begin - 1);
    begin = end - context;
  }
  if (!pieces.empty()) {
    // What is said about the whole record stands with its first piece.
    pieces.front().turns = doc.turns;
    pieces.front().turns_without_stop = doc.turns_without_stop;
    pieces.front().turns_unlike_serving = doc.turns_unlike_serving;
    pieces.front().straddling = doc.straddling;
    pieces.front().has_double_bos = doc.has_double_bos;
    pieces.front().truncated = empty_tokens;
  }
  if (empty > 0) {
    pieces.push_back(refused(Refusal::kTooLong, std::to_string(empty) +
                                                    " of the record's pieces of " +
                                                    std::to_string(options.sequence_len) +
                                                    " tokens hold no trained token"));
  }
  return pieces;
}

Document truncated(const Document& doc, bool has_bos, const MaskOptions& options) {
  const auto length = static_cast<int64_t>(doc.ids.size());
  const bool is_left = options.over_long == OverLong::kTruncateLeft;
  const int64_t begin = is_left ? length - options.sequence_len + (has_bos ? 1 : 0) : 0;
  const int64_t end = is_left ? length : options.sequence_len;
  Document cut = piece_of(doc, has_bos, begin, end, 0);
  if (cut.supervised == 0) {
    return refused(Refusal::kTooLong, "no trained token is left of the " +
                                          std::string(is_left ? "last " : "first ") +
                                          std::to_string(options.sequence_len));
  }
  cut.turns = doc.turns;
  cut.turns_without_stop = doc.turns_without_stop;
  cut.turns_unlike_serving = doc.turns_unlike_serving;
  cut.straddling = doc.straddling;
  cut.has_double_bos = doc.has_double_bos;
  cut.truncated = length - static_cast<int64_t>(cut.ids.size());
  return cut;
}

}  // namespace

std::string length_reason(int64_t length, const MaskOptions& options) {
  return "the document has " + std::to_string(length) + " tokens, sequence_len is " +
         std::to_string(options.sequence_len);
}

Document refused(Refusal refusal, std::string reason) {
  Document doc;
  doc.refusal = refusal;
  doc.reason = std::move(reason);
  return doc;
}

std::vector<Document> fit_length(Document doc, bool has_bos, const MaskOptions& options) {
  const auto length = static_cast<int64_t>(doc.ids.size());
  std::vector<Document> result;
  if (doc.refusal != Refusal::kNone || options.sequence_len <= 0 ||
      length <= options.sequence_len) {
    result.push_back(std::move(doc));
    return result;
  }
  switch (options.over_long) {
    case OverLong::kRaise:
    case OverLong::kDrop:
      result.push_back(refused(Refusal::kTooLong, length_reason(length, options)));
      break;
    case OverLong::kTruncateLeft:
    case OverLong::kTruncateRight:
      result.push_back(truncated(doc, has_bos, options));
      break;
    case OverLong::kSplit:
      result = split(doc, has_bos, options);
      break;
  }
  return result;
}

}  // namespace graft::data
