// Embedding rows and their gradient on a GPU, and on the emulated device.
//
// Forward: one block per token copies a row, 8 B a value. Backward: the block of an id's first
// token adds all its tokens in order, so that no two blocks write one row and no atomic is needed;
// each block reads the ids, 4 B a token, from the second-level cache.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(const int32_t* __restrict__ ids,
                             const float* __restrict__ table,
                             int64_t vocab,
                             int64_t dim,
                             float* __restrict__ out) {
  const int64_t token = blockIdx.x, id = ids[token];
  const bool known = id >= 0 && id < vocab;
  const float missing = __uint_as_float(0x7fc00000u);
  for (int64_t i = 4 * threadIdx.x; i < dim; i += 4 * kThreads) {
    const float4 row = known ? load_four<kAligned>(table + id * dim + i, dim - i)
                             : float4{missing, missing, missing, missing};
    store_four<kAligned>(out + token * dim + i, row, dim - i);
  }
}

struct EmbeddingShared {
  int32_t id[kThreads];
  int earlier;
};

__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(const float* __restrict__ dout,
                              const int32_t* __restrict__ ids,
                              int64_t tokens,
                              int64_t vocab,
                              int64_t dim,
                              float* __restrict__ dtable) {
  GRAFT_SHARED(EmbeddingShared, shared);
  const int64_t token = blockIdx.x, id = ids[token];
  if (id < 0 || id >= vocab) return;  // the whole block
  if (threadIdx.x == 0) shared.earlier = 0;
  __syncthreads();
  bool found = false;
  for (int64_t i = threadIdx.x; i < token; i += kThreads) found = found || ids[i] == id;
  if (found) atomicOr(&shared.earlier, 1);
  __syncthreads();
  if (shared.earlier != 0) return;  // the whole block: an earlier token owns the row
  for (int64_t base = token; base < tokens; base += kThreads) {
    __syncthreads();
    shared.id[threadIdx.x] = base + threadIdx.x < tokens ? ids[base + threadIdx.x] : -1;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      float sum = dtable[id * dim + i];
      for (int64_t j = 0; j < kThreads; ++j) {
        if (shared.id[j] == id) sum = __fadd_rn(sum, dout[(base + j) * dim + i]);
      }
      dtable[id * dim + i] = sum;
    }
  }
}

}  // namespace

graft_status embedding_forward(const int32_t* ids,
                               int64_t tokens,
                               const float* table,
                               int64_t vocab,
                               int64_t dim,
                               float* out,
                               graft_stream stream) {
  constexpr const char* kName = "graft_embedding_forward";
  if (const graft_status status = check_grid(kName, tokens)) return status;
  const unsigned grid = static_cast<unsigned>(tokens);
  if (dim % 4 == 0 && aligned_to_16(table, out)) {
    GRAFT_LAUNCH((embedding_forward_kernel<true>), grid, kThreads, stream, ids, table, vocab, dim,
                 out);
  } else {
    GRAFT_LAUNCH((embedding_forward_kernel<false>), grid, kThreads, stream, ids, table, vocab, dim,
                 out);
  }
  return launch_status(kName);
}

graft_status embedding_backward(const float* dout,
                                const int32_t* ids,
                                int64_t tokens,
                                int64_t vocab,
                                int64_t dim,
                                float* dtable,
                                graft_stream stream) {
  constexpr const char* kName = "graft_embedding_backward";
  if (const graft_status status = check_grid(kName, tokens)) return status;
  GRAFT_LAUNCH(embedding_backward_kernel, static_cast<unsigned>(tokens), kThreads, stream, dout,
               ids, tokens, vocab, dim, dtable);
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
