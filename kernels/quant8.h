// 8-bit blockwise quantization on the CPU (8-bit Optimizers, arXiv 2110.02861): blocks of a flat
// array share one absmax, and a value is the index of the nearest entry of a map of 256.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_map8 GRAFT_ANY_INT {
  // bitsandbytes' dynamic maps (nf4_tables.h has their values).
  GRAFT_MAP_DYNAMIC_SIGNED = 0,
  GRAFT_MAP_DYNAMIC_UNSIGNED = 1,
  // Values that are not negative: 0, then 254 steps of equal ratio, 2^(-40 (254 - i) / 253) for
  // index i from 1. Index 255 repeats 1 and is never chosen. Graft's own.
  GRAFT_MAP_LOG2 = 2
} graft_map8;

// The 256 ascending values of a map. Static storage; NULL for a value that is no map.
const float* graft_map8_values(graft_map8 map);

// codes[i] = index of the value nearest to x[i] * (1 / absmax), by float32 midpoints, a tie to the
// lower index.
//   x [count]                       finite; not negative for the unsigned maps (a negative value is
//                                   taken as 0)
//   block_size                      a power of two, 32..4096
//   codes [count]                   out
//   absmax [ceil(count / block)]    out; max |x| of the block
// 1 / absmax is taken as 1 / max(absmax, 1e-38). On GRAFT_NOT_FINITE the outputs hold no meaning.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (unknown map), GRAFT_NOT_FINITE.
graft_status graft_quant8_quantize(
    graft_map8 map, const float* x, int64_t count, int block_size, uint8_t* codes, float* absmax);

// out[i] = value[codes[i]] * absmax[i / block_size]. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_quant8_decode(graft_map8 map,
                                 const uint8_t* codes,
                                 const float* absmax,
                                 int64_t count,
                                 int block_size,
                                 float* out);

#ifdef __cplusplus
}
#endif
