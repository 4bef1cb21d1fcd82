#include "train/engine/cudnn_flash.h"

#ifdef GRAFT_CUDNN

#include <algorithm>
#include <bit>
#include <climits>
#include <compare>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "kernels/memory.h"
#include "train/engine/torch_flash.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace graft::train {
namespace {

namespace fe = cudnn_frontend;
using TensorPtr = std::shared_ptr<fe::graph::Tensor_attributes>;

// Bytes that a backward pass may take to write dP out, as cuDNN does to add in a fixed order.
constexpr int64_t kMostForOrder = int64_t{4} << 30;
// cuDNN writes a graph's tiles of so many tokens.
constexpr int64_t kTile = 128;

void check_cudnn(fe::error_t error, const char* what) {
  if (error.is_good()) return;
  fail(ExitCode::kDevice, std::string("cuDNN's attention, ") + what + ": " + error.get_message());
}

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  fail(ExitCode::kDevice,
       std::string("cuDNN, ") + what + ": " + fe::detail::get_error_string(status));
}

// Memory of the device that only grows.
class Room {
 public:
  explicit Room(const Device& device) : device_(device) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { release(); }

  std::byte* get(int64_t bytes) {
    if (bytes > bytes_) {
      release();
      void* memory = nullptr;
      check(graft_device_allocate(static_cast<size_t>(bytes), device_.kind, &memory));
      memory_ = static_cast<std::byte*>(memory);
      bytes_ = bytes;
    }
    return memory_;
  }

 private:
  void release() {
    if (memory_ == nullptr) return;
    device_.wait();
    graft_device_release(memory_, device_.kind);
    memory_ = nullptr;
    bytes_ = 0;
  }

  Device device_;
  std::byte* memory_ = nullptr;
  int64_t bytes_ = 0;
};

enum Name : int64_t {
  kQ,
  kK,
  kV,
  kOut,
  kSums,
  kDOut,
  kDQ,
  kDK,
  kDV,
  kLengths,
  kQEnds,
  kKEnds,
  kVEnds,
  kOutEnds,
  kSumsEnds,
  kDKEnds,
  kDVEnds,
};

// What a graph is built for.
struct Key {
  int64_t documents, longest, heads, kv_heads, head_dim;
  int64_t q_stride, k_stride, v_stride, out_stride, window;
  float scale;
  auto operator<=>(const Key&) const = default;
};

struct Graph {
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t workspace = 0;
};

class CudnnFlash final : public Flash {
 public:
  // `in_order` is there if and only if the backward pass is to add in a fixed order.
  CudnnFlash(const Device& device,
             cudnnHandle_t handle,
             int64_t heads,
             int64_t max_tokens,
             std::unique_ptr<Flash> in_order)
      : device_(device),
        handle_(handle),
        heads_(heads),
        max_tokens_(max_tokens),
        in_order_(std::move(in_order)),
        workspace_(device),
        key_values_(device),
        ends_(device) {}
  CudnnFlash(const CudnnFlash&) = delete;
  CudnnFlash& operator=(const CudnnFlash&) = delete;
  ~CudnnFlash() override { fe::detail::destroy_handle(handle_); }

  std::string name() const override { return "cuDNN's attention"; }
  void begin(const Batch& batch) override;
  void forward(const graft_attention_shape& shape,
               const uint16_t* q,
               const uint16_t* k,
               const uint16_t* v,
               uint16_t* out,
               float* lse) override;
  void backward(const graft_attention_shape& shape,
                const uint16_t* q,
                const uint16_t* k,
                const uint16_t* v,
                const uint16_t* out,
                const float* lse,
                const uint16_t* dout,
                uint16_t* dq,
                uint16_t* dk,
                uint16_t* dv) override;

 private:
  Key key_of(const graft_attention_shape& shape) const;
  Graph build_forward(const Key& key) const;
  Graph build_backward(const Key& key) const;
  Graph finish(std::shared_ptr<fe::graph::Graph> graph) const;
  // The ends of the batch's documents in an array with rows `stride` values apart.
  void* ends_of(int64_t stride);
  void run(const Graph& graph, std::unordered_map<int64_t, void*>& arrays);

  Device device_;
  cudnnHandle_t handle_;
  int64_t heads_, max_tokens_;
  std::unique_ptr<Flash> in_order_;  // takes the batches whose order would cost cuDNN too much
  std::map<Key, Graph> forward_, backward_;
  Room workspace_, key_values_, ends_;

