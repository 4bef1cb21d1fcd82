#include "train/engine/flash.h"

#include <algorithm>

#include "train/engine/cudnn_flash.h"
#include "train/engine/torch_flash.h"

namespace graft::train {

std::unique_ptr<Flash> Flash::load(const Device& device,
                                   const ModelConfig& config,
                                   int64_t max_tokens,
                                   bool deterministic,
                                   std::string* reason) {
  if (device.kind != GRAFT_CUDA) {
    *reason = "no GPU";
    return nullptr;
  }
  if (config.attention_cap > 0 || config.head_dim % 8 != 0 || config.head_dim > 256) {
    *reason = "the model's scores are capped, or its heads not a multiple of 8 up to 256 wide";
    return nullptr;
  }
  std::unique_ptr<Flash> flash =
      load_cudnn_flash(device, config, max_tokens, deterministic, reason);
  return flash != nullptr ? std::move(flash) : load_torch_flash(device, deterministic, reason);
}

int64_t longest_document(const Batch& batch) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    most = std::max<int64_t>(most, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  return most;
}

}  // namespace graft::train
