#include "data/curate/minhash.h"

#include <algorithm>
#include <cmath>

#include "core/hash.h"
#include "data/curate/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define GRAFT_X86 1
#endif

namespace graft::data {
namespace {

constexpr uint32_t kBucketWindow = 256;

using Slots = std::array<uint32_t, kSketchSlots>;

void sketch_plain(const Slots& multiply,
                  const Slots& add,
                  std::span<const uint64_t> shingles,
                  Slots& out) {
  out.fill(~uint32_t{0});
  for (const uint64_t shingle : shingles) {
    const auto x = static_cast<uint32_t>(shingle >> 32);
    for (size_t k = 0; k < kSketchSlots; ++k) {
      out[k] = std::min(out[k], multiply[k] * x + add[k]);
    }
  }
}

int equal_plain(const Slots& a, const Slots& b) {
  int count = 0;
  for (size_t k = 0; k < kSketchSlots; ++k) {
    count += a[k] == b[k] ? 1 : 0;
  }
  return count;
}

#if GRAFT_X86
// GCC 12 reports the undefined source operand of its own intrinsics as uninitialised.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

// Half the slots at a time: 4 minima, 4 multipliers and 4 addends stay in registers.
__attribute__((target("avx512f"))) void sketch_avx512(const Slots& multiply,
                                                      const Slots& add,
                                                      std::span<const uint64_t> shingles,
                                                      Slots& out) {
  for (size_t base = 0; base < kSketchSlots; base += 64) {
    __m512i a[4];
    __m512i b[4];
    __m512i least[4];
    for (size_t k = 0; k < 4; ++k) {
      a[k] = _mm512_load_si512(multiply.data() + base + 16 * k);
      b[k] = _mm512_load_si512(add.data() + base + 16 * k);
      least[k] = _mm512_set1_epi32(-1);
    }
    for (const uint64_t shingle : shingles) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(shingle >> 32));
      for (size_t k = 0; k < 4; ++k) {
        least[k] = _mm512_min_epu32(least[k], _mm512_add_epi32(_mm512_mullo_epi32(a[k], x), b[k]));
      }
    }
    for (size_t k = 0; k < 4; ++k) {
      _mm512_store_si512(out.data() + base + 16 * k, least[k]);
    }
  }
}

__attribute__((target("avx2"))) void sketch_avx2(const Slots& multiply,
                                                 const Slots& add,
                                                 std::span<const uint64_t> shingles,
                                                 Slots& out) {
  for (size_t base = 0; base < kSketchSlots; base += 32) {
    __m256i a[4];
    __m256i b[4];
    __m256i least[4];
    for (size_t k = 0; k < 4; ++k) {
      a[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(multiply.data() + base + 8 * k));
      b[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(add.data() + base + 8 * k));
      least[k] = _mm256_set1_epi32(-1);
    }
    for (const uint64_t shingle : shingles) {
      const __m256i x = _mm256_set1_epi32(static_cast<int>(shingle >> 32));
      for (size_t k = 0; k < 4; ++k) {
        least[k] = _mm256_min_epu32(least[k], _mm256_add_epi32(_mm256_mullo_epi32(a[k], x), b[k]));
      }
    }
    for (size_t k = 0; k < 4; ++k) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(out.data() + base + 8 * k), least[k]);
    }
  }
}

__attribute__((target("avx2,popcnt"))) int equal_avx2(const Slots& a, const Slots& b) {
  int count = 0;
  for (size_t k = 0; k < kSketchSlots; k += 8) {
    const __m256i equal =
        _mm256_cmpeq_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(a.data() + k)),
                           _mm256_load_si256(reinterpret_cast<const __m256i*>(b.data() + k)));
    count +=
        __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(equal))));
  }
  return count;
}
#pragma GCC diagnostic pop
#endif

using MakeSketch = void (*)(const Slots&, const Slots&, std::span<const uint64_t>, Slots&);
using CountEqual = int (*)(const Slots&, const Slots&);

MakeSketch choose_sketch() {
#if GRAFT_X86
  if (__builtin_cpu_supports("avx512f")) {
    return sketch_avx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    return sketch_avx2;
  }
#endif
  return sketch_plain;
}

CountEqual choose_equal() {
#if GRAFT_X86
  if (__builtin_cpu_supports("avx2")) {
    return equal_avx2;
  }
#endif
  return equal_plain;
}

uint32_t band_key(const Sketch& sketch, int band) {
  const uint32_t* rows = sketch.slots.data() + band * kBandRows;
  uint64_t key = 0;
  for (int r = 0; r < kBandRows; ++r) {
    key = (key ^ rows[r]) * 0x9E3779B97F4A7C15ULL;
    key ^= key >> 29;
  }
  return static_cast<uint32_t>(key >> 32);
}

