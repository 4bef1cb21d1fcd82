// Single-precision matrix product on the CPU.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_transpose GRAFT_ANY_INT { GRAFT_N = 0, GRAFT_T = 1 } graft_transpose;

// C = alpha * op(A) * op(B) + beta * C, row-major.
//   a  op(A) is [m, k]: stored [m, k] for GRAFT_N, [k, m] for GRAFT_T; lda >= stored columns
//   b  op(B) is [k, n]: stored [k, n] for GRAFT_N, [n, k] for GRAFT_T; ldb >= stored columns
//   c  [m, n], ldc >= n; not read when beta is 0; must not overlap a or b
// Any m, n, k >= 0. k = 0 or alpha = 0 gives beta * C.
// An element is a chain of fused multiply-adds over 256 values of k in order, times alpha, added
// chain by chain: the same bits for any number of threads, alignment, instruction set and run. A
// row of C does not depend on the other rows: rows [i, j) of a call of their own are equal to the
// bit. Scratch of up to 1.2 MiB is kept per thread. Inside a parallel region it runs on one thread.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
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
