// Matrix products on any device.
#pragma once

#include "kernels/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

// C = alpha * op(A) * op(B) + beta * C, row-major.
typedef struct graft_product {
  graft_transpose ta, tb;
  int64_t m, n, k;
  float alpha, beta;
  const void* a;  // op(A) is [m, k]: stored [m, k] for GRAFT_N, [k, m] for GRAFT_T
  int64_t lda;    // >= stored columns; likewise ldb and ldc
  const void* b;  // op(B) is [k, n]: stored [k, n] for GRAFT_N, [n, k] for GRAFT_T
  int64_t ldb;
  void* c;  // [m, n]; not read when beta is 0; must not overlap a or b
  int64_t ldc;
  graft_float_type type;    // of a and b: float32 or bfloat16
  graft_float_type c_type;  // float32, or `type`; sums are float32 in any case and rounded once
} graft_product;

// A row of C does not depend on the other rows, and the same call gives the same bits again.
//
// On the CPU the order of sums is that of graft_gemm_f32 and graft_gemm_bf16. The emulated device
// gives the CPU's bits. On a GPU the product is cuBLASLt's, found at run time: one of its
// algorithms is chosen at the first call for the types and the transposes and
//   ta GRAFT_N   for n and k, whatever m
//   ta GRAFT_T   for m and n, whatever k (sums over tokens)
// and kept. It is one that splits no sum between blocks. Pointers and strides in whole 16 bytes are
// the fast path and have an algorithm of their own.
//
// The first product of a stream on a GPU allocates 1 KiB there, which is kept: cuBLASLt counts
// tiles in it. Later calls of that stream allocate nothing and can be captured in a CUDA graph;
// such a graph counts in the memory of the stream that it was captured in, so the two must not run
// at once. cudaStreamPerThread counts as one stream: products in it come from one thread. Errors:
// GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE (also without libcublasLt),
// GRAFT_DEVICE_ERROR.
graft_status graft_multiply(const graft_product* product,
                            graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                            graft_stream stream GRAFT_DEFAULT(nullptr));

// `count` products one after another that add up in one C: the same m, n, c, ldc and c_type, and
// beta 1 from the second on where it is a sum. The bits of graft_multiply in turn; on the CPU,
// products of float32 go through memory once. Errors: as graft_multiply, and GRAFT_BAD_ARGUMENT for
// a C that differs.
graft_status graft_multiply_chain(const graft_product* products,
                                  int64_t count,
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
