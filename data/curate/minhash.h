// MinHash sketches of shingle sets, and the pairs of sketches that are worth a closer look.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace graft::data {

// 128 slots in 32 bands of 4: two sets of Jaccard similarity J share a band with probability
// 1 - (1 - J^4)^32, which is 0.9998 at J = 0.7 (the usual 14 bands of 8 give 0.57).
inline constexpr int kSketchSlots = 128;
inline constexpr int kBandRows = 4;
inline constexpr int kBands = kSketchSlots / kBandRows;

struct Sketch {
  alignas(64) std::array<uint32_t, kSketchSlots> slots;
};

class SketchMaker {
 public:
  // The permutations are a pure function of the seed.
  explicit SketchMaker(uint64_t seed);
  // Slot k holds the least of (a_k * high(x) + b_k) mod 2^32 over the shingle hashes x; all ones
  // for no shingles. The same bits on AVX-512, AVX2 and plain code.
  void make(std::span<const uint64_t> shingles, Sketch& out) const;

 private:
  alignas(64) std::array<uint32_t, kSketchSlots> multiply_;
  alignas(64) std::array<uint32_t, kSketchSlots> add_;
};

// Number of equal slots.
int equal_slots(const Sketch& a, const Sketch& b);

// Calls visit(a, b), a < b, for the pairs of sketches that share a band, once per shared band.
// `sizes` are the sizes of the sets; pairs whose size ratio rules out `min_jaccard`, or whose
// sketches make it improbable, are left out. `skip(a, b)` is asked first and may answer true for
// pairs whose outcome no longer matters. In a bucket of more than 256 sets each one meets the 256
// nearest in size only, so the work grows linearly. Sets without shingles are never visited.
// Threads take whole bands: `visit` and `skip` run concurrently.
struct CandidateSearch {
  std::span<const Sketch> sketches;
  std::span<const uint32_t> sizes;
  double min_jaccard;
  int threads;
};
using PairVisit = std::function<void(uint32_t, uint32_t)>;
using PairSkip = std::function<bool(uint32_t, uint32_t)>;
void visit_candidates(const CandidateSearch& search, const PairSkip& skip, const PairVisit& visit);

}  // namespace graft::data
