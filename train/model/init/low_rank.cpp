#include "train/model/init/low_rank.h"

#include <algorithm>
#include <tuple>

#include <ATen/Parallel.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>

#include "kernels/gemm.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// More vectors than are asked for make the subspace more accurate.
constexpr int64_t kOversampling = 8;

// LAPACK on one thread: the order of its sums depends on their number.
class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// op(x) y, x as it is or transposed.
at::Tensor multiply(graft_transpose op, const at::Tensor& x, const at::Tensor& y) {
  const int64_t rows = op == GRAFT_N ? x.size(0) : x.size(1);
  const int64_t inner = y.size(0), columns = y.size(1);
  at::Tensor result = empty_f32({rows, columns});
  check(graft_gemm_f32(op, GRAFT_N, rows, columns, inner, 1, f32(x), x.size(1), f32(y), columns, 0,
                       f32(result), columns));
  return result;
}

at::Tensor orthonormal(const at::Tensor& x) {
  return std::get<0>(at::linalg_qr(x)).contiguous();
}

// Orthonormal columns that span nearly what w's largest singular vectors do.
at::Tensor range_of(const at::Tensor& w,
                    int64_t columns,
                    int64_t iterations,
                    const Philox& random) {
  at::Tensor start = empty_f32({w.size(1), columns});
  for (int64_t i = 0; i < start.numel(); ++i) {
    f32(start)[i] = static_cast<float>(random.normal(static_cast<uint64_t>(i)));
  }
  at::Tensor q = orthonormal(multiply(GRAFT_N, w, start));
  for (int64_t i = 0; i < iterations; ++i) {
    q = orthonormal(multiply(GRAFT_N, w, orthonormal(multiply(GRAFT_T, w, q))));
  }
  return q;
}

LowRank factors(const at::Tensor& u, const at::Tensor& s, const at::Tensor& vh, int64_t rank) {
  const at::Tensor root = s.narrow(0, 0, rank).sqrt();
  return {(vh.narrow(0, 0, rank).mul(root.unsqueeze(1))).contiguous(),
          u.narrow(1, 0, rank).mul(root.unsqueeze(0)).contiguous()};
}

}  // namespace

LowRank nearest_low_rank(const at::Tensor& w,
                         int64_t rank,
                         int64_t iterations,
                         const Philox& random) {
  const OneThread one;
  if (iterations == 0) {
    const auto [u, s, vh] = at::linalg_svd(w, /*full_matrices=*/false);
    return factors(u, s, vh, rank);
  }
  const int64_t columns = std::min(rank + kOversampling, std::min(w.size(0), w.size(1)));
  const at::Tensor q = range_of(w, columns, iterations, random);
  const auto [u, s, vh] = at::linalg_svd(multiply(GRAFT_T, q, w), /*full_matrices=*/false);
  return factors(multiply(GRAFT_N, q, u.contiguous()), s, vh, rank);
}

}  // namespace graft::train
