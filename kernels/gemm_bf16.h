// Matrix products of bfloat16 operands with float32 sums on the CPU.
//
// An element is a sum of chains of 512 values of k. Within a chain, starting from 0, each pair
// (p, p + 1) adds its odd product first and then its even one, each sum rounded to float32; chains
// are added in order, the first to beta * C. The same bits for any number of threads, alignment and
// run, and for every instruction set as long as no product or sum is below 2^-126 (processors with
// bfloat16 instructions take those as zero). A row of C does not depend on the other rows.
// Scratch is kept per thread: two bytes for each value of A where it has to be converted, and
// 1 MiB.
#pragma once

#include "kernels/gemm.h"
#include "kernels/nf4.h"

#ifdef __cplusplus
extern "C" {
#endif

// 1 where the processor has instructions for it. Elsewhere it is made of float32 ones and no faster
// than graft_gemm_f32.
int graft_gemm_bf16_native(void);

// C = A * op(B) + beta * C, row-major.
//   a  [m, k], lda >= k; float32 is rounded to bfloat16 first (to nearest, ties to even)
//   b  bfloat16; op(B) is [k, n]: stored [k, n] for GRAFT_N, [n, k] for GRAFT_T
//   c  [m, n] float32, ldc >= n; not read when beta is 0; must not overlap a or b
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (a_type is not GRAFT_F32 or GRAFT_BF16).
graft_status graft_gemm_bf16(graft_transpose tb,
                             int64_t m,
                             int64_t n,
                             int64_t k,
                             const void* a,
                             graft_float_type a_type,
                             int64_t lda,
                             const uint16_t* b,
                             int64_t ldb,
                             float beta,
                             float* c,
                             int64_t ldc);

// The same with op(B) packed before, for weights that are used again and again: equal to the bit.
//   packed [graft_bf16_packed_values(n, k)]  n and k rounded up to 32 and 2
int64_t graft_bf16_packed_values(int64_t n, int64_t k);
graft_status graft_bf16_pack(
    graft_transpose tb, int64_t n, int64_t k, const uint16_t* b, int64_t ldb, uint16_t* packed);
graft_status graft_gemm_bf16_packed(int64_t m,
                                    int64_t n,
                                    int64_t k,
                                    const void* a,
                                    graft_float_type a_type,
                                    int64_t lda,
                                    const uint16_t* packed,
                                    float beta,
                                    float* c,
                                    int64_t ldc);

#ifdef __cplusplus
}
#endif
