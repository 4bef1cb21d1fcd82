// 4-bit types on ranges of blocks, from codes: one permutation of the 16 values. Every path rounds
// in the same places, so they agree to the bit. To codes: quant4.cpp.
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// A streamed store needs the alignment of its vector.
#if defined(__AVX512F__)
GRAFT_LANES_INLINE void store_vector(void* out, __m512i v, bool streamed) {
  if (streamed) {
    _mm512_stream_si512(static_cast<__m512i*>(out), v);
  } else {
    _mm512_storeu_si512(out, v);
  }
}
#elif defined(__AVX2__)
GRAFT_LANES_INLINE void store_vector(void* out, __m256i v, bool streamed) {
  if (streamed) {
    _mm256_stream_si256(static_cast<__m256i*>(out), v);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(out), v);
  }
}
#endif

struct StoreF32 {
  using Type = float;
  static Type one(float x) { return x; }
#if defined(__AVX512F__)
  static void sixteen(Type* out, __m512 v, bool streamed) {
    store_vector(out, _mm512_castps_si512(v), streamed);
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v, bool streamed) {
    store_vector(out, _mm256_castps_si256(v), streamed);
  }
#endif
};

struct StoreBf16 {
  using Type = uint16_t;
  static Type one(float x) { return to_bf16(x); }
#if defined(__AVX512F__)
  static void sixteen(Type* out, __m512 v, bool = false) {
    // The bf16 instruction would flush denormals; integers round all values alike.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v, bool = false) {
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
  static void sixteen(Type* out, __m512 v, bool = false) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#elif defined(__AVX2__)
  static void eight(Type* out, __m256 v, bool = false) {
    for (int i = 0; i < 8; ++i) out[i] = one(reinterpret_cast<const float*>(&v)[i]);
  }
#endif
};

// A block has 16 values: they are rounded once and then looked up.
#if defined(__AVX512F__)

template <class Store>
int64_t decode_halves(const uint8_t* packed,
                      int64_t count,
                      const float* values,
                      float absmax,
                      uint16_t* out,
                      bool streamed) {
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
    store_vector(out + i, _mm512_permutexvar_epi16(index, table), streamed);
  }
  return i;
}

#elif defined(__AVX2__)

// Low and high bytes are looked up apart.
template <class Store>
int64_t decode_halves(const uint8_t* packed,
                      int64_t count,
                      const float* values,
                      float absmax,
                      uint16_t* out,
                      bool streamed) {
  alignas(32) uint16_t rounded[16];
  const __m256 scale = _mm256_set1_ps(absmax);
  Store::eight(rounded, _mm256_mul_ps(_mm256_loadu_ps(values), scale));
  Store::eight(rounded + 8, _mm256_mul_ps(_mm256_loadu_ps(values + 8), scale));
  const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(rounded));
  const __m128i second = _mm_load_si128(reinterpret_cast<const __m128i*>(rounded + 8));
  const __m128i byte = _mm_set1_epi16(0xff);
  const __m256i low_bytes = _mm256_broadcastsi128_si256(
      _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte)));
  const __m256i high_bytes = _mm256_broadcastsi128_si256(
      _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8)));
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i words =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2)));
    // The first weight of a byte is its high nibble.
    const __m256i codes =
        _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(words, 4), _mm256_slli_epi16(words, 8)),
                         _mm256_set1_epi8(15));
    const __m256i low = _mm256_shuffle_epi8(low_bytes, codes);
    const __m256i high = _mm256_shuffle_epi8(high_bytes, codes);
    const __m256i even = _mm256_unpacklo_epi8(low, high);  // weights 0-7 and 16-23
    const __m256i odd = _mm256_unpackhi_epi8(low, high);
    store_vector(out + i, _mm256_permute2x128_si256(even, odd, 0x20), streamed);
    store_vector(out + i + 16, _mm256_permute2x128_si256(even, odd, 0x31), streamed);
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
                       typename Store::Type* out,
                       bool streamed) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (sizeof(typename Store::Type) == 2) {
    if (count >= 32) return decode_halves<Store>(packed, count, values, absmax, out, streamed);
  }
#endif
#if defined(__AVX512F__)
  const __m512 code = _mm512_loadu_ps(values), scale = _mm512_set1_ps(absmax);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2));
    const __m128i high = _mm_srli_epi16(bytes, 4);  // the permutation uses the low four bits only
    const __m512i index = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, bytes));
    Store::sixteen(out + i, _mm512_mul_ps(_mm512_permutexvar_ps(index, code), scale), streamed);
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
    Store::eight(out + i, _mm256_mul_ps(value, scale), streamed);
  }
  return i;
#else
  static_cast<void>(packed), static_cast<void>(count), static_cast<void>(values);
  static_cast<void>(absmax), static_cast<void>(out), static_cast<void>(streamed);
  return 0;
#endif
}

template <class Store>
void decode(const graft_nf4_weight& weight,
            int64_t begin,
            int64_t end,
            typename Store::Type* out,
            Stores stores) {
  const float* const values = weight.type == GRAFT_FP4 ? kFp4Code : kNf4Code;
  const auto code_at = [&](int64_t i) {
    return i % 2 == 0 ? weight.packed[i / 2] >> 4 : weight.packed[i / 2] & 15;
  };
  int64_t block = begin / weight.block_size;
  for (int64_t i = begin; i < end; ++block) {
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
      typename Store::Type* const to = out + (i - begin);
      const bool streamed =
          stores == Stores::kStreamed && reinterpret_cast<uintptr_t>(to) % 64 == 0;
      i += decode_vectors<Store>(weight.packed + i / 2, stop - i, values, absmax, to, streamed);
    }
    for (; i < stop; ++i) out[i - begin] = Store::one(values[code_at(i)] * absmax);
  }
#if defined(__AVX2__)
  if (stores == Stores::kStreamed) _mm_sfence();
#endif
}

}  // namespace

void quant4_decode_f32(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, float* out, Stores stores) {
  decode<StoreF32>(weight, begin, end, out, stores);
}
void quant4_decode_bf16(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores) {
  decode<StoreBf16>(weight, begin, end, out, stores);
}
void quant4_decode_f16(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores) {
  decode<StoreF16>(weight, begin, end, out, stores);
}

}  // namespace graft::kernels::GRAFT_ISA