  // Of the batch.
  bool defers_ = false;                  // to in_order_
  int64_t documents_ = 0, longest_ = 0;  // rounded up
  std::vector<int32_t> cu_seqlens_;      // [documents_ + 1]
  std::vector<int64_t> strides_;         // whose ends are in the device's memory
};

TensorPtr values(fe::graph::Graph& graph,
                 Name name,
                 const Key& key,
                 int64_t heads,
                 int64_t stride,
                 const TensorPtr& ends) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_uid(name)
                          .set_dim({key.documents, heads, key.longest, key.head_dim})
                          .set_stride({key.longest * stride, key.head_dim, stride, 1})
                          .set_ragged_offset(ends));
}

TensorPtr counts(fe::graph::Graph& graph, Name name, int64_t count) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_uid(name)
                          .set_dim({count, 1, 1, 1})
                          .set_stride({1, 1, 1, 1})
                          .set_data_type(fe::DataType_t::INT32));
}

std::shared_ptr<fe::graph::Graph> new_graph() {
  auto graph = std::make_shared<fe::graph::Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

void set_sums(fe::graph::Tensor_attributes& sums, const Key& key, const TensorPtr& ends) {
  sums.set_uid(kSums)
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({key.documents, key.heads, key.longest, 1})
      .set_stride({key.longest * key.heads, 1, key.heads, 1})
      .set_ragged_offset(ends);
}

// An output whose rows are `stride` values apart.
void set_result(fe::graph::Tensor_attributes& result,
                Name name,
                const Key& key,
                int64_t heads,
                int64_t stride,
                const TensorPtr& ends) {
  result.set_output(true)
      .set_uid(name)
      .set_dim({key.documents, heads, key.longest, key.head_dim})
      .set_stride({key.longest * stride, key.head_dim, stride, 1})
      .set_ragged_offset(ends);
}

template <typename Attributes>
void mask(Attributes& attributes, const Key& key, const TensorPtr& lengths) {
  attributes.set_padding_mask(true).set_seq_len_q(lengths).set_seq_len_kv(lengths);
  attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT);
  attributes.set_diagonal_band_right_bound(0);
  if (key.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(key.window));
  attributes.set_attn_scale(key.scale);
}

Graph CudnnFlash::finish(std::shared_ptr<fe::graph::Graph> graph) const {
  check_cudnn(graph->validate(), "shapes");
  check_cudnn(graph->build_operation_graph(handle_), "operations");
  check_cudnn(graph->create_execution_plans({fe::HeurMode_t::A}), "plans");
  check_cudnn(graph->check_support(), "support");
  check_cudnn(graph->build_plans(), "compilation");
  Graph result{std::move(graph), 0};
  check_cudnn(result.graph->get_workspace_size(result.workspace), "workspace");
  return result;
}

Graph CudnnFlash::build_forward(const Key& key) const {
  auto graph = new_graph();
  fe::graph::Graph& g = *graph;
  const int64_t ends = key.documents + 1;
  const TensorPtr q = values(g, kQ, key, key.heads, key.q_stride, counts(g, kQEnds, ends));
  const TensorPtr k = values(g, kK, key, key.kv_heads, key.k_stride, counts(g, kKEnds, ends));
  const TensorPtr v = values(g, kV, key, key.kv_heads, key.v_stride, counts(g, kVEnds, ends));
  auto attributes = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
  mask(attributes, key, counts(g, kLengths, key.documents));
  auto [out, sums] = g.sdpa(q, k, v, attributes);
  set_result(*out, kOut, key, key.heads, key.out_stride, counts(g, kOutEnds, ends));
  sums->set_output(true);
  set_sums(*sums, key, counts(g, kSumsEnds, ends));
  return finish(std::move(graph));
}

