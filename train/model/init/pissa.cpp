// PiSSA: A and B begin as the largest singular values of W, which keeps the rest (Principal
// Singular Values and Singular Vectors Adaptation, arXiv 2404.02948, section 3).
#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "kernels/gemm.h"
#include "train/engine/tensor.h"
#include "train/model/init/initialisation.h"
#include "train/model/init/low_rank.h"

namespace graft::train {

void init_pissa(Linear& linear, const InitContext& context) {
  Lora& lora = linear.lora;
  if (linear.base.quantized()) {
    fail(ExitCode::kUsage,
         "PiSSA changes the weights that it adapts, and " + linear.name + " is stored in 4 bits",
         "init_lora_weights", "set adapter: lora, or init_lora_weights: loftq");
  }
  const at::Tensor& w = linear.base.dense;
  const LowRank nearest = nearest_low_rank(w, lora.rank, context.iterations,
                                           {context.seed, xxh3_64(linear.name + ".pissa")});
  const double share = 1 / std::sqrt(static_cast<double>(lora.scale));
  lora.a.copy_(nearest.a.mul(share));
  lora.b.copy_(nearest.b.mul(share));
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, linear.out, linear.in, lora.rank, -lora.scale, f32(lora.b),
                       lora.rank, f32(lora.a), linear.in, 1, f32(w), linear.in));
  lora.initial_a = lora.a.clone();
  lora.initial_b = lora.b.clone();
}

}  // namespace graft::train
