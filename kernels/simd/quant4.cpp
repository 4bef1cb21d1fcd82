// 4-bit types on ranges of blocks. Codes are found by comparing with the midpoints, decoded by one
// permutation of the 16 values; every path rounds in the same places, so they agree to the bit.
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
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

// What differs between the types: midpoints of the ascending values, and the code of each place.
struct Codes {
  const float* midpoints;  // [15]
  const uint8_t* order;    // [16], or NULL where code = place
};

Codes codes_of_type(graft_quant4_type type) {
  return type == GRAFT_FP4 ? Codes{kFp4Midpoints.value, kFp4Order}
                           : Codes{kNf4Midpoints.value, nullptr};
}

float clamp_to_one(float x) {
  return x > 1.0f ? 1.0f : (x < -1.0f ? -1.0f : x);
}

uint8_t code_of(float scaled, const Codes& codes) {
  uint8_t place = 0;
  for (int i = 0; i < 15; ++i) place += scaled > codes.midpoints[i];
  return codes.order != nullptr ? codes.order[place] : place;
}

// Packs whole vectors of weights; gives how many weights it took.
#if defined(__AVX512F__)

constexpr uint8_t kIdentity[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

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

int64_t pack_codes(
    const float* x, int64_t count, float inverse, const Codes& codes, uint8_t* packed) {
  const __m512 midpoints = _mm512_maskz_loadu_ps(0x7fff, codes.midpoints);
  const __m512i order = _mm512_cvtepu8_epi32(_mm_loadu_si128(
      reinterpret_cast<const __m128i*>(codes.order != nullptr ? codes.order : kIdentity)));
  const __m512 one = _mm512_set1_ps(1.0f), minus_one = _mm512_set1_ps(-1.0f);
  const __m512 scale = _mm512_set1_ps(inverse);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 scaled =
        _mm512_min_ps(one, _mm512_max_ps(minus_one, _mm512_mul_ps(_mm512_loadu_ps(x + i), scale)));
    const __m512i code = _mm512_permutexvar_epi32(codes_of(scaled, midpoints), order);
    // A 64-bit lane holds the codes of a pair: low word first. high nibble = first code.
    const __m512i pair = _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
    const __m128i bytes = _mm512_cvtepi64_epi8(pair);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2), bytes);
  }
  return i;
}

#elif defined(__AVX2__)

int64_t pack_codes(
    const float* x, int64_t count, float inverse, const Codes& codes, uint8_t* packed) {
  const __m256 one = _mm256_set1_ps(1.0f), minus_one = _mm256_set1_ps(-1.0f);
  const __m256 scale = _mm256_set1_ps(inverse);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 scaled =
        _mm256_min_ps(one, _mm256_max_ps(minus_one, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale)));
    __m256i code = _mm256_setzero_si256();
    for (int m = 0; m < 15; ++m) {
      const __m256 above = _mm256_cmp_ps(scaled, _mm256_set1_ps(codes.midpoints[m]), _CMP_GT_OQ);
      code = _mm256_sub_epi32(code, _mm256_castps_si256(above));
    }
    if (codes.order != nullptr) {
      const __m256i order = _mm256_broadcastsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes.order)));
      // The three upper bytes of each lane look up code 0's place and are dropped below.
      code = _mm256_and_si256(_mm256_shuffle_epi8(order, code), _mm256_set1_epi32(15));
    }
    const __m256i pair = _mm256_or_si256(_mm256_slli_epi64(code, 4), _mm256_srli_epi64(code, 32));
    packed[i / 2] = static_cast<uint8_t>(_mm256_extract_epi8(pair, 0));
    packed[i / 2 + 1] = static_cast<uint8_t>(_mm256_extract_epi8(pair, 8));
    packed[i / 2 + 2] = static_cast<uint8_t>(_mm256_extract_epi8(pair, 16));
    packed[i / 2 + 3] = static_cast<uint8_t>(_mm256_extract_epi8(pair, 24));
  }
  return i;
}

#else

int64_t pack_codes(const float*, int64_t, float, const Codes&, uint8_t*) {
  return 0;
}

#endif

struct StoreF32 {
  using Type = float;
  static Type one(float x) { return x; }
#if defined(__AVX512F__)
  static void sixteen(Type* out, __m512 v) {
    _mm512_storeu_ps(out, v);
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v) {
    _mm256_storeu_ps(out, v);
  }
#endif
};

struct StoreBf16 {
  using Type = uint16_t;
  static Type one(float x) { return to_bf16(x); }
#if defined(__AVX512F__)
  static void sixteen(Type* out, __m512 v) {
    // The bf16 instruction would flush denormals; integers round all values alike.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i words = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(out),
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
#endif
};

struct StoreF16 {
  using Type = uint16_t;
  static Type one(float x) { return to_f16(x); }
#if defined(__AVX512F__)
  static void sixteen(Type* out, __m512 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v) {
    for (int i = 0; i < 8; ++i) out[i] = one(reinterpret_cast<const float*>(&v)[i]);
  }
#endif
};

#if defined(__AVX512F__)

// A block has 16 values: they are rounded once and then looked up, 32 weights a permutation.
template <class Store>
int64_t decode_halves(
    const uint8_t* packed, int64_t count, const float* values, float absmax, uint16_t* out) {
  alignas(64) uint16_t rounded[16];
  Store::sixteen(rounded, _mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(absmax)));
  // Twice the table: an index uses five bits, and the fifth is whatever lies above the nibble.
  const __m512i table =
      _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(rounded)));
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2)));
    const __m512i index =
        _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
  }
  return i;
}

