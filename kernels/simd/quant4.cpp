// 4-bit types on ranges of blocks, to codes: a code is the number of midpoints that the weight over
// its block's largest exceeds, compared in float32 on every path. From codes: quant4_decode.cpp.
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Weights that the quantizer looks at together, or one block if that is more: the scales of all
// their blocks are found before their codes, so that no block waits for its own scale. While they
// are looked at, the next come from memory: 4 KiB at a time keep it busiest.
constexpr int64_t kRun = 1024;
constexpr int64_t kLargestBlock = 4096;
constexpr int64_t kLeastBlock = 32;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

int64_t larger_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// The largest |x|; NaN and infinity order above every finite value when compared as bits.
uint32_t largest_magnitude_bits(const float* x, int64_t count) {
  uint32_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    best = bits > best ? bits : best;
  }
  return best;
}

// The same of eights of whole blocks; gives of how many blocks. One block alone would wait for the
// comparisons across its lanes.
#if defined(__AVX2__)

int64_t magnitudes_of_blocks(const float* x, int64_t count, int64_t block_size, uint32_t* bits) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const auto largest = [](__m256i a, __m256i b) { return _mm256_max_epu32(a, b); };
  int64_t block = 0;
  for (; (block + 8) * block_size <= count; block += 8) {
    __m256i of[8];
    for (int b = 0; b < 8; ++b) {
      const float* const from = x + (block + b) * block_size;
      const auto magnitude = [&](int64_t at) {
        return _mm256_and_si256(mask,
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at)));
      };
      __m256i best = _mm256_setzero_si256();
      for (int64_t i = 0; i < block_size; i += 32) {
        best = largest(best, largest(largest(magnitude(i), magnitude(i + 8)),
                                     largest(magnitude(i + 16), magnitude(i + 24))));
      }
      of[b] = best;
    }
    // Each step halves the vectors: lanes of two blocks, then four, then eight.
    __m256i two[4], four[2];
    for (int b = 0; b < 4; ++b) {
      two[b] = largest(_mm256_unpacklo_epi32(of[2 * b], of[2 * b + 1]),
                       _mm256_unpackhi_epi32(of[2 * b], of[2 * b + 1]));
    }
    for (int b = 0; b < 2; ++b) {
      four[b] = largest(_mm256_unpacklo_epi64(two[2 * b], two[2 * b + 1]),
                        _mm256_unpackhi_epi64(two[2 * b], two[2 * b + 1]));
    }
    const __m256i eight = largest(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                                  _mm256_permute2x128_si256(four[0], four[1], 0x31));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits + block), eight);
  }
  return block;
}

#else

int64_t magnitudes_of_blocks(const float*, int64_t, int64_t, uint32_t*) {
  return 0;
}

#endif

// How most weights of a type find their code with one comparison. Along the curve
// x (slope - bend |x|) the midpoints lie so evenly that each has a bin of its own. A weight's word,
// its place along the curve in 1/4096 of a bin, names the bin by its upper four bits.
struct Bins {
  float slope = 0.0f, bend = 0.0f;
  int16_t midpoint[16] = {};  // the midpoint's word
  uint8_t below[16] = {}, above[16] = {};
};

// A word is rounded, so that it decides unless it is the midpoint's own: a midpoint may not lie
// half way between two words, within the rounding of the curve before (32768 / 2^24 of a word).
constexpr double kWordMargin = 0.01;
// Words between a midpoint and the ends of its bin; two would do.
constexpr int kBinMargin = 400;

constexpr Bins bins_of(const float (&midpoints)[15], float slope, float bend) {
  Bins bins{slope * 4096.0f, bend * 4096.0f};
  bool used[16] = {};
  uint8_t code = 0;
  const auto bin_of = [](int word) { return word >> 12 & 15; };
  for (const float x : midpoints) {
    const double size = static_cast<double>(x < 0.0f ? -x : x);
    const double place = static_cast<double>(x) *
                         (static_cast<double>(bins.slope) - static_cast<double>(bins.bend) * size);
    const int word = static_cast<int>(place + 32768.5) - 32768;  // rounded to the nearest
    const int bin = bin_of(word);
    const double off = place > word ? place - word : word - place;
    if (off > 0.5 - kWordMargin) throw "between two words";  // does not compile
    if (used[bin] || bin_of(word - kBinMargin) != bin || bin_of(word + kBinMargin) != bin) {
      throw "no bin of its own";  // does not compile
    }
    used[bin] = true;
    bins.midpoint[bin] = static_cast<int16_t>(word);
    bins.below[bin] = code++;
    bins.above[bin] = code;
  }
  // Bins 0-7 rise from 0, 8-15 from the least value up.
  for (int bin = 0; bin < 16; ++bin) {
    if (used[bin]) continue;
    if (bin % 8 == 0) throw "no midpoint to begin with";  // does not compile
    bins.midpoint[bin] = static_cast<int16_t>(bin << 12);
    bins.below[bin] = bins.above[bin] = bins.above[bin - 1];
  }
  return bins;
}

