#include "train/engine/tensor.h"

#include <atomic>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "core/error.h"
#include "core/safetensors.h"  // shape_text
#include "kernels/memory.h"

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

namespace {

// How LibTorch is told of a device that it does not know: by a type of its own, whose index is the
// graft_device.
constexpr c10::DeviceType kOwnDevice = c10::DeviceType::PrivateUse1;

// Of the process, as the memory is.
std::atomic<int64_t> bytes_now{0};
std::atomic<int64_t> bytes_most{0};

void count_bytes(int64_t more) {
  const int64_t now = bytes_now += more;
  int64_t most = bytes_most;
  while (now > most && !bytes_most.compare_exchange_weak(most, now)) {
  }
}

}  // namespace

Device place_of(const at::Tensor& tensor) {
  if (tensor.device().type() != kOwnDevice) return {};
  return {static_cast<graft_device>(int{tensor.device().index()})};
}

at::Tensor empty_on(const Device& device, at::ScalarType type, at::IntArrayRef shape) {
  if (device.is_host()) {
    return allocate(shape, [&] { return at::empty(shape, type); });
  }
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const size_t bytes = static_cast<size_t>(count) * c10::elementSize(type);
  void* memory = nullptr;
  check(graft_device_allocate(bytes, device.kind, &memory));
  count_bytes(static_cast<int64_t>(bytes));
  const at::Device place(kOwnDevice, static_cast<c10::DeviceIndex>(device.kind));
  const auto release = [kind = device.kind, bytes](void* begin) {
    graft_device_release(begin, kind);
    count_bytes(-static_cast<int64_t>(bytes));
  };
  return at::from_blob(memory, shape, release, at::TensorOptions().dtype(type).device(place),
                       place);
}

DeviceBytes device_bytes() {
  return {bytes_now, bytes_most};
}

at::Tensor zeros_on(const Device& device, at::ScalarType type, at::IntArrayRef shape) {
  at::Tensor tensor = empty_on(device, type, shape);
  device.fill(tensor.data_ptr(), 0, tensor.nbytes());
  return tensor;
}

at::Tensor on_device(const Device& device, const at::Tensor& host) {
  if (device.is_host()) return host;
  at::Tensor copy = empty_on(device, host.scalar_type(), host.sizes());
  copy_values(copy, host);
  return copy;
}

at::Tensor on_host(const at::Tensor& tensor) {
  if (place_of(tensor).is_host()) return tensor;
  at::Tensor copy = empty_on({}, tensor.scalar_type(), tensor.sizes());
  copy_values(copy, tensor);
  return copy;
}

void copy_values(const at::Tensor& to, const at::Tensor& from) {
  const Device device = place_of(place_of(to).is_host() ? from : to);
  if (to.nbytes() != from.nbytes()) {
    fail(ExitCode::kBug, "a copy between tensors of different sizes");
  }
  if (to.nbytes() == 0) return;
  device.copy(to.data_ptr(), from.data_ptr(), to.nbytes());
  device.wait();
}

}  // namespace graft::train
