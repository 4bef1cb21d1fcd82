// Every buffer of a decoder, declared in one place: what each holds, how large it is, and in which
// phases it is in use (internal to engine/).
//
// Shape letters: T tokens of the micro-batch, D hidden size, F intermediate size, H query heads,
// G key/value heads, E head size, V vocabulary; N experts, M experts of a token, R = T M sorted
// rows (R = T without experts).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "train/engine/arena.h"
#include "train/engine/flash.h"
#include "train/engine/plan.h"
#include "train/engine/rotation.h"
#include "train/model/model.h"

namespace graft::train {

// Of a half f of a block, whose input is x and whose output joins the residual stream.
struct HalfState {
  float* inv_rms = nullptr;         // [T] of the norm of x
  float* branch = nullptr;          // [T, D] f's result where it is normed
  float* branch_inv_rms = nullptr;  // [T]
};

// Of a narrow model (model.h), in the place of what is float32 else. Behind each row of what
// linears read lies their low-rank product u, and behind each gradient of what they gave, du: of as
// many values as the ranks of the group's linears add up to (r).
struct NarrowAttention {
  uint16_t* x = nullptr;    // [T, D + r of q, k, v] the input, normed
  uint16_t* qkv = nullptr;  // [T, H E + 2 G E + r]: q, k and v side by side, as their gradients
  uint16_t* attended = nullptr;  // [T, H E + r of o]
};
struct NarrowMlp {
  uint16_t* x = nullptr;        // [T, D + r of gate, up] the input, normed
  uint16_t* inner = nullptr;    // [T, 2 F + r]: gate and up; backward they become their gradients
  uint16_t* product = nullptr;  // [T, F + r of down] activation(gate) * up
  uint16_t* u_down = nullptr;   // [T, r of down], of a block that makes `product` again without it
};
struct NarrowScratch {
  uint16_t* dy = nullptr;     // [T, D + r] the gradient of what joins the stream
  uint16_t* d_qkv = nullptr;  // as qkv
  // Where queries are normed, without gaps: normed and rotated, their gradients, and before the
  // norm.
  uint16_t *q = nullptr, *k = nullptr;
  uint16_t *d_q = nullptr, *d_k = nullptr;
  uint16_t *d_q_unnormed = nullptr, *d_k_unnormed = nullptr;
  uint16_t* d_attended = nullptr;  // as attended
  uint16_t* d_product = nullptr;   // [T, F]
};

struct AttentionState {
  HalfState half;
  NarrowAttention narrow;
  float* q = nullptr;  // [T, H E] as projected where queries are normed, else rotated
  float* k = nullptr;  // [T, G E] likewise
  float* v = nullptr;  // [T, G E]
  float* q_inv_rms = nullptr;
  float* k_inv_rms = nullptr;
  float* attended = nullptr;     // [T, H E]
  float* lse = nullptr;          // [T, H]
  std::vector<float*> kept_qkv;  // [T, kept_width] of each linear; nullptr without an adapter
  float* kept_o = nullptr;
};

// What the host must know of the experts' sorted rows, in its memory. Of a device with memory of
// its own these are copies, and the step waits for it.
struct SortedRows {
  int32_t* offsets = nullptr;      // [N + 1]
  int32_t* row_pair = nullptr;     // [R]
  int64_t* token_index = nullptr;  // [R]
  int32_t* row = nullptr;          // [R] packed rows
};

struct MlpState {
  HalfState half;
  NarrowMlp narrow;
  float* gate = nullptr;        // [R F]; backward it becomes its own gradient
  float* up = nullptr;          // [R F]; likewise
  std::vector<float*> kept_in;  // [R, kept_width] of each linear, the experts' one after another
  float* kept_down = nullptr;
  // With experts (kernels/moe.h):
  float* kept_router = nullptr;    // [T, kept_width]
  float* probabilities = nullptr;  // [T, N]
  float* weight = nullptr;         // [T, M]
  int32_t* expert = nullptr;       // [T, M]
  int32_t* offsets = nullptr;      // [N + 1]
  int32_t* row_pair = nullptr;     // [R]
  int32_t* pair_row = nullptr;     // [R]
  int64_t* token_index = nullptr;  // [R] of the rows' tokens in the whole step
  SortedRows sorted;
};

// What a half of a block uses while it runs.
struct Scratch {
  NarrowScratch narrow;
  std::byte* decoded = nullptr;  // the largest weight in 4 bits
  // Operands of products with bfloat16 weights: x [R, largest in], backward also dy [R, largest
  // part], and with DoRA and dropout the dropped x.
  uint16_t* rounded = nullptr;
  uint16_t* rounded_dropped = nullptr;
  float* dropped = nullptr;   // [R, largest in]; with dropout
  float* low_rank = nullptr;  // [R, largest rank]; backward
  float* dora = nullptr;      // [R, largest out] of the linears with DoRA; backward
  float* normed = nullptr;    // [T, D]; of a narrow model only where outputs are normed

