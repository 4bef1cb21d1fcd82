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

// Lengths below this are one graph: cuDNN computes tiles of so many tokens.
constexpr int64_t kTile = 128;
constexpr size_t kMostStrides = 16;

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

// Documents that one graph computes, both counts rounded up to powers of two.
struct Group {
  int64_t documents = 0, longest = 0;
  std::vector<size_t> members;  // of the batch's documents
  size_t begin = 0;             // of its entries in an array of ends
};

int64_t power_of_two(int64_t value) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(value)));
}

class CudnnFlash final : public Flash {
 public:
  // `in_order` is there if and only if the backward pass is to add in a fixed order.
  CudnnFlash(const Device& device,
             cudnnHandle_t handle,
             const FlashExtent& extent,
             std::unique_ptr<Flash> in_order)
      : device_(device),
        handle_(handle),
        extent_(extent),
        in_order_(std::move(in_order)),
        room_(device),
        dense_(device),
        ends_(device) {}
  CudnnFlash(const CudnnFlash&) = delete;
  CudnnFlash& operator=(const CudnnFlash&) = delete;
  ~CudnnFlash() override { fe::detail::destroy_handle(handle_); }

  std::string name() const override;
  void begin(const Batch& batch) override;
  void forward(const graft_attention_shape& shape, const FlashArrays& arrays) override;
  void backward(const graft_attention_shape& shape,
                const FlashArrays& arrays,
                const uint16_t* dout,
                const FlashGradients& gradients) override;

 private:
  using Bindings = std::unordered_map<int64_t, void*>;

  // Arrays without gaps, [tokens, kv_heads, head_dim], and cuDNN's own workspace behind them.
  struct Dense {
    uint16_t *k, *v, *dk, *dv;
    std::byte* workspace;
    int64_t workspace_bytes;
  };

  Dense dense_of(const FlashGradients& gradients);
  Key key_of(const graft_attention_shape& shape, const Group& group) const;
  // The known graph, or one that is built now.
  const Graph& graph_of(std::map<Key, Graph>& known,
                        const Key& key,
                        Graph (CudnnFlash::*build)(const Key&) const) const;
  Graph build_forward(const Key& key) const;
  Graph build_backward(const Key& key) const;
  Graph finish(std::shared_ptr<fe::graph::Graph> graph) const;
  void make_groups(const Batch& batch);
  // Where the group's documents begin in an array with rows `stride` values apart; their lengths
  // for 0.
  void* ends_of(const Group& group, int64_t stride);
  // What both passes are given.
  Bindings bindings_of(const graft_attention_shape& shape,
                       const Group& group,
                       const FlashArrays& arrays);
  void run(const Graph& graph, Bindings& bindings, std::byte* workspace, int64_t bytes);

  Device device_;
  cudnnHandle_t handle_;
  FlashExtent extent_;
  std::unique_ptr<Flash> in_order_;  // takes the batches whose order would cost cuDNN too much
  std::map<Key, Graph> forward_, backward_;
  Room room_, dense_, ends_;

  // Of the batch.
  bool defers_ = false;  // to in_order_
  std::vector<Group> groups_;
  size_t entries_ = 0;            // of all groups in an array of ends
  std::vector<int32_t> begins_;   // of the documents, and the end of the last
  std::vector<int64_t> strides_;  // whose ends are in the device's memory
};

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

// [documents, heads, longest, head_dim] with rows `stride` values apart.
void place(fe::graph::Tensor_attributes& attributes,
           Name name,
           const Key& key,
           int64_t heads,
           int64_t stride,
           const TensorPtr& ends) {
  attributes.set_uid(name)
      .set_dim({key.documents, heads, key.longest, key.head_dim})
      .set_stride({key.longest * stride, key.head_dim, stride, 1})
      .set_ragged_offset(ends);
}

TensorPtr values(fe::graph::Graph& graph,
                 Name name,
                 const Key& key,
                 int64_t heads,
                 int64_t stride,
                 const TensorPtr& ends) {
  fe::graph::Tensor_attributes attributes;
  place(attributes, name, key, heads, stride, ends);
  return graph.tensor(attributes);
}

