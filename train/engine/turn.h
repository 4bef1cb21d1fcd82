// Queries and keys between their projection and attention: turn = rotation of the norm. Of either
// type of activations (internal to engine/).
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "train/engine/block.h"

namespace graft::train {

// Queries, or keys: `heads` heads of head_dim a token.
struct Turned {
  const Norm& norm;
  int64_t heads;
  graft_float_type type;
  void* projected;
  int64_t stride;  // values from token to token
  float* inv_rms;
  void* turned;  // where they go when they are normed, without gaps; else `projected` itself turns
};

void* turn(const Pass& pass, const LayerConfig& layer, const Turned& x);
// As `turn` left them: kept where they turned in place, else made again.
const void* turned_again(const Pass& pass, const LayerConfig& layer, const Turned& x);
// d: the gradient of the turned values, as they lie, overwritten. Gives the gradient of the
// projected ones: `unnormed` without gaps where they are normed, else d. The turned values are used
// up.
void* turn_backward(
    const Pass& pass, const LayerConfig& layer, const Turned& x, void* d, void* unnormed);

// The attention of the pass in block `index`, in rows of float32 without gaps.
graft_attention_shape attention_shape(const Pass& pass, size_t index);

}  // namespace graft::train
