// Loops over the values of a tile on all threads (internal).
#pragma once

#include <algorithm>
#include <cstdint>

namespace graft::adapters {

// Values of one piece; sums are kept per piece and added in order, so threads change nothing.
constexpr int64_t kPieceValues = int64_t{1} << 16;

inline int64_t piece_count(int64_t count) {
  return (count + kPieceValues - 1) / kPieceValues;
}

// Calls body(piece, begin, end) for each piece of [0, count). `body` may not throw.
template <class Body>
void for_each_piece(int64_t count, const Body& body) {
  const int64_t pieces = piece_count(count);
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kPieceValues;
    body(piece, begin, std::min(begin + kPieceValues, count));
  }
}

}  // namespace graft::adapters
