// Buffers of the engine: tensors made once, reached as plain pointers by the kernels.
//
// A tensor lies in host memory, or in the memory of a device that is not the processor. Of one
// there LibTorch knows place, type and shape only (its operators refuse it), and only kernels may
// follow its pointer; on_device and on_host copy.
#pragma once

#include <cstdint>
#include <initializer_list>

#include <ATen/core/Tensor.h>

#include "kernels/status.h"
#include "train/engine/device.h"

namespace graft::train {

// Uninitialised (64-byte aligned) and zeroed float32 tensors in host memory. Errors: kDevice when
// there is not enough of it.
at::Tensor empty_f32(std::initializer_list<int64_t> shape);
at::Tensor zeros_f32(std::initializer_list<int64_t> shape);
at::Tensor empty_u8(int64_t count);
at::Tensor empty_bf16(std::initializer_list<int64_t> shape);
at::Tensor empty_of(graft_float_type type, std::initializer_list<int64_t> shape);

// The same in the memory of a device, aligned to 256 bytes. Errors: kDevice.
at::Tensor empty_on(const Device& device, at::ScalarType type, at::IntArrayRef shape);
at::Tensor zeros_on(const Device& device, at::ScalarType type, at::IntArrayRef shape);

// Bytes of all tensors that lie in the memory of a device that is not the processor, and the most
// that they ever were together: what graft asked for, without what its libraries take.
struct DeviceBytes {
  int64_t now = 0;
  int64_t most = 0;
};
DeviceBytes device_bytes();

// Where a tensor lies, and the default stream there.
Device place_of(const at::Tensor& tensor);
// A copy of a host tensor in the device's memory; the tensor itself for the processor.
at::Tensor on_device(const Device& device, const at::Tensor& host);
// A copy in host memory; the tensor itself when it lies there. Waits for the device.
at::Tensor on_host(const at::Tensor& tensor);
// `to` = `from`, of the same size, each on either side. Waits where a device is involved.
void copy_values(const at::Tensor& to, const at::Tensor& from);

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

}  // namespace graft::train
