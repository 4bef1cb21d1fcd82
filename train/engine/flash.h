// Attention of a GPU's packed documents in bfloat16 by a library: FlashAttention-2 (arXiv
// 2307.08691) of LibTorch, or cuDNN's. The libraries are loaded at run time, where they are: graft
// is built without them (docs/architecture.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/attention.h"
#include "train/engine/batch.h"
#include "train/engine/device.h"
#include "train/model/config.h"

namespace graft::train {

class Flash {
 public:
  // nullptr, with the reason, where none can be had: no GPU, no library, scores that are capped, a
  // head size that is not a multiple of 8 up to 256. No batch has more than `max_tokens`.
  // `deterministic`: the backward pass adds in a fixed order, which takes longer.
  static std::unique_ptr<Flash> load(const Device& device,
                                     const ModelConfig& config,
                                     int64_t max_tokens,
                                     bool deterministic,
                                     std::string* reason);

  virtual ~Flash() = default;
  virtual std::string name() const = 0;  // "cuDNN's attention"

  // Before the first call with a batch. May wait for the device and allocate.
  virtual void begin(const Batch& batch) = 0;
  // As graft_attention_forward, of type bfloat16; lse [tokens * heads] is the library's own.
  virtual void forward(const graft_attention_shape& shape,
                       const uint16_t* q,
                       const uint16_t* k,
                       const uint16_t* v,
                       uint16_t* out,
                       float* lse) = 0;
  // As graft_attention_backward.
  virtual void backward(const graft_attention_shape& shape,
                        const uint16_t* q,
                        const uint16_t* k,
                        const uint16_t* v,
                        const uint16_t* out,
                        const float* lse,
                        const uint16_t* dout,
                        uint16_t* dq,
                        uint16_t* dk,
                        uint16_t* dv) = 0;
};

// Tokens of the batch's longest document.
int64_t longest_document(const Batch& batch);

}  // namespace graft::train
