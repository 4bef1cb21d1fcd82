// LibTorch's flash attention (FlashAttention-2, arXiv 2307.08691) for a GPU's packed documents in
// bfloat16. The part of LibTorch that has it is loaded at run time, where it is: the three wheels
// that graft builds with lack libraries that it needs (docs/architecture.md).
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
  // nullptr, with the reason, where it cannot be had: no GPU, no libtorch_cuda, scores that are
  // capped, a head size that is not a multiple of 8 up to 256.
  // `deterministic`: its backward pass adds in a fixed order, which takes longer.
  static std::unique_ptr<Flash> load(const Device& device,
                                     const ModelConfig& config,
                                     bool deterministic,
                                     std::string* reason);

  // As graft_attention_forward, of type bfloat16; lse [heads, tokens] is this kernel's own.
  void forward(const graft_attention_shape& shape,
               const Batch& batch,
               const uint16_t* q,
               const uint16_t* k,
               const uint16_t* v,
               uint16_t* out,
               float* lse) const;
  // As graft_attention_backward.
  void backward(const graft_attention_shape& shape,
                const Batch& batch,
                const uint16_t* q,
                const uint16_t* k,
                const uint16_t* v,
                const uint16_t* out,
                const float* lse,
                const uint16_t* dout,
                uint16_t* dq,
                uint16_t* dk,
                uint16_t* dv) const;

 private:
  Flash(const Device& device, bool deterministic)
      : device_(device), deterministic_(deterministic) {}
  void put(const void* from, void* to, int64_t to_stride, int64_t rows, int64_t columns) const;

  Device device_;
  bool deterministic_;
};

}  // namespace graft::train
