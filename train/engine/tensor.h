// Buffers of the engine: tensors made once, reached as plain pointers by the kernels.
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
at::Tensor empty_bf16(std::initializer_list<int64_t> shape);
at::Tensor empty_of(graft_float_type type, std::initializer_list<int64_t> shape);

// Bytes of a value.
constexpr int64_t size_of(graft_float_type type) {
  return type == GRAFT_F32 ? sizeof(float) : sizeof(uint16_t);
}

inline float* f32(const at::Tensor& tensor) {
  return tensor.data_ptr<float>();
}
inline uint16_t* bf16(const at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.data_ptr<at::BFloat16>());
}
// nullptr for an undefined tensor.
inline float* f32_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
}

// Turns a kernel's status into graft::Error: device trouble is kDevice, everything else a bug, as
// the engine checks its input before it calls a kernel.
void check(graft_status status);

}  // namespace graft::train
