// The matrix of a given rank nearest to another one, as two factors.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "core/hash.h"

namespace graft::train {

struct LowRank {
  at::Tensor a;  // [rank, in]  sqrt(S) V^T
  at::Tensor b;  // [out, rank]  U sqrt(S)
};

// Of w [out, in] = U S V^T, the `rank` largest singular values. iterations 0: the exact SVD, whose
// time grows with out * in * min(out, in). Else subspace iteration from random vectors (Halko,
// Martinsson, Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1), a few products with w.
// The same values for any number of threads.
LowRank nearest_low_rank(const at::Tensor& w,
                         int64_t rank,
                         int64_t iterations,
                         const Philox& random);

}  // namespace graft::train