bool same_band(const Sketch& a, const Sketch& b, int band) {
  const size_t at = static_cast<size_t>(band) * kBandRows;
  return std::equal(a.slots.begin() + static_cast<std::ptrdiff_t>(at),
                    a.slots.begin() + static_cast<std::ptrdiff_t>(at + kBandRows),
                    b.slots.begin() + static_cast<std::ptrdiff_t>(at));
}

// Sorts by the upper 32 bits, keeping the order of equal keys: three passes of 11 bits.
void radix_sort_keys(std::vector<uint64_t>& entries, std::vector<uint64_t>& buffer) {
  buffer.resize(entries.size());
  for (const int shift : {32, 43, 54}) {
    std::array<size_t, 2049> first{};
    for (const uint64_t entry : entries) {
      ++first[((entry >> shift) & 2047) + 1];
    }
    for (size_t d = 1; d < first.size(); ++d) {
      first[d] += first[d - 1];
    }
    for (const uint64_t entry : entries) {
      buffer[first[(entry >> shift) & 2047]++] = entry;
    }
    entries.swap(buffer);
  }
}

class BandVisitor {
 public:
  BandVisitor(const CandidateSearch& search, const PairSkip& skip, const PairVisit& visit)
      : search_(search), skip_(skip), visit_(visit) {
    // A sketch of J >= t has fewer equal slots than this about once in 10^7 (5.2 standard
    // deviations of a binomial with 128 trials).
    const double t = search.min_jaccard;
    const double deviation = std::sqrt(t * (1 - t) * kSketchSlots);
    min_equal_ = static_cast<int>(std::floor(t * kSketchSlots - 5.2 * deviation));
  }

  void visit_band(int band) const {
    std::vector<uint64_t> entries;
    std::vector<uint64_t> buffer;
    entries.reserve(search_.sketches.size());
    for (size_t i = 0; i < search_.sketches.size(); ++i) {
      if (search_.sizes[i] > 0) {
        entries.push_back(uint64_t{band_key(search_.sketches[i], band)} << 32 | i);
      }
    }
    radix_sort_keys(entries, buffer);
    std::vector<uint32_t> bucket;
    for (size_t begin = 0; begin < entries.size();) {
      size_t end = begin + 1;
      while (end < entries.size() && entries[end] >> 32 == entries[begin] >> 32) {
        ++end;
      }
      if (end - begin > 1) {
        bucket.clear();
        for (size_t i = begin; i < end; ++i) {
          bucket.push_back(static_cast<uint32_t>(entries[i]));
        }
        visit_bucket(bucket, band);
      }
      begin = end;
    }
  }

 private:
  void visit_bucket(std::vector<uint32_t>& bucket, int band) const {
    std::stable_sort(bucket.begin(), bucket.end(),
                     [&](uint32_t a, uint32_t b) { return search_.sizes[a] < search_.sizes[b]; });
    for (size_t i = 1; i < bucket.size(); ++i) {
      const size_t lowest = i > kBucketWindow ? i - kBucketWindow : 0;
      for (size_t j = i; j-- > lowest;) {
        // Sorted by size: all that follow are smaller still.
        if (search_.sizes[bucket[j]] < search_.min_jaccard * search_.sizes[bucket[i]]) {
          break;
        }
        visit_pair(std::min(bucket[i], bucket[j]), std::max(bucket[i], bucket[j]), band);
      }
    }
  }

  void visit_pair(uint32_t a, uint32_t b, int band) const {
    if (skip_(a, b)) {
      return;
    }
    const Sketch& first = search_.sketches[a];
    const Sketch& second = search_.sketches[b];
    if (equal_slots(first, second) < min_equal_ || !same_band(first, second, band)) {
      return;
    }
    visit_(a, b);
  }

  const CandidateSearch& search_;
  const PairSkip& skip_;
  const PairVisit& visit_;
  int min_equal_ = 0;
};

}  // namespace

SketchMaker::SketchMaker(uint64_t seed) {
  const Philox random(seed, 0x6D696E68617368);
  for (size_t k = 0; k < kSketchSlots; ++k) {
    multiply_[k] = random.u32(2 * k) | 1U;
    add_[k] = random.u32(2 * k + 1);
  }
}

void SketchMaker::make(std::span<const uint64_t> shingles, Sketch& out) const {
  static const MakeSketch make_sketch = choose_sketch();
  make_sketch(multiply_, add_, shingles, out.slots);
}

int equal_slots(const Sketch& a, const Sketch& b) {
  static const CountEqual count_equal = choose_equal();
  return count_equal(a.slots, b.slots);
}

void visit_candidates(const CandidateSearch& search, const PairSkip& skip, const PairVisit& visit) {
  const BandVisitor visitor(search, skip, visit);
  parallel_for(kBands, search.threads,
               [&](int64_t band) { visitor.visit_band(static_cast<int>(band)); });
}

}  // namespace graft::data
