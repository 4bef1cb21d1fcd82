// LoftQ: A and B begin as the nearest pair to what quantization took from W (LoRA-Fine-Tuning-Aware
// Quantization, arXiv 2310.08659, algorithm 1 with T = 1, so that the base is the usual NF4).
#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "train/engine/tensor.h"
#include "train/model/init/initialisation.h"
#include "train/model/init/low_rank.h"

namespace graft::train {

void init_loftq(Linear& linear, const InitContext& context) {
  Lora& lora = linear.lora;
  if (!linear.base.quantized()) {
    fail(ExitCode::kUsage,
         "LoftQ makes up for quantization, and " + linear.name + " is in full precision",
         "init_lora_weights", "set adapter: qlora, or init_lora_weights: pissa");
  }
  at::Tensor lost = context.original(linear);
  lost.sub_(weight_of(linear));
  const LowRank nearest = nearest_low_rank(lost, lora.rank, context.iterations,
                                           {context.seed, xxh3_64(linear.name + ".loftq")});
  const double share = 1 / std::sqrt(static_cast<double>(lora.scale));
  lora.a.copy_(nearest.a.mul(share));
  lora.b.copy_(nearest.b.mul(share));
}

}  // namespace graft::train