Graph CudnnFlash::build_backward(const Key& key) const {
  auto graph = new_graph();
  fe::graph::Graph& g = *graph;
  const int64_t ends = key.documents + 1, width = key.kv_heads * key.head_dim;
  const TensorPtr q_ends = counts(g, kQEnds, ends), out_ends = counts(g, kOutEnds, ends);
  const TensorPtr q = values(g, kQ, key, key.heads, key.q_stride, q_ends);
  const TensorPtr k = values(g, kK, key, key.kv_heads, key.k_stride, counts(g, kKEnds, ends));
  const TensorPtr v = values(g, kV, key, key.kv_heads, key.v_stride, counts(g, kVEnds, ends));
  const TensorPtr out = values(g, kOut, key, key.heads, key.out_stride, out_ends);
  const TensorPtr dout = values(g, kDOut, key, key.heads, key.out_stride, out_ends);
  fe::graph::Tensor_attributes kept;
  set_sums(kept, key, counts(g, kSumsEnds, ends));
  const TensorPtr sums = g.tensor(kept);
  auto attributes = fe::graph::SDPA_backward_attributes()
                        .set_name("attention backward")
                        .set_deterministic_algorithm(in_order_ != nullptr)
                        .set_max_total_seq_len_q(max_tokens_)
                        .set_max_total_seq_len_kv(max_tokens_);
  mask(attributes, key, counts(g, kLengths, key.documents));
  auto [dq, dk, dv] = g.sdpa_backward(q, k, v, out, dout, sums, attributes);
  set_result(*dq, kDQ, key, key.heads, key.q_stride, q_ends);
  // Without gaps: cuDNN's sums of all query heads have the same ones, as many times as heads share
  // a key.
  set_result(*dk, kDK, key, key.kv_heads, width, counts(g, kDKEnds, ends));
  set_result(*dv, kDV, key, key.kv_heads, width, counts(g, kDVEnds, ends));
  return finish(std::move(graph));
}

void CudnnFlash::begin(const Batch& batch) {
  const auto count = static_cast<uint64_t>(batch.documents());
  const auto longest = static_cast<uint64_t>(longest_document(batch));
  documents_ = static_cast<int64_t>(std::bit_ceil(count));
  longest_ = std::max(static_cast<int64_t>(std::bit_ceil(longest)), kTile);
  cu_seqlens_ = batch.cu_seqlens;
  cu_seqlens_.resize(static_cast<size_t>(documents_) + 1, batch.cu_seqlens.back());
  strides_.clear();
  if (in_order_ == nullptr) return;
  // cuDNN writes the gradients of all scores out, [documents, heads, longest, longest] of bfloat16.
  defers_ = 2 * documents_ * heads_ * longest_ * longest_ > kMostForOrder;
  if (defers_) in_order_->begin(batch);
}

// The lengths, then the ends of one stride after another, each in room for documents_ + 1.
void* CudnnFlash::ends_of(int64_t stride) {
  constexpr size_t kMostStrides = 16;
  const auto row = static_cast<size_t>(documents_) + 1;
  auto* const arrays =
      reinterpret_cast<int32_t*>(ends_.get(static_cast<int64_t>((kMostStrides + 1) * row * 4)));
  std::vector<int32_t> values(row);
  if (strides_.empty()) {
    for (size_t i = 0; i + 1 < row; ++i) values[i] = cu_seqlens_[i + 1] - cu_seqlens_[i];
    device_.copy(arrays, values.data(), row * sizeof(int32_t));
    strides_.push_back(0);  // of the lengths
    device_.wait();
  }
  const auto found = std::find(strides_.begin(), strides_.end(), stride);
  const auto place = static_cast<size_t>(found - strides_.begin());
  if (found == strides_.end()) {
    if (strides_.size() > kMostStrides) {
      fail(ExitCode::kBug, "attention's arrays have more than 16 different strides");
    }
    for (size_t i = 0; i < row; ++i) {
      const int64_t end = cu_seqlens_[i] * stride;
      if (end > INT32_MAX) {
        fail(ExitCode::kBug, "attention's array has more than 2^31 values");
      }
      values[i] = static_cast<int32_t>(end);
    }
    device_.copy(arrays + place * row, values.data(), row * sizeof(int32_t));
    strides_.push_back(stride);
    device_.wait();  // `values` ends here
  }
  return arrays + place * row;
}

Key CudnnFlash::key_of(const graft_attention_shape& shape) const {
  return {documents_,       longest_,       shape.heads,    shape.kv_heads,
          shape.head_dim,   shape.q_stride, shape.k_stride, shape.v_stride,
          shape.out_stride, shape.window,   shape.scale};
}

void CudnnFlash::run(const Graph& graph, std::unordered_map<int64_t, void*>& arrays) {
  check_cudnn(graph.graph->execute(handle_, arrays, workspace_.get(graph.workspace)), "execution");
}

void* plain(const void* values) {
  return const_cast<void*>(values);
}

