#include "kernels/emu/cublaslt.h"

#include <atomic>
#include <cstring>

#include "kernels/cublaslt.h"
#include "kernels/product_add.h"

using graft::kernels::emu::heuristic_calls;

namespace {

std::atomic<int> calls{0};
std::atomic<const void*> workspace_used{nullptr};

// What the heuristic offers, the best first.
constexpr cublasLtMatmulAlgo_t kOffers[] = {{4, CUBLASLT_REDUCTION_SCHEME_NONE, 0},
                                            {1, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 0},
                                            {1, CUBLASLT_REDUCTION_SCHEME_NONE, size_t{1} << 20},
                                            {1, CUBLASLT_REDUCTION_SCHEME_NONE, 0}};

using Counter = uint32_t;

bool counts_tiles(const cublasLtMatrixLayoutOpaque_t& d) {
  return d.rows * d.columns > graft::kernels::emu::kWaveElements;
}
size_t workspace_bytes_of(const cublasLtMatmulAlgo_t& algorithm,
                          const cublasLtMatrixLayoutOpaque_t& d) {
  return algorithm.workspace_bytes + (counts_tiles(d) ? sizeof(Counter) : 0);
}

cublasStatus_t result_of(const cublasLtMatmulAlgo_t& algorithm,
                         const cublasLtMatrixLayoutOpaque_t& d,
                         cublasLtMatmulHeuristicResult_t* result) {
  *result = {algorithm, workspace_bytes_of(algorithm, d), CUBLAS_STATUS_SUCCESS};
  return CUBLAS_STATUS_SUCCESS;
}

// A column-major matrix is the transpose of the row-major one in the same memory: D^T = op(B)^T
// op(A)^T takes B first, and each keeps its own transpose.
graft_transpose transpose_of(cublasOperation_t operation) {
  return operation == CUBLAS_OP_T ? GRAFT_T : GRAFT_N;
}
graft_float_type type_of(const cublasLtMatrixLayoutOpaque_t& layout) {
  return layout.type == CUDA_R_32F ? GRAFT_F32 : GRAFT_BF16;
}

}  // namespace

namespace graft::kernels::emu {

int heuristic_calls() {
  return calls;
}

const void* last_workspace() {
  return workspace_used;
}

const CublasLt* cublaslt(std::string*) {
  static constexpr CublasLt kTable = {
      .create = cublasLtCreate,
      .status_string = cublasLtGetStatusString,
      .product_init = cublasLtMatmulDescInit_internal,
      .product_set = cublasLtMatmulDescSetAttribute,
      .layout_init = cublasLtMatrixLayoutInit_internal,
      .preference_init = cublasLtMatmulPreferenceInit_internal,
      .preference_set = cublasLtMatmulPreferenceSetAttribute,
      .heuristics = cublasLtMatmulAlgoGetHeuristic,
      .check = cublasLtMatmulAlgoCheck,
      .algorithm_get = cublasLtMatmulAlgoConfigGetAttribute,
      .multiply = cublasLtMatmul,
  };
  return &kTable;
}

}  // namespace graft::kernels::emu

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "success"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "an unsupported value was passed"
                                                 : "the functionality is not supported";
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t product,
                                               size_t,
                                               cublasComputeType_t,
                                               cudaDataType) {
  *product = {};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value,
                                              size_t size) {
  if (size != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &product->a : &product->b, value, size);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout,
                                                 size_t,
                                                 cudaDataType type,
                                                 uint64_t rows,
                                                 uint64_t columns,
                                                 int64_t ld) {
  *layout = {type, rows, columns, ld};
  return ld >= static_cast<int64_t>(rows) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t) {
  preference->workspace_bytes = 0;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value,
                                                    size_t size) {
  if (attribute != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return CUBLAS_STATUS_SUCCESS;
  if (size != sizeof preference->workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&preference->workspace_bytes, value, size);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t,
                                              cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t,
                                              int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* returned) {
  ++calls;
  *returned = 0;
  for (const cublasLtMatmulAlgo_t& offer : kOffers) {
    if (*returned < requested) result_of(offer, *d, results + (*returned)++);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t,
                                       cublasLtMatmulDesc_t,
                                       cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  return result_of(*algorithm, *d, result);
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value,
                                                    size_t size,
                                                    size_t* written) {
  const uint32_t& setting =
      attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? algorithm->split_k : algorithm->reduction;
  if (size != sizeof setting) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, &setting, size);
  *written = size;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t,
                              cublasLtMatmulDesc_t product,
                              const void* alpha,
                              const void* a,
                              cublasLtMatrixLayout_t a_layout,
                              const void* b,
                              cublasLtMatrixLayout_t b_layout,
                              const void* beta,
                              const void* c,
                              cublasLtMatrixLayout_t c_layout,
                              void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm,
                              void* workspace,
                              size_t workspace_bytes,
                              cudaStream_t) {
  // Split sums would not have the CPU's bits. In place the two layouts are one.
  if (algorithm->split_k != 1 || algorithm->reduction != CUBLASLT_REDUCTION_SCHEME_NONE ||
      c_layout->rows != d_layout->rows || c_layout->columns != d_layout->columns ||
      c_layout->type != d_layout->type || (c == d && c_layout->ld != d_layout->ld)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const size_t needed = workspace_bytes_of(*algorithm, *d_layout);
  if (needed > 0 && (workspace == nullptr || workspace_bytes < needed)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool a_turned = product->a == CUBLAS_OP_T, b_turned = product->b == CUBLAS_OP_T;
  const uint64_t depth = a_turned ? a_layout->rows : a_layout->columns;
  if (depth != (b_turned ? b_layout->columns : b_layout->rows) ||
      d_layout->rows != (a_turned ? a_layout->columns : a_layout->rows) ||
      d_layout->columns != (b_turned ? b_layout->rows : b_layout->columns)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const graft::kernels::emu::MemoryAccess access;
  if (counts_tiles(*d_layout)) {
    *static_cast<Counter*>(workspace) = static_cast<Counter>(d_layout->rows * d_layout->columns /
                                                             graft::kernels::emu::kWaveElements);
    workspace_used = workspace;
  }
  graft_product rows{};
  rows.ta = transpose_of(product->b);
  rows.tb = transpose_of(product->a);
  rows.m = static_cast<int64_t>(d_layout->columns);
  rows.n = static_cast<int64_t>(d_layout->rows);
  rows.k = static_cast<int64_t>(depth);
  rows.alpha = *static_cast<const float*>(alpha);
  rows.beta = *static_cast<const float*>(beta);
  rows.a = b;
  rows.lda = b_layout->ld;
  rows.b = a;
  rows.ldb = a_layout->ld;
  rows.c = d;
  rows.ldc = d_layout->ld;
  rows.type = type_of(*a_layout);
  rows.c_type = type_of(*d_layout);
  const graft_status status = c == d
                                  ? graft_multiply(&rows, GRAFT_CPU, nullptr)
                                  : graft_multiply_add(&rows, c, c_layout->ld, GRAFT_CPU, nullptr);
  return status == GRAFT_OK ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
