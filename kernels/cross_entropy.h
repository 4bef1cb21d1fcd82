// Softmax cross entropy over rows of logits, loss and gradient in one pass over memory.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_ce_mode GRAFT_ANY_INT {
  GRAFT_CE_LOSS_ONLY = 0,     // logits are left as they are
  GRAFT_CE_WITH_GRADIENT = 1  // logits are replaced by the gradient
} graft_ce_mode;

// row_loss = -log softmax(y)[label], y = logits, or softcap * tanh(logits / softcap); with a
// gradient, logits <- (softmax(y) - onehot(label)) * (weight[row] * scale) * dy / dlogits.
//   logits      [rows, vocab] of `type`; in, and out with GRAFT_CE_WITH_GRADIENT
//   labels      [rows]        in 0..vocab-1; rows to be ignored are dropped by the caller before
//   weight      [rows]        or NULL for 1; a weight of 0 gives a gradient of exactly 0
//   scale                     usually 1 / (trained tokens of the whole step)
//   softcap                   Gemma 2's cap of the final logits; 0 for none
//   row_loss    [rows]        out, unweighted
//   row_correct [rows]        out, 1 where the first largest logit is the label; may be NULL
// A row with a NaN logit gives a NaN loss. Exponentials are added in float32 in 16
// lanes over 512 logits, those sums in double in order. All labels are checked before anything is
// written. A device cannot say no without being waited for: there a label out of range gives a NaN
// loss and a zero gradient. Errors: GRAFT_BAD_SHAPE (vocab < 1), GRAFT_BAD_ARGUMENT (label out of
// range, unknown mode), GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_cross_entropy(void* logits,
                                 const int32_t* labels,
                                 const float* weight,
                                 int64_t rows,
                                 int64_t vocab,
                                 float scale,
                                 float* row_loss,
                                 uint8_t* row_correct,
                                 graft_ce_mode mode,
                                 graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                 float softcap GRAFT_DEFAULT(0),
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

// The head's linear layer, its loss and the gradient of its input in one pass, for a head that is
// not trained: nothing of size tokens x vocab is stored, and nothing is computed twice.
typedef struct graft_head {
  const float* x;         // [tokens, dim] input of the head
  const float* w;         // [vocab, dim]
  const int32_t* labels;  // [tokens] in 0..vocab-1, or GRAFT_IGNORED
  const float* weight;    // [tokens] or NULL for 1
  int64_t tokens, dim, vocab;
  float scale;         // of the gradient: usually 1 / (trained tokens of the whole step)
  int64_t chunk_rows;  // rows of logits held at a time; no result depends on it
} graft_head;

// The label of a token that has no loss (that of PyTorch).
#define GRAFT_IGNORED (-100)

typedef struct graft_head_result {
  double loss_sum;  // of weight * row loss over the trained tokens, added in order
  double weight_sum;
  int64_t trained;  // tokens with a label
  int64_t correct;  // of them, those whose first largest logit is the label
} graft_head_result;

// Bytes of workspace; 0 for sizes that graft_head_loss would refuse.
size_t graft_head_workspace_bytes(int64_t dim, int64_t vocab, int64_t chunk_rows);

// logits = x W^T; row loss and gradient as graft_cross_entropy; dx = gradient W.
//   row_loss  [tokens] out, unweighted, 0 for an ignored token; may be NULL
//   dx        [tokens, dim] out, 0 for an ignored token; NULL: loss only
//   workspace at least graft_head_workspace_bytes(dim, vocab, chunk_rows), 64-byte aligned
// Ignored tokens are dropped before the first product and cost nothing. Equal to the bit for every
// chunk_rows, number of threads and instruction set. All labels are checked before anything is
// written. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (a label out of range).
graft_status graft_head_loss(const graft_head* head,
                             float* row_loss,
                             float* dx,
                             graft_head_result* result,
                             void* workspace,
                             size_t workspace_bytes);

// The same on any device and in either type, for a caller that knows the labels on the host and
// compacts them: only tokens with a loss are named. All pointers lie in the device's memory.
typedef struct graft_head_rows {
  const void* x;          // [tokens, dim] of `type`
  const void* w;          // [vocab, dim] of `type`
  const int32_t* rows;    // [count] the tokens, each once, 0..tokens-1
  const int32_t* labels;  // [count] in 0..vocab-1
  const float* weight;    // [count] or NULL for 1
  int64_t count, tokens, dim, vocab;
  float scale;                   // of the gradient
  float softcap;                 // of the logits; 0 for none
  int64_t chunk_rows;            // rows of logits held at a time
  graft_float_type type;         // of x, w and dx; the gradient of the logits has it as well
  graft_float_type logits_type;  // float32, or `type`: half of the memory, and logits rounded to it
} graft_head_rows;

// Bytes of workspace; 0 for sizes and types that graft_head_rows_loss would refuse.
size_t graft_head_rows_workspace_bytes(const graft_head_rows* head);

// logits = x W^T; row loss and gradient as graft_cross_entropy; dx = gradient W; all products as
// graft_multiply.
//   row_loss     [count] out, unweighted
//   row_correct  [count] out, as graft_cross_entropy
//   dx           [tokens, dim] rows of the named tokens are written, the others left alone; NULL:
//                loss only
//   sums         [3] added to: weight * row_loss, weight and row_correct, in 256 lanes by index,
//                lanes pairwise (j with j + 128, ..., j + 1), in double; may be NULL
//   workspace    at least graft_head_rows_workspace_bytes, 64-byte aligned
// The caller waits for nothing: the sums of all micro-batches are read once a step. On the CPU rows
// and labels are checked before anything is written; on a device a token out of range gives a NaN
// loss and is not written to dx, a label out of range a NaN loss. Errors: GRAFT_BAD_SHAPE,
// GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_head_rows_loss(const graft_head_rows* head,
                                  float* row_loss,
                                  uint8_t* row_correct,
                                  void* dx,
                                  double* sums,
                                  void* workspace,
                                  size_t workspace_bytes,
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