// What both passes read.
struct Inputs {
  Inputs(fe::graph::Graph& graph, const Key& key)
      : q_ends(counts(graph, kQEnds, key.documents + 1)),
        k_ends(counts(graph, kKEnds, key.documents + 1)),
        v_ends(counts(graph, kVEnds, key.documents + 1)),
        q(values(graph, kQ, key, key.heads, key.q_stride, q_ends)),
        k(values(graph, kK, key, key.kv_heads, key.k_stride, k_ends)),
        v(values(graph, kV, key, key.kv_heads, key.v_stride, v_ends)) {}
  TensorPtr q_ends, k_ends, v_ends, q, k, v;
};

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
  const Inputs in(g, key);
  auto attributes = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
  mask(attributes, key, counts(g, kLengths, key.documents));
  auto [out, sums] = g.sdpa(in.q, in.k, in.v, attributes);
  out->set_output(true);
  place(*out, kOut, key, key.heads, key.out_stride, counts(g, kOutEnds, ends));
  sums->set_output(true);
  set_sums(*sums, key, counts(g, kSumsEnds, ends));
  return finish(std::move(graph));
}

Graph CudnnFlash::build_backward(const Key& key) const {
  auto graph = new_graph();
  fe::graph::Graph& g = *graph;
  const int64_t ends = key.documents + 1;
  const Inputs in(g, key);
  const TensorPtr out_ends = counts(g, kOutEnds, ends);
  const TensorPtr out = values(g, kOut, key, key.heads, key.out_stride, out_ends);
  const TensorPtr dout = values(g, kDOut, key, key.heads, key.out_stride, out_ends);
  fe::graph::Tensor_attributes kept;
  set_sums(kept, key, counts(g, kSumsEnds, ends));
  const TensorPtr sums = g.tensor(kept);
  auto attributes = fe::graph::SDPA_backward_attributes()
                        .set_name("attention backward")
                        .set_deterministic_algorithm(in_order_ != nullptr)
                        .set_max_total_seq_len_q(extent_.tokens)
                        .set_max_total_seq_len_kv(extent_.tokens);
  mask(attributes, key, counts(g, kLengths, key.documents));
  auto [dq, dk, dv] = g.sdpa_backward(in.q, in.k, in.v, out, dout, sums, attributes);
  for (const TensorPtr& result : {dq, dk, dv}) result->set_output(true);
  place(*dq, kDQ, key, key.heads, key.q_stride, in.q_ends);
  place(*dk, kDK, key, key.kv_heads, key.k_stride, in.k_ends);
  place(*dv, kDV, key, key.kv_heads, key.v_stride, in.v_ends);
  return finish(std::move(graph));
}

std::string CudnnFlash::name() const {
  const size_t version = fe::detail::get_backend_version();  // 91900 is 9.19.0
  return "cuDNN " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
         "'s attention";
}

// To add in a fixed order cuDNN writes the gradients of all scores out, [documents, heads, longest,
// longest] of bfloat16: documents of like length go together, and as many as there is room for.
void CudnnFlash::make_groups(const Batch& batch) {
  groups_.clear();
  std::map<int64_t, std::vector<size_t>> by_length;
  int64_t longest = 1;
  for (size_t i = 0; i + 1 < begins_.size(); ++i) {
    const int64_t length = power_of_two(std::max<int64_t>(begins_[i + 1] - begins_[i], 1));
    longest = std::max({longest, length, kTile});
    by_length[in_order_ != nullptr ? std::max(length, kTile) : 0].push_back(i);
  }
  defers_ = in_order_ != nullptr && extent_.order_bytes(1, longest) > extent_.most_for_order();
  if (defers_) return in_order_->begin(batch);
  for (auto& [length, members] : by_length) {
    const int64_t longest_here = length > 0 ? length : longest;
    size_t most = members.size();
    if (in_order_ != nullptr) {
      const int64_t fit = extent_.most_for_order() / extent_.order_bytes(1, longest_here);
      most = static_cast<size_t>(std::bit_floor(static_cast<uint64_t>(fit)));
    }
    for (size_t at = 0; at < members.size(); at += most) {
      const size_t count = std::min(most, members.size() - at);
      const auto first = members.begin() + static_cast<std::ptrdiff_t>(at);
      groups_.push_back({power_of_two(static_cast<int64_t>(count)),
                         longest_here,
                         {first, first + static_cast<std::ptrdiff_t>(count)},
                         0});
    }
  }
}

