// PiSSA: A and B begin as the largest singular values of W, which keeps the rest (Principal
// Singular Values and Singular Vectors Adaptation, arXiv 2404.02948, section 3). On a base in 4
// bits the rest is quantized (QPiSSA, section 4): smaller numbers than W's, so less is lost.
#include "core/hash.h"
#include "train/model/init/initialisation.h"
#include "train/model/weights.h"

namespace graft::train {

void init_pissa(Linear& linear, const InitContext& context) {
  Lora& lora = linear.lora;
  const bool packed = linear.base.quantized();
  at::Tensor w = packed ? context.original(linear) : linear.base.dense;
  set_pair(linear, nearest_low_rank(w, lora.rank, context.iterations,
                                    {context.seed, xxh3_64(linear.name + ".pissa")}));
  subtract_pair(linear, w);
  if (packed) {
    linear.base = quantize_weight(w, linear.name);
    linear.base.changed = true;
    return;
  }
  lora.initial_a = lora.a.clone();
  lora.initial_b = lora.b.clone();
}

}  // namespace graft::train
