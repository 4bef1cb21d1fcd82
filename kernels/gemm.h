// Single-precision matrix product on the CPU.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_transpose { GRAFT_N = 0, GRAFT_T = 1 } graft_transpose;

// C = alpha * op(A) * op(B) + beta * C, row-major.
//   a  op(A) is [m, k]: stored [m, k] for GRAFT_N, [k, m] for GRAFT_T; lda >= stored columns
//   b  op(B) is [k, n]: stored [k, n] for GRAFT_N, [n, k] for GRAFT_T; ldb >= stored columns
//   c  [m, n], ldc >= n; not read when beta is 0; must not overlap a or b
// Any m, n, k >= 0. k = 0 or alpha = 0 gives beta * C. Sums are float32 with fused multiply-add.
// The result is the same to the bit for any number of OpenMP threads, any alignment of the pointers
// and any run on one machine; another instruction set may sum in another order. A row of C does
// not depend on the other rows: rows [i, j) computed by a call of their own are equal to the bit.
// Keeps compiled products of oneDNN per thread (bounded). Not to be called from inside a parallel
// region. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_DEVICE_ERROR.
graft_status graft_gemm_f32(graft_transpose ta,
                            graft_transpose tb,
                            int64_t m,
                            int64_t n,
                            int64_t k,
                            float alpha,
                            const float* a,
                            int64_t lda,
                            const float* b,
                            int64_t ldb,
                            float beta,
                            float* c,
                            int64_t ldc);

#ifdef __cplusplus
}
#endif
