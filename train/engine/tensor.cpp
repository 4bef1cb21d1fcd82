#include "train/engine/tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "core/error.h"
#include "core/safetensors.h"  // shape_text

namespace graft::train {
namespace {

// LibTorch reports a failed or overflowing allocation as an exception like any other; here it can
// only mean that there is not enough memory.
template <typename Make>
at::Tensor allocate(at::IntArrayRef shape, Make make) {
  try {
    return make();
  } catch (const c10::Error&) {
    fail(ExitCode::kDevice,
         "out of memory for a buffer of shape " + shape_text({shape.begin(), shape.end()}), "",
         "use a smaller micro_batch_size, sequence_len or model");
  }
}

}  // namespace

at::Tensor empty_f32(std::initializer_list<int64_t> shape) {
  return allocate(shape, [&] { return at::empty(at::IntArrayRef(shape), at::kFloat); });
}

at::Tensor zeros_f32(std::initializer_list<int64_t> shape) {
  return allocate(shape, [&] { return at::zeros(at::IntArrayRef(shape), at::kFloat); });
}

at::Tensor empty_u8(int64_t count) {
  return allocate({count}, [&] { return at::empty({count}, at::kByte); });
}

at::Tensor empty_bf16(std::initializer_list<int64_t> shape) {
  return allocate(shape, [&] { return at::empty(at::IntArrayRef(shape), at::kBFloat16); });
}

at::Tensor empty_of(graft_float_type type, std::initializer_list<int64_t> shape) {
  return type == GRAFT_BF16 ? empty_bf16(shape) : empty_f32(shape);
}

void check(graft_status status) {
  if (status == GRAFT_OK) {
    return;
  }
  const bool device = status == GRAFT_NO_DEVICE || status == GRAFT_DEVICE_ERROR;
  fail(device ? ExitCode::kDevice : ExitCode::kBug,
       std::string(graft_status_name(status)) + ": " + graft_last_error());
}

}  // namespace graft::train
