#include "train/engine/torch_flash.h"

#include <tuple>

#include <dlfcn.h>

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include "core/error.h"
#include "kernels/elementwise.h"

namespace graft::train {
namespace {

const at::Device kGpu(c10::DeviceType::CUDA, 0);

at::Tensor view(const void* values,
                at::ScalarType type,
                at::IntArrayRef sizes,
                at::IntArrayRef strides) {
  return at::for_blob(const_cast<void*>(values), sizes)
      .strides(strides)
      .options(at::TensorOptions().dtype(type).device(kGpu))
      .target_device(kGpu)
      .make_tensor();
}

// [tokens, heads, head_dim] of rows `stride` values apart.
at::Tensor heads_of(const uint16_t* values,
                    const graft_attention_shape& shape,
                    int64_t heads,
                    int64_t stride) {
  return view(values, at::kBFloat16, {shape.tokens, heads, shape.head_dim},
              {stride, shape.head_dim, 1});
}

at::Tensor ends_of(const graft_attention_shape& shape) {
  return view(shape.cu_seqlens, at::kInt, {shape.documents + 1}, {1});
}

// Keys behind a query that it sees; none for all.
std::optional<int64_t> left_of(const graft_attention_shape& shape) {
  return shape.window > 0 ? std::optional(shape.window - 1) : std::nullopt;
}
std::optional<int64_t> right_of(const graft_attention_shape& shape) {
  return shape.window > 0 ? std::optional<int64_t>(0) : std::nullopt;
}

template <typename Call>
auto call_torch(const Call& call) {
  try {
    const c10::InferenceMode no_gradients;
    return call();
  } catch (const c10::Error& error) {
    fail(ExitCode::kDevice,
         std::string("LibTorch's flash attention: ") + error.what_without_backtrace());
  }
}

class TorchFlash final : public Flash {
 public:
  TorchFlash(const Device& device, bool deterministic)
      : device_(device), deterministic_(deterministic) {}

  std::string name() const override { return "LibTorch's flash attention"; }
  void begin(const Batch& batch) override { longest_ = longest_document(batch); }
  void forward(const graft_attention_shape& shape, const FlashArrays& arrays) override;
  void backward(const graft_attention_shape& shape,
                const FlashArrays& arrays,
                const uint16_t* dout,
                const FlashGradients& gradients) override;

 private:
  void put(const void* from, void* to, int64_t to_stride, int64_t rows, int64_t columns) const;

  Device device_;
  bool deterministic_;
  int64_t longest_ = 0;
};

void TorchFlash::put(
    const void* from, void* to, int64_t to_stride, int64_t rows, int64_t columns) const {
  check(graft_convert(from, GRAFT_BF16, columns, to, GRAFT_BF16, to_stride, rows, columns, 1,
                      device_.kind, device_.stream));
}

void TorchFlash::forward(const graft_attention_shape& shape, const FlashArrays& arrays) {
  const auto result = call_torch([&] {
    const at::Tensor ends = ends_of(shape);
    return at::_flash_attention_forward(
        heads_of(arrays.q, shape, shape.heads, shape.q_stride),
        heads_of(arrays.k, shape, shape.kv_heads, shape.k_stride),
        heads_of(arrays.v, shape, shape.kv_heads, shape.v_stride), ends, ends, longest_, longest_,
        0.0, true, false, static_cast<double>(shape.scale), left_of(shape), right_of(shape));
  });
  put(std::get<0>(result).data_ptr(), arrays.out, shape.out_stride, shape.tokens,
      shape.heads * shape.head_dim);
  const at::Tensor& sums = std::get<1>(result);
  if (sums.numel() != shape.heads * shape.tokens || !sums.is_contiguous()) {
    fail(ExitCode::kBug, "LibTorch's flash attention keeps other sums than this build expects");
  }
  device_.copy(arrays.lse, sums.data_ptr(), sums.nbytes());
}

void TorchFlash::backward(const graft_attention_shape& shape,
                          const FlashArrays& arrays,
                          const uint16_t* dout,
                          const FlashGradients& gradients) {
  const int64_t q_width = shape.heads * shape.head_dim;
  at::globalContext().setDeterministicAlgorithms(deterministic_, /*warn_only=*/false);
  const auto result = call_torch([&] {
    const at::Tensor ends = ends_of(shape);
    // Without dropout the generator's state is not read.
    const at::Tensor state = at::empty({2}, at::TensorOptions().dtype(at::kUInt64).device(kGpu));
    const at::Tensor unused = at::empty({}, at::TensorOptions().dtype(at::kUInt64).device(kGpu));
    return at::_flash_attention_backward(
        heads_of(dout, shape, shape.heads, shape.out_stride),
        heads_of(arrays.q, shape, shape.heads, shape.q_stride),
        heads_of(arrays.k, shape, shape.kv_heads, shape.k_stride),
        heads_of(arrays.v, shape, shape.kv_heads, shape.v_stride),
        heads_of(arrays.out, shape, shape.heads, shape.out_stride),
        view(arrays.lse, at::kFloat, {shape.heads, shape.tokens}, {shape.tokens, 1}), ends, ends,
        longest_, longest_, 0.0, true, state, unused, static_cast<double>(shape.scale),
        left_of(shape), right_of(shape));
  });
  const int64_t kv_width = shape.kv_heads * shape.head_dim;
  put(std::get<0>(result).data_ptr(), gradients.dq, shape.q_stride, shape.tokens, q_width);
  put(std::get<1>(result).data_ptr(), gradients.dk, shape.k_stride, shape.tokens, kv_width);
  put(std::get<2>(result).data_ptr(), gradients.dv, shape.v_stride, shape.tokens, kv_width);
}

}  // namespace

std::unique_ptr<Flash> load_torch_flash(const Device& device,
                                        bool deterministic,
                                        std::string* reason) {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* const words = dlerror();
    *reason = words != nullptr ? words : "libtorch_cuda.so cannot be loaded";
    return nullptr;
  }
  try {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  } catch (const c10::Error& error) {
    *reason = error.what_without_backtrace();
    return nullptr;
  }
  return std::make_unique<TorchFlash>(device, deterministic);
}

}  // namespace graft::train
