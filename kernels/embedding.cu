// Embedding rows and their gradient on a GPU, and on the emulated device.
//
// Forward: one block per token copies a row, 8 B a value; scattering is its inverse. Backward: the
// block of an id's first token adds all its tokens in order, so that no two blocks write one row
// and no atomic is needed; each block reads the ids, 4 B a token, from the second-level cache.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kThreads) embedding_forward_kernel(EmbeddingRows call) {
  const int64_t token = blockIdx.x, id = call.ids[token], dim = call.dim;
  const bool known = id >= 0 && id < call.vocab;
  const float missing = __uint_as_float(0x7fc00000u);
  const Element* const from = static_cast<const Element*>(call.table) + id * dim;
  Element* const to = static_cast<Element*>(call.out) + token * dim;
  for (int64_t i = 4 * threadIdx.x; i < dim; i += 4 * kThreads) {
    const float4 row =
        known ? load_four<kAligned>(from + i, dim - i) : float4{missing, missing, missing, missing};
    store_four<kAligned>(to + i, row, dim - i);
  }
}

struct EmbeddingShared {
  int32_t id[kThreads];
  int earlier;
};

template <class Element>
__global__ void __launch_bounds__(kThreads) embedding_backward_kernel(EmbeddingRows call) {
  GRAFT_SHARED(EmbeddingShared, shared);
  const int32_t* const ids = call.ids;
  const int64_t token = blockIdx.x, id = ids[token], dim = call.dim;
  const Element* const dout = static_cast<const Element*>(call.dout);
  if (id < 0 || id >= call.vocab) return;  // the whole block
  if (threadIdx.x == 0) shared.earlier = 0;
  __syncthreads();
  bool found = false;
  for (int64_t i = threadIdx.x; i < token; i += kThreads) found = found || ids[i] == id;
  if (found) atomicOr(&shared.earlier, 1);
  __syncthreads();
  if (shared.earlier != 0) return;  // the whole block: an earlier token owns the row
  for (int64_t base = token; base < call.tokens; base += kThreads) {
    __syncthreads();
    shared.id[threadIdx.x] = base + threadIdx.x < call.tokens ? ids[base + threadIdx.x] : -1;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      float sum = call.dtable[id * dim + i];
      for (int64_t j = 0; j < kThreads; ++j) {
        if (shared.id[j] == id) sum = __fadd_rn(sum, to_float(dout[(base + j) * dim + i]));
      }
      call.dtable[id * dim + i] = sum;
    }
  }
}

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kThreads) scatter_rows_kernel(ScatteredRows call) {
  const int64_t row = blockIdx.x, target = call.rows[row], dim = call.dim;
  if (target < 0 || target >= call.tokens) return;  // the whole block
  const Element* const from = static_cast<const Element*>(call.from) + row * dim;
  Element* const to = static_cast<Element*>(call.to) + target * dim;
  for (int64_t i = 4 * threadIdx.x; i < dim; i += 4 * kThreads) {
    store_four<kAligned>(to + i, load_four<kAligned>(from + i, dim - i), dim - i);
  }
}

}  // namespace

graft_status embedding_forward(const EmbeddingRows& call, graft_stream stream) {
  constexpr const char* kName = "graft_embedding_forward";
  if (const graft_status status = check_grid(kName, call.tokens)) return status;
  const unsigned grid = static_cast<unsigned>(call.tokens);
  const bool aligned = call.dim % 4 == 0 && aligned_for_four(call.type, call.table, call.out);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    GRAFT_LAUNCH((embedding_forward_kernel<decltype(element), is_aligned.value>), grid, kThreads,
                 stream, call);
  });
  return launch_status(kName);
}

graft_status embedding_backward(const EmbeddingRows& call, graft_stream stream) {
  constexpr const char* kName = "graft_embedding_backward";
  if (const graft_status status = check_grid(kName, call.tokens)) return status;
  for_element(call.type, [&](auto element) {
    GRAFT_LAUNCH((embedding_backward_kernel<decltype(element)>), static_cast<unsigned>(call.tokens),
                 kThreads, stream, call);
  });
  return launch_status(kName);
}

graft_status scatter_rows(const ScatteredRows& call, graft_stream stream) {
  constexpr const char* kName = "graft_rows_scatter";
  if (const graft_status status = check_grid(kName, call.count)) return status;
  const bool aligned = call.dim % 4 == 0 && aligned_for_four(call.type, call.from, call.to);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    GRAFT_LAUNCH((scatter_rows_kernel<decltype(element), is_aligned.value>),
                 static_cast<unsigned>(call.count), kThreads, stream, call);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
