// LoftQ: A and B begin as the nearest pair to what quantization took from W (LoRA-Fine-Tuning-Aware
// Quantization, arXiv 2310.08659, algorithm 1):
//   Q_t = quantize(W - scale * B_{t-1} A_{t-1}),  A_t, B_t nearest to W - Q_t,  t = 1..T
// With T = 1 the base is the usual NF4. PEFT leaves the scale out, which is the same at alpha = r.
#include "core/hash.h"
#include "train/model/init/initialisation.h"
#include "train/model/weights.h"

namespace graft::train {

void init_loftq(Linear& linear, const InitContext& context) {
  const at::Tensor w = context.original(linear);
  for (int64_t iter = 0; iter < context.loftq_iter; ++iter) {
    if (iter > 0) {
      at::Tensor rest = w.clone();
      subtract_pair(linear, rest);
      linear.base = quantize_weight(rest, linear.name);
      linear.base.changed = true;
    }
    set_pair(linear,
             nearest_low_rank(w.sub(weight_of(linear)), linear.lora.rank, context.iterations,
                              {context.seed, xxh3_64(linear.name + ".loftq")}));
  }
}

}  // namespace graft::train
