// Attention of a GPU's packed documents in bfloat16 by a library: FlashAttention-2 (arXiv
// 2307.08691) of LibTorch, or cuDNN's. The libraries are loaded at run time, where they are: graft
// is built without them (docs/architecture.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/attention.h"
#include "train/engine/batch.h"
#include "train/engine/device.h"
#include "train/model/config.h"

namespace graft::train {

// The largest batch of a decoder.
struct FlashExtent {
  int64_t tokens = 0;   // of all documents
  int64_t longest = 0;  // of one of them
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t q_stride = 0;  // values from token to token of q and its gradient

  // Keys, values and their gradients without gaps, bfloat16.
  int64_t dense_bytes() const { return 8 * tokens * kv_heads * head_dim; }
  // Gradients of all scores of `documents` of `length` tokens, bfloat16, and how much a backward
  // pass in a fixed order takes for them at a time.
  int64_t order_bytes(int64_t documents, int64_t length) const {
    return 2 * documents * heads * length * length;
  }
  int64_t most_for_order() const;
  // What a backward pass is to be given.
  int64_t workspace_bytes(bool deterministic) const;
};

// What the forward pass reads and gives, with the shape's strides, as the backward pass reads it.
// lse [tokens * heads] is the library's own.
struct FlashArrays {
  const uint16_t* q = nullptr;
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  uint16_t* out = nullptr;
  float* lse = nullptr;
};

// dq, dk, dv [tokens, heads or kv_heads, head_dim] with the strides of q, k and v; any workspace,
// aligned to 64 bytes: with less than FlashExtent asks for, the library allocates its own.
struct FlashGradients {
  uint16_t* dq = nullptr;
  uint16_t* dk = nullptr;
  uint16_t* dv = nullptr;
  std::byte* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

class Flash {
 public:
  // Whether a library can take a model's attention: scores that are not capped, a head size that is
  // a multiple of 8 up to 256.
  static bool takes(const ModelConfig& config);
  // One that flash_agrees with (flash_check.h). nullptr, with the reason, where none can be had: no
  // GPU, no library, a model that they do not take. `deterministic`: the backward pass adds in a
  // fixed order.
  static std::unique_ptr<Flash> load(const Device& device,
                                     const ModelConfig& config,
                                     const FlashExtent& extent,
                                     bool deterministic,
                                     std::string* reason);

  virtual ~Flash() = default;
  virtual std::string name() const = 0;  // "cuDNN 9.19's attention"

  // Before the first call with a batch. May wait for the device and allocate.
  virtual void begin(const Batch& batch) = 0;
  // As graft_attention_forward, of type bfloat16.
  virtual void forward(const graft_attention_shape& shape, const FlashArrays& arrays) = 0;
  // As graft_attention_backward.
  virtual void backward(const graft_attention_shape& shape,
                        const FlashArrays& arrays,
                        const uint16_t* dout,
                        const FlashGradients& gradients) = 0;
};

// Tokens of the batch's longest document.
int64_t longest_document(const Batch& batch);

}  // namespace graft::train