#endif

// Elements from whole bytes with vectors; gives how many it wrote.
template <class Store>
int64_t decode_vectors(const uint8_t* packed,
                       int64_t count,
                       const float* values,
                       float absmax,
                       typename Store::Type* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(typename Store::Type) == 2) {
    if (count >= 32) return decode_halves<Store>(packed, count, values, absmax, out);
  }
  const __m512 code = _mm512_loadu_ps(values), scale = _mm512_set1_ps(absmax);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2));
    const __m128i high = _mm_srli_epi16(bytes, 4);  // the permutation uses the low four bits only
    const __m512i index = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, bytes));
    Store::sixteen(out + i, _mm512_mul_ps(_mm512_permutexvar_ps(index, code), scale));
  }
  return i;
#elif defined(__AVX2__)
  const __m256 low_codes = _mm256_loadu_ps(values), high_codes = _mm256_loadu_ps(values + 8);
  const __m256 scale = _mm256_set1_ps(absmax);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    int32_t word;
    __builtin_memcpy(&word, packed + i / 2, sizeof word);
    const __m128i bytes = _mm_cvtsi32_si128(word);
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi8(_mm_srli_epi16(bytes, 4), bytes), _mm_set1_epi8(15));
    const __m256i index = _mm256_cvtepu8_epi32(nibbles);
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // sign bit = code >= 8
    const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low_codes, index),
                                          _mm256_permutevar8x32_ps(high_codes, index), upper);
    Store::eight(out + i, _mm256_mul_ps(value, scale));
  }
  return i;
#else
  static_cast<void>(packed), static_cast<void>(count), static_cast<void>(values);
  static_cast<void>(absmax), static_cast<void>(out);
  return 0;
#endif
}

template <class Store>
void decode(const graft_nf4_weight& weight, int64_t begin, int64_t end, typename Store::Type* out) {
  const float* const values = weight.type == GRAFT_FP4 ? kFp4Code : kNf4Code;
  const auto code_at = [&](int64_t i) {
    return i % 2 == 0 ? weight.packed[i / 2] >> 4 : weight.packed[i / 2] & 15;
  };
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / weight.block_size;
    float absmax;
    if (weight.absmax != nullptr) {
      absmax = weight.absmax[block];
    } else {
      const float nested = weight.nested_absmax[block / GRAFT_NF4_NESTED_BLOCK];
      absmax = kDynamicMapSigned[weight.absmax8[block]] * nested + weight.offset;
    }
    const int64_t stop = smaller_of((block + 1) * weight.block_size, end);
    if (i % 2 != 0) {
      out[i - begin] = Store::one(values[code_at(i)] * absmax);
      ++i;
    }
    if (i < stop) {
      i +=
          decode_vectors<Store>(weight.packed + i / 2, stop - i, values, absmax, out + (i - begin));
    }
    for (; i < stop; ++i) out[i - begin] = Store::one(values[code_at(i)] * absmax);
  }
}

}  // namespace

bool quant4_quantize(const Quant4Input& input, uint8_t* packed, float* absmax) {
  const Codes codes = codes_of_type(input.type);
  const int64_t element = input.weight_type == GRAFT_F32 ? 4 : 2;
  const unsigned char* const bytes = static_cast<const unsigned char*>(input.weight);
  float widened[4096];  // the largest block
  for (int64_t first = 0; first < input.count; first += input.block_size) {
    const int64_t length = smaller_of(input.block_size, input.count - first);
    const float* x = widened;
    if (input.weight_type == GRAFT_F32) {
      x = static_cast<const float*>(input.weight) + first;
    } else {
      widen(bytes + first * element, input.weight_type, length, widened);
    }
    const uint32_t magnitude = largest_magnitude_bits(x, length);
    if (magnitude >= 0x7f800000u) return false;
    const float largest = float_of(magnitude);
    absmax[first / input.block_size] = largest;
    const float inverse = 1.0f / (largest > kNf4SmallestAbsmax ? largest : kNf4SmallestAbsmax);
    uint8_t* const to = packed + first / 2;
    for (int64_t i = pack_codes(x, length, inverse, codes, to); i < length; i += 2) {
      const uint8_t high = code_of(clamp_to_one(x[i] * inverse), codes);
      // The nibble after an odd end holds the code of zero.
      const float next = i + 1 < length ? clamp_to_one(x[i + 1] * inverse) : 0.0f;
      to[i / 2] = static_cast<uint8_t>(high << 4 | code_of(next, codes));
    }
  }
  return true;
}

void quant4_decode_f32(const graft_nf4_weight& weight, int64_t begin, int64_t end, float* out) {
  decode<StoreF32>(weight, begin, end, out);
}
void quant4_decode_bf16(const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out) {
  decode<StoreBf16>(weight, begin, end, out);
}
void quant4_decode_f16(const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out) {
  decode<StoreF16>(weight, begin, end, out);
}

}  // namespace graft::kernels::GRAFT_ISA
