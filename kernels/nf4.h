// 4-bit weights in the layout of bitsandbytes: NormalFloat-4 (QLoRA, arXiv 2305.14314, section 3
// and appendix E) and FP4, their codes, and quantize, compress and decode on every device.
//
// A weight is a flat array; block b covers elements [b * block_size, (b + 1) * block_size), the
// last one may be short, and rows of a matrix need not be multiples of the block. Two codes a byte,
// the first element in the high nibble; an odd count ends in a low nibble of zero's code.
// With nested ("double") quantization the blocks' absmax values are themselves 8-bit codes.
// Every function is exact: CPU paths, emulated and real CUDA agree to the bit.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Blocks of absmax that share one nested_absmax.
#define GRAFT_NF4_NESTED_BLOCK 256

typedef enum graft_quant4_type GRAFT_ANY_INT { GRAFT_NF4 = 0, GRAFT_FP4 = 1 } graft_quant4_type;

// The 16 values of a type by code; NF4's ascend from -1 to 1 with 0 at index 7. Static storage;
// NULL for a value that is no type.
const float* graft_quant4_codebook(graft_quant4_type type);
const float* graft_nf4_codebook(void);

// The 256 values of the signed 8-bit dynamic map, ascending; index 127 is 0. Static storage.
const float* graft_dynamic_map_signed(void);

// ceil(count / 2), and ceil(count / block_size); 0 for a count or block size below 1.
int64_t graft_nf4_packed_bytes(int64_t count);
int64_t graft_nf4_block_count(int64_t count, int block_size);

// Packs `count` float32 weights to NF4.
//   weight [count]                     finite
//   block_size                         a power of two, 32..4096
//   packed [graft_nf4_packed_bytes]    out; must not alias weight
//   absmax [graft_nf4_block_count]     out; max |w| of the block, 0 for an all-zero block
// code = nearest to w * (1 / absmax) by the float32 midpoints of neighbouring values; a tie goes to
// the lower code; 1 / absmax is taken as 1 / max(absmax, 1e-38) and the product clamped to [-1, 1].
// On GRAFT_NOT_FINITE the outputs hold no meaning. On GRAFT_CUDA the call waits for the stream, as
// it has to read that verdict. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NOT_FINITE,
// GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_nf4_quantize(const float* weight,
                                int64_t count,
                                int block_size,
                                uint8_t* packed,
                                float* absmax,
                                graft_device device,
                                graft_stream stream);

// The same for either 4-bit type and weights of any floating type, which are widened exactly.
// FP4 takes the codes in the order of bitsandbytes' CPU backend (nf4_tables.h). Errors: as
// graft_nf4_quantize, GRAFT_BAD_ARGUMENT for an unknown type.
graft_status graft_quant4_quantize(graft_quant4_type type,
                                   graft_float_type weight_type,
                                   const void* weight,
                                   int64_t count,
                                   int block_size,
                                   uint8_t* packed,
                                   float* absmax,
                                   graft_device device,
                                   graft_stream stream);

// Nested quantization of absmax.
//   absmax        [blocks]              finite, as graft_nf4_quantize gives it
//   absmax8       [blocks]              out
//   nested_absmax [ceil(blocks / 256)]  out
//   offset        one float, out, in the device's memory
// offset = mean(absmax) in a defined order: 256 lanes in double, lane j adds absmax[j],
// absmax[j + 256], ... in order; then lanes are added pairwise, j with j + 128, j + 64, ... j + 1;
// the sum is divided by `blocks` in double and rounded once. t = absmax - offset;
// nested_absmax = max |t| of 256; absmax8 = index of the dynamic map's value nearest to
// t * (1 / nested_absmax) by float32 midpoints, a tie to the lower index; 127 when nested_absmax is
// 0. bitsandbytes' CUDA build agrees up to the order of its mean; its CPU build does not search for
// the nearest value. Errors: as graft_nf4_quantize.
graft_status graft_nf4_compress_absmax(const float* absmax,
                                       int64_t blocks,
                                       uint8_t* absmax8,
                                       float* nested_absmax,
                                       float* offset,
                                       graft_device device,
                                       graft_stream stream);

// A packed weight in memory of the device; borrowed for the call.
typedef struct graft_nf4_weight {
  const uint8_t* packed;       // [graft_nf4_packed_bytes(count)]
  const float* absmax;         // [blocks], or NULL when nested
  const uint8_t* absmax8;      // [blocks] when nested, else NULL
  const float* nested_absmax;  // [ceil(blocks / 256)] when nested, else NULL
  float offset;                // when nested
  int64_t count;
  int block_size;
  graft_quant4_type type
#ifdef __cplusplus
      = GRAFT_NF4
#endif
      ;
} graft_nf4_weight;

// out[i] = codebook[code i] * absmax[i / block_size], in float32, rounded once more for the 16-bit
// types (to nearest, ties to even). When nested, absmax = map[absmax8] * nested_absmax + offset,
// the product rounded before the sum.
//   out [count]  float32, or bfloat16 / IEEE half as their 16 bits
// No allocation; one launch on a GPU, not waited for. Errors:
// GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (both or neither of absmax and absmax8, unknown type),
// GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_nf4_decode(const graft_nf4_weight* weight,
                              float* out,
                              graft_device device,
                              graft_stream stream);
graft_status graft_nf4_decode_bf16(const graft_nf4_weight* weight,
                                   uint16_t* out,
                                   graft_device device,
                                   graft_stream stream);
graft_status graft_nf4_decode_f16(const graft_nf4_weight* weight,
                                  uint16_t* out,
                                  graft_device device,
                                  graft_stream stream);

#ifdef __cplusplus
}
#endif