constexpr Bins kNf4Bins = bins_of(kNf4Midpoints.value, 12.65f, 4.9f);

// What differs between the types: midpoints of the ascending values, and the code of each place.
struct Codes {
  const float* midpoints;  // [15]
  const uint8_t* order;    // [16], or NULL where code = place
  const Bins* bins;        // or NULL
};

Codes codes_of_type(graft_quant4_type type) {
  return type == GRAFT_FP4 ? Codes{kFp4Midpoints.value, kFp4Order, nullptr}
                           : Codes{kNf4Midpoints.value, nullptr, &kNf4Bins};
}

float clamp_to_one(float x) {
  return x > 1.0f ? 1.0f : (x < -1.0f ? -1.0f : x);
}

uint8_t code_of(float scaled, const Codes& codes) {
  uint8_t place = 0;
  for (int i = 0; i < 15; ++i) place += scaled > codes.midpoints[i];
  return codes.order != nullptr ? codes.order[place] : place;
}

#if defined(__AVX512F__) || defined(__AVX2__)
constexpr uint8_t kIdentity[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

// Weights of one run, of whole blocks but for the last.
struct Run {
  const float* x;
  int64_t count;
  const float* inverse;  // of each block
  int block_shift;       // block size = 2^block_shift
  const void* source;    // of x, in the type that the caller has
  int64_t element;       // bytes of one of its weights
  int64_t ahead;         // weights from here to the run that is fetched meanwhile

  float inverse_at(int64_t i) const { return inverse[i >> block_shift]; }
};

// The lines of the `count` weights that stand where weight i does in the run to fetch.
GRAFT_LANES_INLINE void fetch_ahead(const Run& run, int64_t i, int64_t count) {
  for (int64_t line = 0; line < 4 * count; line += 64) {
    prefetch(run.source, (run.ahead + i) * run.element + line);
  }
}

// Packs whole vectors of weights; gives how many weights it took. Values past 1 have the code of 1.
struct Packer;
int64_t pack_codes(const Run& run, const Packer& packer, uint8_t* packed);

#if defined(__AVX512F__)

__m512i codes_of(__m512 scaled, __m512 midpoints) {
  // Binary search: after the step of size s, the first `code` midpoints are below the value.
  __m512i code = _mm512_setzero_si512();
  for (int step = 8; step > 0; step /= 2) {
    const __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
    const __mmask16 above =
        _mm512_cmp_ps_mask(scaled, _mm512_permutexvar_ps(probe, midpoints), _CMP_GT_OQ);
    code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
  }
  return code;
}

struct Packer {
  __m512 midpoints;
  __m512i order;
  explicit Packer(const Codes& codes)
      : midpoints(_mm512_maskz_loadu_ps(0x7fff, codes.midpoints)),
        order(_mm512_cvtepu8_epi32(_mm_loadu_si128(
            reinterpret_cast<const __m128i*>(codes.order != nullptr ? codes.order : kIdentity)))) {}
};

int64_t pack_codes(const Run& run, const Packer& packer, uint8_t* packed) {
  const __m512 one = _mm512_set1_ps(1.0f), minus_one = _mm512_set1_ps(-1.0f);
  int64_t i = 0;
  for (; i + 16 <= run.count; i += 16) {
    fetch_ahead(run, i, 16);
    const __m512 product =
        _mm512_mul_ps(_mm512_loadu_ps(run.x + i), _mm512_set1_ps(run.inverse_at(i)));
    const __m512 scaled = _mm512_min_ps(one, _mm512_max_ps(minus_one, product));
    const __m512i code = _mm512_permutexvar_epi32(codes_of(scaled, packer.midpoints), packer.order);
    // A 64-bit lane holds the codes of a pair: low word first. high nibble = first code.
    const __m512i pair = _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
    const __m128i bytes = _mm512_cvtepi64_epi8(pair);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2), bytes);
  }
  return i;
}

#elif defined(__AVX2__)

__m256i both_halves(const uint8_t* sixteen) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
}

