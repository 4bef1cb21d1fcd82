// Softmax cross entropy over rows of logits, loss and gradient in one pass over memory.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_ce_mode {
  GRAFT_CE_LOSS_ONLY = 0,     // logits are left as they are
  GRAFT_CE_WITH_GRADIENT = 1  // logits are replaced by the gradient
} graft_ce_mode;

// row_loss = -log softmax(logits)[label]; with a gradient,
// logits <- (softmax(logits) - onehot(label)) * (weight[row] * scale).
//   logits      [rows, vocab] in, and out with GRAFT_CE_WITH_GRADIENT
//   labels      [rows]        in 0..vocab-1; rows to be ignored are dropped by the caller before
//   weight      [rows]        or NULL for 1; a weight of 0 gives a gradient of exactly 0
//   scale                     usually 1 / (trained tokens of the whole step)
//   row_loss    [rows]        out, unweighted
//   row_correct [rows]        out, 1 where the first largest logit is the label; may be NULL
// A row with a NaN logit gives a NaN loss. Exponentials are added in float32 in 16
// lanes over 512 logits, those sums in double in order. All labels are checked before anything is
// written. A device cannot say no without being waited for: there a label out of range gives a NaN
// loss and a zero gradient. Errors: GRAFT_BAD_SHAPE (vocab < 1), GRAFT_BAD_ARGUMENT (label out of
// range, unknown mode), GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_cross_entropy(float* logits,
                                 const int32_t* labels,
                                 const float* weight,
                                 int64_t rows,
                                 int64_t vocab,
                                 float scale,
                                 float* row_loss,
                                 uint8_t* row_correct,
                                 graft_ce_mode mode,
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
