// One AdamW step over many tensors with the norm and the clipping of their gradients, in launches
// that the host does not wait for.
#pragma once

#include "kernels/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

// One tensor of the step; no two arrays may overlap.
typedef struct graft_adamw_part {
  float* param;
  const float* grad;
  float *m, *v;
  int64_t count;
  float lr, weight_decay;  // instead of the options' own
  // A copy of the updated parameter for the products, or NULL: param, [count / copy_columns,
  // copy_columns], times copy_scale, rounded to copy_type, copy_stride from row to row.
  void* copy;
  graft_float_type copy_type;
  int64_t copy_columns;  // a divisor of count
  int64_t copy_stride;   // >= copy_columns
  float copy_scale;
} graft_adamw_part;

// Bytes of workspace; 0 for parts that the step would refuse.
size_t graft_adamw_parts_workspace_bytes(const graft_adamw_part* parts, int64_t part_count);

// norm = |grad_scale| * sqrt(sum of grad^2 over all parts); then graft_adamw_step for each part
// with the gradient's factor
//   grad_scale * max_norm / norm   when 0 < max_norm < norm
//   grad_scale                     otherwise
// When the norm is not finite no part and no copy is changed.
//   parts      on the host; read before the call returns
//   result [2] out, in the device's memory: the norm, and the factor (0 when nothing was changed)
//   workspace  at least graft_adamw_parts_workspace_bytes, 16-byte aligned, in the device's memory;
//              out: the sum of squares of each tile
// Squares are added in double: 16 lanes by index inside tiles of GRAFT_SQUARES_TILE of a tensor,
// lanes and then the tiles of all tensors in order; every device gives the same bits. On a GPU one
// launch for the sums, one for the norm and one for 192 tensors each. Errors: as graft_adamw_step,
// GRAFT_BAD_SHAPE for a short workspace, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_adamw_parts_step(const graft_adamw_part* parts,
                                    int64_t part_count,
                                    const graft_adamw* options,
                                    float max_norm,
                                    float* result,
                                    void* workspace,
                                    size_t workspace_bytes,
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
