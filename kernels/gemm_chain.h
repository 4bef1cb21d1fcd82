// Float32 products that add up in one C (internal).
#pragma once

#include "kernels/product.h"

namespace graft::kernels {

// The products one after another, each checked, with float32 operands, the same m, n, c and ldc. A
// task runs all of them on its part of C while that is in its cache: the bits of calls in turn.
void gemm_f32_chain(const graft_product* products, int64_t count);

}  // namespace graft::kernels
