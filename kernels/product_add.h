// A matrix product that is added to an array of its own: a branch that joins what it came from
// without a pass over memory.
#pragma once

#include "kernels/product.h"

#ifdef __cplusplus
extern "C" {
#endif

// C = alpha * op(A) * op(B) + beta * D, else as graft_multiply, which is this with C for D.
//   product  its c is only written
//   d        [m, n] of c_type, ldd >= n from row to row; not read when beta is 0; must not overlap
//   c
// On the CPU and the emulated device the bits of graft_multiply with a C that held D; on a GPU
// these products have an algorithm of their own. Errors: as graft_multiply.
graft_status graft_multiply_add(const graft_product* product,
                                const void* d,
                                int64_t ldd,
                                graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