void CudnnFlash::begin(const Batch& batch) {
  begins_ = batch.cu_seqlens;
  strides_.clear();
  entries_ = 0;
  make_groups(batch);
  for (Group& group : groups_) {
    group.begin = entries_;
    entries_ += static_cast<size_t>(group.documents) + 1;
  }
}

void* CudnnFlash::ends_of(const Group& group, int64_t stride) {
  auto* const arrays = reinterpret_cast<int32_t*>(
      ends_.get(static_cast<int64_t>((kMostStrides + 1) * entries_ * sizeof(int32_t))));
  const auto found = std::find(strides_.begin(), strides_.end(), stride);
  const auto place = static_cast<size_t>(found - strides_.begin());
  if (found == strides_.end()) {
    if (strides_.size() > kMostStrides) {
      fail(ExitCode::kBug, "attention's arrays have more than 16 different strides");
    }
    if (begins_.back() * stride > INT32_MAX) {
      fail(ExitCode::kBug, "attention's array has more than 2^31 values");
    }
    std::vector<int32_t> values(entries_);  // documents that are not there: empty, at the start
    for (const Group& each : groups_) {
      for (size_t i = 0; i < each.members.size(); ++i) {
        const size_t at = each.members[i];
        const int64_t value =
            stride > 0 ? begins_[at] * stride : int64_t{begins_[at + 1]} - begins_[at];
        values[each.begin + i] = static_cast<int32_t>(value);
      }
    }
    device_.copy(arrays + place * entries_, values.data(), entries_ * sizeof(int32_t));
    device_.wait();  // `values` ends here
    strides_.push_back(stride);
  }
  return arrays + place * entries_ + group.begin;
}

Key CudnnFlash::key_of(const graft_attention_shape& shape, const Group& group) const {
  return {group.documents,  group.longest,  shape.heads,    shape.kv_heads,
          shape.head_dim,   shape.q_stride, shape.k_stride, shape.v_stride,
          shape.out_stride, shape.window,   shape.scale};
}

const Graph& CudnnFlash::graph_of(std::map<Key, Graph>& known,
                                  const Key& key,
                                  Graph (CudnnFlash::*build)(const Key&) const) const {
  auto found = known.find(key);
  if (found == known.end()) found = known.emplace(key, (this->*build)(key)).first;
  return found->second;
}

void CudnnFlash::run(const Graph& graph, Bindings& bindings, std::byte* workspace, int64_t bytes) {
  std::byte* const at = graph.workspace <= bytes ? workspace : room_.get(graph.workspace);
  check_cudnn(graph.graph->execute(handle_, bindings, at), "execution");
}

void* plain(const void* values) {
  return const_cast<void*>(values);
}

CudnnFlash::Bindings CudnnFlash::bindings_of(const graft_attention_shape& shape,
                                             const Group& group,
                                             const FlashArrays& arrays) {
  return {{kQ, plain(arrays.q)},
          {kK, plain(arrays.k)},
          {kV, plain(arrays.v)},
          {kOut, arrays.out},
          {kSums, arrays.lse},
          {kLengths, ends_of(group, 0)},
          {kQEnds, ends_of(group, shape.q_stride)},
          {kKEnds, ends_of(group, shape.k_stride)},
          {kVEnds, ends_of(group, shape.v_stride)},
          {kOutEnds, ends_of(group, shape.out_stride)},
          {kSumsEnds, ends_of(group, shape.heads)}};
}

