// Buffers of the engine: float32 tensors made once, reached as plain pointers by the kernels.
#pragma once

#include <cstdint>
#include <initializer_list>

#include <ATen/core/Tensor.h>

#include "kernels/status.h"

namespace graft::train {

// Uninitialised (64-byte aligned) and zeroed float32 tensors in host memory. Errors: kDevice when
// there is not enough of it.
at::Tensor empty_f32(std::initializer_list<int64_t> shape);
at::Tensor zeros_f32(std::initializer_list<int64_t> shape);
at::Tensor empty_u8(int64_t count);

inline float* f32(const at::Tensor& tensor) {
  return tensor.data_ptr<float>();
}
// nullptr for an undefined tensor.
inline float* f32_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
}

// Turns a kernel's status into graft::Error: device trouble is kDevice, everything else a bug, as
// the engine checks its input before it calls a kernel.
void check(graft_status status);

}  // namespace graft::train
