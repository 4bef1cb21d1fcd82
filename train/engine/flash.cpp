#include "train/engine/flash.h"

#include <algorithm>
#include <bit>

#include "train/engine/cudnn_flash.h"
#include "train/engine/flash_check.h"
#include "train/engine/torch_flash.h"

namespace graft::train {

namespace {

// At most so much for the gradients of scores.
constexpr int64_t kMostForOrder = int64_t{4} << 30;
constexpr int64_t kSlack = int64_t{1} << 20;  // alignment, and what has the size of the documents

}  // namespace

int64_t FlashExtent::most_for_order() const {
  const auto rounded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(longest)));
  const int64_t documents = std::max<int64_t>(tokens / std::max<int64_t>(longest, 1), 1);
  const int64_t least = order_bytes(1, 128);
  return std::min(std::max(order_bytes(documents, rounded), least), kMostForOrder);
}

// As cuDNN's frontend counts: of every query head's gradients of keys and values, where heads share
// them, and of queries, which are added to in float32 in any order.
int64_t FlashExtent::workspace_bytes(bool deterministic) const {
  const int64_t row = 4 * heads * head_dim;
  const int64_t shared = heads == kv_heads ? 0 : 2 * row;
  return dense_bytes() + tokens * (shared + 4 * heads) +
         (deterministic ? most_for_order() : 4 * tokens * q_stride) + kSlack;
}

bool Flash::takes(const ModelConfig& config) {
  return config.attention_cap == 0 && config.head_dim % 8 == 0 && config.head_dim <= 256;
}

std::unique_ptr<Flash> Flash::load(const Device& device,
                                   const ModelConfig& config,
                                   const FlashExtent& extent,
                                   bool deterministic,
                                   std::string* reason) {
  if (device.kind != GRAFT_CUDA) {
    *reason = "no GPU";
    return nullptr;
  }
  if (!takes(config)) {
    *reason = "the model's scores are capped, or its heads not a multiple of 8 up to 256 wide";
    return nullptr;
  }
  const auto checked = [&](const auto& load_for) -> std::unique_ptr<Flash> {
    const FlashExtent small = check_extent(extent);
    const std::unique_ptr<Flash> trial = load_for(small);
    if (trial == nullptr || !flash_agrees(*trial, device, small, reason)) return nullptr;
    return load_for(extent);
  };
  std::unique_ptr<Flash> flash = checked(
      [&](const FlashExtent& of) { return load_cudnn_flash(device, of, deterministic, reason); });
  if (flash != nullptr) return flash;
  return checked(
      [&](const FlashExtent&) { return load_torch_flash(device, deterministic, reason); });
}

int64_t longest_document(const Batch& batch) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    most = std::max<int64_t>(most, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  return most;
}

}  // namespace graft::train