// Minus the codes: a comparison is -1 where it holds, so that sums of comparisons count down. The
// midpoints of a level of the binary search stand where the negative count's low three bits point.
struct Packer {
  __m256 half, quarter[2], eighths, sixteenths;
  __m256i order;
  bool binned;
  __m256 slope, bend;
  __m256i midpoint_low, midpoint_high, below, above;
  explicit Packer(const Codes& codes)
      : half(_mm256_set1_ps(codes.midpoints[7])),
        quarter{_mm256_set1_ps(codes.midpoints[3]), _mm256_set1_ps(codes.midpoints[11])},
        order(both_halves(codes.order != nullptr ? codes.order : kIdentity)) {
    alignas(32) float four[8], eight[8];
    for (int i = 0; i < 8; ++i) {
      eight[-i & 7] = codes.midpoints[2 * i];
      four[i] = codes.midpoints[4 * (-i & 3) + 1];
    }
    eighths = _mm256_load_ps(four);
    sixteenths = _mm256_load_ps(eight);
    binned = codes.bins != nullptr;
    if (!binned) return;
    slope = _mm256_set1_ps(codes.bins->slope);
    bend = _mm256_set1_ps(codes.bins->bend);
    alignas(16) uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      low[i] = static_cast<uint8_t>(codes.bins->midpoint[i]);
      high[i] = static_cast<uint8_t>(codes.bins->midpoint[i] >> 8);
    }
    midpoint_low = both_halves(low);
    midpoint_high = both_halves(high);
    below = both_halves(codes.bins->below);
    above = both_halves(codes.bins->above);
  }
};

// Minus the codes of four vectors, level by level: one vector's search after the other would be a
// chain that the processor waits for.
GRAFT_LANES_INLINE void minus_codes(const __m256 (&scaled)[4],
                                    const Packer& packer,
                                    __m256i (&count)[4]) {
  const auto descend = [](__m256i before, __m256 x, __m256 midpoint) {
    return _mm256_add_epi32(_mm256_add_epi32(before, before),
                            _mm256_castps_si256(_mm256_cmp_ps(x, midpoint, _CMP_GT_OQ)));
  };
  __m256 midpoint[4];
  const auto every = [](const auto& body) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) body(j);
  };
  every([&](int j) {
    count[j] = _mm256_castps_si256(_mm256_cmp_ps(scaled[j], packer.half, _CMP_GT_OQ));
  });
  every([&](int j) {
    midpoint[j] =
        _mm256_blendv_ps(packer.quarter[0], packer.quarter[1], _mm256_castsi256_ps(count[j]));
  });
  every([&](int j) { count[j] = descend(count[j], scaled[j], midpoint[j]); });
  // This permutation looks at two bits of a count, the next at three.
  every([&](int j) { midpoint[j] = _mm256_permutevar_ps(packer.eighths, count[j]); });
  every([&](int j) { count[j] = descend(count[j], scaled[j], midpoint[j]); });
  every([&](int j) { midpoint[j] = _mm256_permutevar8x32_ps(packer.sixteenths, count[j]); });
  every([&](int j) { count[j] = descend(count[j], scaled[j], midpoint[j]); });
}

// 32 codes by the search.
__attribute__((noinline)) void pack_by_search(const float* x,
                                              __m256 scale,
                                              const Packer& packer,
                                              uint8_t* packed) {
  __m256 scaled[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) scaled[j] = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * j), scale);
  __m256i minus[4];
  minus_codes(scaled, packer, minus);
  // Packing works in halves of 128 bits: fours of weights 0, 8, 16, 24 then 4, 12, 20, 28.
  const __m256i first = _mm256_packs_epi32(minus[0], minus[1]);
  const __m256i second = _mm256_packs_epi32(minus[2], minus[3]);
  const __m256i code =
      _mm256_shuffle_epi8(packer.order, _mm256_abs_epi8(_mm256_packs_epi16(first, second)));
  const __m256i pairs = _mm256_maddubs_epi16(code, _mm256_set1_epi16(0x0110));
  const __m256i bytes = _mm256_packus_epi16(pairs, pairs);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(packed),
      _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