void CudnnFlash::forward(const graft_attention_shape& shape, const FlashArrays& arrays) {
  if (defers_) return in_order_->forward(shape, arrays);
  for (const Group& group : groups_) {
    Bindings bindings = bindings_of(shape, group, arrays);
    run(graph_of(forward_, key_of(shape, group), &CudnnFlash::build_forward), bindings, nullptr, 0);
  }
}

CudnnFlash::Dense CudnnFlash::dense_of(const FlashGradients& gradients) {
  const int64_t dense_bytes = extent_.dense_bytes();
  std::byte* workspace = gradients.workspace;
  int64_t bytes = gradients.workspace_bytes;
  if (bytes < dense_bytes) {
    workspace = dense_.get(dense_bytes);
    bytes = dense_bytes;
  }
  const auto part = [&](int64_t index) {
    return reinterpret_cast<uint16_t*>(workspace + index * dense_bytes / 4);
  };
  return {part(0), part(1), part(2), part(3), workspace + dense_bytes, bytes - dense_bytes};
}

void CudnnFlash::backward(const graft_attention_shape& shape,
                          const FlashArrays& arrays,
                          const uint16_t* dout,
                          const FlashGradients& gradients) {
  if (defers_) return in_order_->backward(shape, arrays, dout, gradients);
  const Dense dense = dense_of(gradients);
  // Keys, values and their gradients without gaps. cuDNN's sums of all query heads have the
  // gradients' gaps, as many times as heads share a key; and gradients have to lie as the keys do:
  // cuDNN 9.14 puts them where the keys' documents begin, whatever other places they were given.
  graft_attention_shape packed = shape;
  packed.k_stride = packed.v_stride = shape.kv_heads * shape.head_dim;
  const auto copy = [&](const uint16_t* from, int64_t from_stride, uint16_t* to, int64_t stride) {
    check(graft_convert(from, GRAFT_BF16, from_stride, to, GRAFT_BF16, stride, shape.tokens,
                        packed.k_stride, 1, device_.kind, device_.stream));
  };
  copy(arrays.k, shape.k_stride, dense.k, packed.k_stride);
  copy(arrays.v, shape.v_stride, dense.v, packed.v_stride);
  FlashArrays without_gaps = arrays;
  without_gaps.k = dense.k;
  without_gaps.v = dense.v;
  for (const Group& group : groups_) {
    Bindings bindings = bindings_of(packed, group, without_gaps);
    bindings.insert({{kDOut, plain(dout)}, {kDQ, gradients.dq}, {kDK, dense.dk}, {kDV, dense.dv}});
    run(graph_of(backward_, key_of(packed, group), &CudnnFlash::build_backward), bindings,
        dense.workspace, dense.workspace_bytes);
  }
  copy(dense.dk, packed.k_stride, gradients.dk, shape.k_stride);
  copy(dense.dv, packed.v_stride, gradients.dv, shape.v_stride);
}

}  // namespace

std::unique_ptr<Flash> load_cudnn_flash(const Device& device,
                                        const FlashExtent& extent,
                                        bool deterministic,
                                        std::string* reason) {
  if (extent.head_dim > 128) {
    *reason = "cuDNN's backward pass takes heads of at most 128";
    return nullptr;
  }
  // LibTorch's own, where it is there: loading LibTorch loads it, and a process has only one. A
  // system's can be years older.
  void* library = nullptr;
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) {
    library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
  }
  if (library == nullptr) library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
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
    return std::make_unique<CudnnFlash>(device, handle, extent, std::move(in_order));
  } catch (const std::exception& error) {
    *reason = error.what();
    return nullptr;
  }
}

}  // namespace graft::train

#else

namespace graft::train {

std::unique_ptr<Flash> load_cudnn_flash(const Device& /*device*/,
                                        const FlashExtent& /*extent*/,
                                        bool /*deterministic*/,
                                        std::string* reason) {
  *reason = "built without cuDNN's headers";
  return nullptr;
}

}  // namespace graft::train

#endif
