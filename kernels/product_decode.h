// A matrix product with weights in 4 bits inside B, which are decoded piece by piece into the
// caches and never written to memory.
#pragma once

#include "kernels/decode_rows.h"
#include "kernels/product.h"

#ifdef __cplusplus
extern "C" {
#endif

// graft_multiply, or with a d graft_multiply_add, of bfloat16 operands on the CPU, with the bits of
// a B into whose rows graft_nf4_decode_rows_bf16 had decoded the targets before.
//   targets [target_count]  0..GRAFT_DECODE_TARGETS; the out of each is where a row of b begins,
//                           its row_stride is ldb, it has no tail; no two share a row. What lies
//                           there in b is neither read nor written; the rest of b is read as ever
//   d                       NULL: C is added to itself
// Scratch is kept per thread: 1 MiB. Errors: as graft_multiply_add and graft_nf4_decode_rows, and
// GRAFT_BAD_ARGUMENT for other types, GRAFT_BAD_SHAPE for a target that lies elsewhere.
graft_status graft_multiply_decoding(const graft_product* product,
                                     const void* d,
                                     int64_t ldd,
                                     const graft_decode_target* targets,
                                     int64_t target_count);

#ifdef __cplusplus
}
#endif