// 32 codes by their bins; false if a word is its midpoint's, where only the search tells.
GRAFT_LANES_INLINE bool pack_by_bins(const float* x,
                                     __m256 scale,
                                     const Packer& packer,
                                     uint8_t* packed) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  // Adding 1.5 * 2^23 rounds to the nearest whole number, in the lower bits.
  const __m256 shift = _mm256_set1_ps(12582912.0f);
  const auto word = [&](int64_t at) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + at), scale);
    const __m256 size = _mm256_andnot_ps(sign, scaled);
    const __m256 curve = _mm256_fnmadd_ps(packer.bend, size, packer.slope);
    return _mm256_castps_si256(_mm256_fmadd_ps(scaled, curve, shift));
  };
  // Words of weights 0, 8, 1, 9, ... 7, 15.
  const auto words = [&](int64_t at) {
    return _mm256_blend_epi16(word(at), _mm256_slli_epi32(word(at + 8), 16), 0xaa);
  };
  const __m256i first = words(0), second = words(16);
  const __m256i bin =
      _mm256_packus_epi16(_mm256_srli_epi16(first, 12), _mm256_srli_epi16(second, 12));
  const __m256i low = _mm256_shuffle_epi8(packer.midpoint_low, bin);
  const __m256i high = _mm256_shuffle_epi8(packer.midpoint_high, bin);
  const __m256i distance =
      _mm256_packs_epi16(_mm256_sub_epi16(first, _mm256_unpacklo_epi8(low, high)),
                         _mm256_sub_epi16(second, _mm256_unpackhi_epi8(low, high)));
  const __m256i is_below = _mm256_cmpgt_epi8(_mm256_setzero_si256(), distance);
  const __m256i undecided = _mm256_cmpeq_epi8(distance, _mm256_setzero_si256());
  const __m256i code = _mm256_blendv_epi8(_mm256_shuffle_epi8(packer.above, bin),
                                          _mm256_shuffle_epi8(packer.below, bin), is_below);
  // Weights 2i and 2i + 1 stand two bytes apart, beside those 8 further: 16 * one + the other.
  const __m256i pairs = _mm256_madd_epi16(code, _mm256_set1_epi32(0x00010010));
  const __m256i bytes =
      _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                     0, 4, 1, 5, 8, 12, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1)));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(packed),
      _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  return _mm256_testz_si256(undecided, undecided);
}

int64_t pack_codes(const Run& run, const Packer& packer, uint8_t* packed) {
  int64_t i = 0;
  const auto scale = [&] { return _mm256_set1_ps(run.inverse_at(i)); };
  while (i + 32 <= run.count) {
    // No call in the inner loop: it would leave none of the tables in a register.
    bool decided = packer.binned;
    for (; decided && i + 32 <= run.count; i += 32) {
      fetch_ahead(run, i, 32);
      decided = pack_by_bins(run.x + i, scale(), packer, packed + i / 2);
    }
    if (decided) break;
    if (packer.binned) i -= 32;
    fetch_ahead(run, i, 32);
    pack_by_search(run.x + i, scale(), packer, packed + i / 2);
    i += 32;
  }
  return i;
}

#else

struct Packer {
  explicit Packer(const Codes&) {}
};

int64_t pack_codes(const Run&, const Packer&, uint8_t*) {
  return 0;
}

#endif

}  // namespace

bool quant4_quantize(const Quant4Input& input, uint8_t* packed, float* absmax) {
  const Codes codes = codes_of_type(input.type);
  const Packer packer(codes);
  const int64_t element = input.weight_type == GRAFT_F32 ? 4 : 2;
  const unsigned char* const bytes = static_cast<const unsigned char*>(input.weight);
  const int block_shift = __builtin_ctz(static_cast<unsigned>(input.block_size));
  const int64_t run_length = larger_of(kRun, input.block_size);
  float widened[kLargestBlock], inverse[kRun / kLeastBlock];
  for (int64_t first = 0; first < input.count; first += run_length) {
    const int64_t length = smaller_of(run_length, input.count - first);
    const float* x = widened;
    if (input.weight_type == GRAFT_F32) {
      x = static_cast<const float*>(input.weight) + first;
    } else {
      widen(bytes + first * element, input.weight_type, length, widened);
    }
    uint32_t magnitude[kRun / kLeastBlock], largest = 0;
    const int64_t blocks = (length + input.block_size - 1) / input.block_size;
    int64_t block = magnitudes_of_blocks(x, length, input.block_size, magnitude);
    for (; block < blocks; ++block) {
      const int64_t begin = block * input.block_size;
      magnitude[block] =
          largest_magnitude_bits(x + begin, smaller_of(input.block_size, length - begin));
    }
    for (block = 0; block < blocks; ++block) {
      largest = magnitude[block] > largest ? magnitude[block] : largest;
      const float value = float_of(magnitude[block]);
      absmax[block] = value;
      inverse[block] = 1.0f / (value > kNf4SmallestAbsmax ? value : kNf4SmallestAbsmax);
    }
    if (largest >= 0x7f800000u) return false;
    absmax += blocks;
    // Between the codes of this run there is time to fetch the next.
    const Run run{x, length, inverse, block_shift, bytes + first * element, element, run_length};
    uint8_t* const to = packed + first / 2;
    for (int64_t i = pack_codes(run, packer, to); i < length; i += 2) {
      const uint8_t high = code_of(clamp_to_one(x[i] * run.inverse_at(i)), codes);
      // The nibble after an odd end holds the code of zero.
      const float low = i + 1 < length ? clamp_to_one(x[i + 1] * run.inverse_at(i + 1)) : 0.0f;
      to[i / 2] = static_cast<uint8_t>(high << 4 | code_of(low, codes));
    }
  }
  return true;
}

}  // namespace graft::kernels::GRAFT_ISA