  float* q = nullptr;  // [T, H E] normed and rotated; where queries are normed
  float* k = nullptr;  // [T, G E]

  float* product = nullptr;   // [R F] activation(gate) * up
  float* weighed = nullptr;   // [R F] and times the router's weights; with experts
  float* rows = nullptr;      // [R, D] sorted rows of the experts' input
  float* out_rows = nullptr;  // [R, D] and of their output
  float* logits = nullptr;    // [T, N] of the router

  float* d_normed = nullptr;    // [T, D]
  float* d_branch = nullptr;    // [T, D] scaled by residual_scale
  float* d_unnormed = nullptr;  // [T, D] before the norm of a half's output
  float *d_q = nullptr, *d_k = nullptr, *d_v = nullptr;
  float *d_q_unnormed = nullptr, *d_k_unnormed = nullptr;
  float* d_attended = nullptr;  // [T, H E]
  std::byte* attention_workspace = nullptr;
  int64_t attention_workspace_bytes = 0;
  float* d_product = nullptr;  // [R F]
  float* d_weight = nullptr;   // [T, M]
};

// One direction of a block. Backward they are the forward's where a block keeps them, and others
// where it computes them again.
struct BlockBuffers {
  float* input = nullptr;   // [T, D]
  float* middle = nullptr;  // [T, D] residual stream between the halves
  AttentionState attention;
  MlpState mlp;
  Scratch attention_scratch;
  Scratch mlp_scratch;
};

struct HeadBuffers {
  float* rows = nullptr;    // [chunk, D] gathered residual rows
  float* normed = nullptr;  // [chunk, D]
  float* inv_rms = nullptr;
  float* logits = nullptr;  // [chunk, V]
  // [chunk, D], backward [chunk, V]: what the products with a head in bfloat16 take
  uint16_t* rounded = nullptr;
  float* d_rows = nullptr;  // [chunk, D]
  float* loss = nullptr;    // [T] of all supervised places
  uint8_t* correct = nullptr;
};

// The batch's arrays where kernels read them (batch.h). nullptr where that is the batch itself.
struct BatchBuffers {
  int32_t* ids = nullptr;
  int32_t* cu_seqlens = nullptr;
  int64_t* token_index = nullptr;
  int32_t* predicting = nullptr;
  int32_t* labels = nullptr;
  float* weights = nullptr;
};

// The rows of a batch on their way from the embedding, [T, D] of its type.
struct EmbeddingBuffers {
  std::byte* host_rows = nullptr;  // of an embedding on the host
  uint16_t* half_rows = nullptr;   // of one in bfloat16, where kernels read them
};

// The largest batch of a plan, for a library's attention.
FlashExtent flash_extent(const Model& model, const StepPlan& plan);

struct StepBuffers {
  StepBuffers(const Model& model, const StepPlan& plan, Buffers& buffers);

  BatchBuffers batch;
  Rotation rotation;
  EmbeddingBuffers embedding;
  EmbeddingBuffers embedding_again;  // where block 0 drops its input
  std::vector<BlockBuffers> forward;
  std::vector<BlockBuffers> forward_again;  // of blocks that run again; their input is backward's
  std::vector<BlockBuffers> backward;
  std::vector<Scratch> again;      // of an attention half that is computed again
  std::vector<float*> host_input;  // [T, D] of the blocks that send it to the host
  HeadBuffers head;
  float* residual = nullptr;    // [T, D] output of the last block
  float* d_residual = nullptr;  // [T, D]
};

}  // namespace graft::train
