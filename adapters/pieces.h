// Loops over values on all threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

namespace graft::adapters {

// Values of one piece; sums are kept per piece and added in order, so threads change nothing.
constexpr int64_t kPieceValues = int64_t{1} << 16;

inline int64_t piece_count(int64_t count) {
  return (count + kPieceValues - 1) / kPieceValues;
}

// Calls body(piece, begin, end) for each piece of [0, count). What bodies throw, the caller gets:
// of several, what the first piece threw, so that threads do not change an error either.
template <class Body>
void for_each_piece(int64_t count, const Body& body) {
  const int64_t pieces = piece_count(count);
  std::exception_ptr error;
  int64_t failed = pieces;
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kPieceValues;
    try {
      body(piece, begin, std::min(begin + kPieceValues, count));
    } catch (...) {
#pragma omp critical(graft_piece_error)
      if (piece < failed) {
        failed = piece;
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace graft::adapters