void CudnnFlash::forward(const graft_attention_shape& shape,
                         const uint16_t* q,
                         const uint16_t* k,
                         const uint16_t* v,
                         uint16_t* out,
                         float* lse) {
  if (defers_) return in_order_->forward(shape, q, k, v, out, lse);
  const Key key = key_of(shape);
  auto found = forward_.find(key);
  if (found == forward_.end()) found = forward_.emplace(key, build_forward(key)).first;
  std::unordered_map<int64_t, void*> arrays = {{kQ, plain(q)},
                                               {kK, plain(k)},
                                               {kV, plain(v)},
                                               {kOut, out},
                                               {kSums, lse},
                                               {kLengths, ends_of(0)},
                                               {kQEnds, ends_of(shape.q_stride)},
                                               {kKEnds, ends_of(shape.k_stride)},
                                               {kVEnds, ends_of(shape.v_stride)},
                                               {kOutEnds, ends_of(shape.out_stride)},
                                               {kSumsEnds, ends_of(shape.heads)}};
  run(found->second, arrays);
}

void CudnnFlash::backward(const graft_attention_shape& shape,
                          const uint16_t* q,
                          const uint16_t* k,
                          const uint16_t* v,
                          const uint16_t* out,
                          const float* lse,
                          const uint16_t* dout,
                          uint16_t* dq,
                          uint16_t* dk,
                          uint16_t* dv) {
  if (defers_) return in_order_->backward(shape, q, k, v, out, lse, dout, dq, dk, dv);
  const Key key = key_of(shape);
  auto found = backward_.find(key);
  if (found == backward_.end()) found = backward_.emplace(key, build_backward(key)).first;
  const int64_t width = shape.kv_heads * shape.head_dim, count = max_tokens_ * width;
  auto* const dense_dk = reinterpret_cast<uint16_t*>(
      key_values_.get(2 * count * static_cast<int64_t>(sizeof(uint16_t))));
  uint16_t* const dense_dv = dense_dk + count;
  std::unordered_map<int64_t, void*> arrays = {{kQ, plain(q)},
                                               {kK, plain(k)},
                                               {kV, plain(v)},
                                               {kOut, plain(out)},
                                               {kSums, plain(lse)},
                                               {kDOut, plain(dout)},
                                               {kDQ, dq},
                                               {kDK, dense_dk},
                                               {kDV, dense_dv},
                                               {kLengths, ends_of(0)},
                                               {kQEnds, ends_of(shape.q_stride)},
                                               {kKEnds, ends_of(shape.k_stride)},
                                               {kVEnds, ends_of(shape.v_stride)},
                                               {kOutEnds, ends_of(shape.out_stride)},
                                               {kSumsEnds, ends_of(shape.heads)},
                                               {kDKEnds, ends_of(width)},
                                               {kDVEnds, ends_of(width)}};
  run(found->second, arrays);
  const auto put = [&](const uint16_t* from, uint16_t* to, int64_t stride) {
    check(graft_convert(from, GRAFT_BF16, width, to, GRAFT_BF16, stride, shape.tokens, width, 1,
                        device_.kind, device_.stream));
  };
  put(dense_dk, dk, shape.k_stride);
  put(dense_dv, dv, shape.v_stride);
}

}  // namespace

std::unique_ptr<Flash> load_cudnn_flash(const Device& device,
                                        const ModelConfig& config,
                                        int64_t max_tokens,
                                        bool deterministic,
                                        std::string* reason) {
  if (config.head_dim > 128) {
    *reason = "cuDNN's backward pass takes heads of at most 128";
    return nullptr;
  }
  void* library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
  // LibTorch finds its own.
  if (library == nullptr && dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) {
    library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
  }
  if (library == nullptr) {
    const char* const words = dlerror();
    *reason = words != nullptr ? words : "libcudnn.so.9 cannot be loaded";
    return nullptr;
  }
  std::unique_ptr<Flash> in_order;
  if (deterministic) {
    in_order = load_torch_flash(device, true, reason);
    if (in_order == nullptr) return nullptr;
  }
  fe::cudnn_dlhandle = library;
  try {
    cudnnHandle_t handle = nullptr;
    check_cudnn(fe::detail::create_handle(&handle), "its start");
    check_cudnn(fe::detail::set_stream(handle, static_cast<cudaStream_t>(device.stream)),
                "its stream");
    return std::make_unique<CudnnFlash>(device, handle, config.heads, max_tokens,
                                        std::move(in_order));
  } catch (const std::exception& error) {
    *reason = error.what();
    return nullptr;
  }
}

}  // namespace graft::train

#else

namespace graft::train {

std::unique_ptr<Flash> load_cudnn_flash(const Device& /*device*/,
                                        const ModelConfig& /*config*/,
                                        int64_t /*max_tokens*/,
                                        bool /*deterministic*/,
                                        std::string* reason) {
  *reason = "built without cuDNN's headers";
  return nullptr;
}

}  // namespace graft::train

#endif
