#include "train/engine/tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "core/error.h"

namespace graft::train {

at::Tensor empty_f32(std::initializer_list<int64_t> shape) {
  return at::empty(at::IntArrayRef(shape), at::kFloat);
}

at::Tensor zeros_f32(std::initializer_list<int64_t> shape) {
  return at::zeros(at::IntArrayRef(shape), at::kFloat);
}

at::Tensor empty_u8(int64_t count) { return at::empty({count}, at::kByte); }

void check(graft_status status) {
  if (status == GRAFT_OK) {
    return;
  }
  const bool device = status == GRAFT_NO_DEVICE || status == GRAFT_DEVICE_ERROR;
  fail(device ? ExitCode::kDevice : ExitCode::kBug,
       std::string(graft_status_name(status)) + ": " + graft_last_error());
}

}  // namespace graft::train
