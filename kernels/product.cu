// Matrix products on a GPU through cuBLASLt, and on the emulated device.
//
// cuBLASLt is column-major: the row-major C = op(A) op(B) is the column-major C^T = op(B)^T op(A)^T
// in the same memory, so B comes first and every array keeps its transpose and stride. Sums are
// float32; CUBLAS_COMPUTE_32F leaves float32 operands as they are (no TF32). A plan is an algorithm
// that the heuristic gave for 4096 rows, that splits and reduces no sum, and that cuBLASLt accepts
// for few and odd numbers of rows too.
//
// Hopper's kernels take a workspace of 4 bytes where a product has more tiles than run at once: a
// counter of which tile is next. Who computes a tile does not change its sums. Partial sums, which
// would, need as much as the result has, so a plan may use kWorkspaceBytes and no more.
#include <array>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#if defined(__CUDACC__)
#include <dlfcn.h>
#endif

#include "kernels/cublaslt.h"
#include "kernels/device_functions.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr const char* kName = "graft_multiply";
constexpr int64_t kReferenceRows = 4096;
// Rows, or tokens of a sum, that a plan has to work for.
constexpr int64_t kTriedRows[] = {1, 7, 256, kReferenceRows};
constexpr int kOffers = 32;
constexpr size_t kWorkspaceBytes = 1024;

graft_status failed(const CublasLt& library, const char* what, cublasStatus_t status) {
  return fail(GRAFT_DEVICE_ERROR, kName, "cuBLASLt: %s: %s", what, library.status_string(status));
}

// What beta multiplies: C itself or another array.
struct Addend {
  const void* values;
  int64_t stride;
};

// Whether a product's pointers and strides are whole 16 bytes.
bool in_whole_16_bytes(const graft_product& p, const Addend& addend) {
  const auto whole = [](const void* pointer, int64_t stride, graft_float_type type) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * size_of(type) % 16 == 0;
  };
  return whole(p.a, p.lda, p.type) && whole(p.b, p.ldb, p.type) && whole(p.c, p.ldc, p.c_type) &&
         whole(addend.values, addend.stride, p.c_type);
}

// What a plan depends on: not the number of rows, or of tokens in a sum over them.
struct PlanKey {
  int device;
  graft_transpose ta, tb;
  graft_float_type type, c_type;
  int64_t first, second;  // n and k, or m and n
  bool aligned;
  bool adds_another;  // than C

  explicit PlanKey(const graft_product& p, const Addend& addend, int on_device, bool is_aligned)
      : device(on_device),
        ta(p.ta),
        tb(p.tb),
        type(p.type),
        c_type(p.c_type),
        first(p.ta == GRAFT_N ? p.n : p.m),
        second(p.ta == GRAFT_N ? p.k : p.n),
        aligned(is_aligned),
        adds_another(addend.values != p.c) {}
  bool operator<(const PlanKey& other) const {
    const auto all = [](const PlanKey& key) {
      return std::tie(key.device, key.ta, key.tb, key.type, key.c_type, key.first, key.second,
                      key.aligned, key.adds_another);
    };
    return all(*this) < all(other);
  }
};

// One product as cuBLASLt sees it, on the stack; column-major: its A is graft's B. It adds what
// graft calls D and writes C; cuBLASLt has the two names the other way round.
struct Description {
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, added, result;
};

cudaDataType data_type(graft_float_type type) {
  return type == GRAFT_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

graft_status describe_product(const CublasLt& library,
                              const graft_product& p,
                              const Addend& addend,
                              Description* out) {
  cublasStatus_t status =
      library.product_init(&out->product, sizeof out->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, graft_transpose transpose) {
    const cublasOperation_t operation = transpose == GRAFT_T ? CUBLAS_OP_T : CUBLAS_OP_N;
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = library.product_set(&out->product, attribute, &operation, sizeof operation);
    }
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.tb);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.ta);
  // A row-major [rows, columns] array is the column-major [columns, rows].
  const auto lay_out = [&](cublasLtMatrixLayoutOpaque_t* layout, graft_float_type type,
                           int64_t rows, int64_t columns, int64_t stride) {
    if (status == CUBLAS_STATUS_SUCCESS) {
      status =
          library.layout_init(layout, sizeof *layout, data_type(type),
                              static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), stride);
    }
  };
  lay_out(&out->a, p.type, p.tb == GRAFT_N ? p.k : p.n, p.tb == GRAFT_N ? p.n : p.k, p.ldb);
  lay_out(&out->b, p.type, p.ta == GRAFT_N ? p.m : p.k, p.ta == GRAFT_N ? p.k : p.m, p.lda);
  lay_out(&out->added, p.c_type, p.m, p.n, addend.stride);
  lay_out(&out->result, p.c_type, p.m, p.n, p.ldc);
  return status == CUBLAS_STATUS_SUCCESS ? GRAFT_OK : failed(library, "description", status);
}

// The product with another number of rows, or of tokens in its sum.
graft_product with_rows(graft_product p, int64_t rows) {
  if (p.ta == GRAFT_N) {
    p.m = rows;
    return p;
  }
  p.k = rows;
  // A B that is stored [n, k] has longer rows then.
  if (p.tb == GRAFT_T && p.ldb < rows) p.ldb = (rows + 7) / 8 * 8;
  return p;
}

graft_status set_preference(const CublasLt& library,
                            bool aligned,
                            const graft_product& p,
                            cublasLtMatmulPreferenceOpaque_t* preference) {
  cublasStatus_t status = library.preference_init(preference, sizeof *preference);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = library.preference_set(preference, attribute, &value, sizeof value);
    }
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
  const uint32_t bytes = aligned ? 16 : static_cast<uint32_t>(size_of(p.type));
  const uint32_t c_bytes = aligned ? 16 : static_cast<uint32_t>(size_of(p.c_type));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_bytes);
  return status == CUBLAS_STATUS_SUCCESS ? GRAFT_OK : failed(library, "preference", status);
}

bool keeps_sums_whole(const CublasLt& library, const cublasLtMatmulAlgo_t& algorithm) {
  const auto is = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, uint32_t expected) {
    uint32_t value = ~expected;
    size_t written = 0;
    return library.algorithm_get(&algorithm, attribute, &value, sizeof value, &written) ==
               CUBLAS_STATUS_SUCCESS &&
           value == expected;
  };
  return is(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 1) &&
         is(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, CUBLASLT_REDUCTION_SCHEME_NONE);
}

// Whether the algorithm keeps its sums whole and works for every number of rows tried.
bool is_usable(const CublasLt& library,
               cublasLtHandle_t handle,
               const graft_product& p,
               const Addend& addend,
               const cublasLtMatmulAlgo_t& algorithm) {
  if (!keeps_sums_whole(library, algorithm)) return false;
  for (const int64_t rows : kTriedRows) {
    Description tried;
    if (describe_product(library, with_rows(p, rows), addend, &tried) != GRAFT_OK) return false;
    cublasLtMatmulHeuristicResult_t result{};
    if (library.check(handle, &tried.product, &tried.a, &tried.b, &tried.added, &tried.result,
                      &algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > kWorkspaceBytes) {
      return false;
    }
  }
  return true;
}

graft_status choose(const CublasLt& library,
                    cublasLtHandle_t handle,
                    graft_product p,
                    const Addend& addend,
                    bool aligned,
                    cublasLtMatmulAlgo_t* algorithm) {
  p = with_rows(p, kReferenceRows);
  Description reference;
  if (const graft_status status = describe_product(library, p, addend, &reference)) return status;
  cublasLtMatmulPreferenceOpaque_t preference;
  if (const graft_status status = set_preference(library, aligned, p, &preference)) return status;
  std::array<cublasLtMatmulHeuristicResult_t, kOffers> offers{};
  int count = 0;
  const cublasStatus_t status =
      library.heuristics(handle, &reference.product, &reference.a, &reference.b, &reference.added,
                         &reference.result, &preference, kOffers, offers.data(), &count);
  if (status != CUBLAS_STATUS_SUCCESS) return failed(library, "heuristic", status);
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& offer = offers[static_cast<size_t>(i)];
    if (offer.state != CUBLAS_STATUS_SUCCESS) continue;
    if (!is_usable(library, handle, p, addend, offer.algo)) continue;
    *algorithm = offer.algo;
    return GRAFT_OK;
  }
  return fail(GRAFT_DEVICE_ERROR, kName,
              "none of cuBLASLt's %d algorithms for n %lld, k %lld keeps its sums whole", count,
              static_cast<long long>(p.n), static_cast<long long>(p.k));
}

// Handles by device, plans by key, and workspaces by device and stream: products of one stream
// follow one another, those of two may run at once. Found under one lock.
struct Plans {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> handles;
  std::map<PlanKey, cublasLtMatmulAlgo_t> algorithms;
  std::map<std::pair<int, graft_stream>, void*> workspaces;
};
Plans& plans() {
  static Plans all;
  return all;
}

struct Plan {
  cublasLtHandle_t handle;
  cublasLtMatmulAlgo_t algorithm;
  void* workspace;  // of kWorkspaceBytes
};

graft_status failed(cudaError_t error) {
  return fail(GRAFT_DEVICE_ERROR, kName, "%s", cudaGetErrorString(error));
}

graft_status plan_of(const CublasLt& library,
                     const graft_product& p,
                     const Addend& addend,
                     graft_stream stream,
                     Plan* plan) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return failed(error);
  const bool aligned = in_whole_16_bytes(p, addend);
  Plans& all = plans();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto [handle, is_new] = all.handles.try_emplace(device, cublasLtHandle_t{});
  if (is_new) {
    const cublasStatus_t status = library.create(&handle->second);
    if (status != CUBLAS_STATUS_SUCCESS) {
      all.handles.erase(handle);
      return failed(library, "handle", status);
    }
  }
  plan->handle = handle->second;
  const auto [workspace, is_new_stream] = all.workspaces.try_emplace({device, stream}, nullptr);
  if (is_new_stream) {
    const cudaError_t error = cudaMalloc(&workspace->second, kWorkspaceBytes);
    if (error != cudaSuccess) {
      all.workspaces.erase(workspace);
      return failed(error);
    }
  }
  plan->workspace = workspace->second;
  const PlanKey key(p, addend, device, aligned);
  const auto known = all.algorithms.find(key);
  if (known != all.algorithms.end()) {
    plan->algorithm = known->second;
    return GRAFT_OK;
  }
  if (const graft_status status =
          choose(library, plan->handle, p, addend, aligned, &plan->algorithm)) {
    return status;
  }
  all.algorithms.emplace(key, plan->algorithm);
  return GRAFT_OK;
}

}  // namespace

graft_status multiply(const graft_product& p, const void* d, int64_t ldd, graft_stream stream) {
  const Addend addend{d, ldd};
  if (p.k == 0 || p.alpha == 0.0f) {
    if (p.beta != 0.0f) {
      const Conversion scaling{addend.values, p.c,           p.c_type, p.c_type,
                               p.n,           addend.stride, p.ldc,    p.beta};
      return conversion(scaling, p.m, stream);
    }
    const size_t element = static_cast<size_t>(size_of(p.c_type));
    const cudaError_t error = cudaMemset2DAsync(
        p.c, static_cast<size_t>(p.ldc) * element, 0, static_cast<size_t>(p.n) * element,
        static_cast<size_t>(p.m), static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? GRAFT_OK : failed(error);
  }
  std::string reason;
  const CublasLt* const library = cublaslt(&reason);
  if (library == nullptr) return fail(GRAFT_NO_DEVICE, kName, "%s", reason.c_str());
  Plan plan;
  if (const graft_status status = plan_of(*library, p, addend, stream, &plan)) return status;
  Description description;
  if (const graft_status status = describe_product(*library, p, addend, &description)) {
    return status;
  }
  const cublasStatus_t status = library->multiply(
      plan.handle, &description.product, &p.alpha, p.b, &description.a, p.a, &description.b,
      &p.beta, addend.values, &description.added, p.c, &description.result, &plan.algorithm,
      plan.workspace, kWorkspaceBytes, static_cast<cudaStream_t>(stream));
  return status == CUBLAS_STATUS_SUCCESS ? GRAFT_OK : failed(*library, "product", status);
}

#if defined(__CUDACC__)

namespace {

// Where the library is: already in the process (LibTorch), where the loader looks, or beside CUDA.
void* open_library(std::string* reason) {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  for (const std::string& path : {name, "/usr/local/cuda/lib64/" + name}) {
    if (void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    if (!reason->empty()) continue;
    const char* const words = dlerror();
    *reason = words != nullptr ? words : name + " not found";
  }
  return nullptr;
}

template <class Function>
bool resolve(void* library, const char* name, Function*& function, std::string* reason) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr && reason->empty()) *reason = std::string("libcublasLt has no ") + name;
  return function != nullptr;
}

struct Loaded {
  CublasLt table{};
  bool complete = false;
  std::string reason;
};

Loaded load() {
  Loaded loaded;
  void* const library = open_library(&loaded.reason);
  if (library == nullptr) return loaded;
  loaded.reason.clear();
  CublasLt& t = loaded.table;
  std::string* const why = &loaded.reason;
  loaded.complete =
      resolve(library, "cublasLtCreate", t.create, why) &&
      resolve(library, "cublasLtGetStatusString", t.status_string, why) &&
      resolve(library, "cublasLtMatmulDescInit_internal", t.product_init, why) &&
      resolve(library, "cublasLtMatmulDescSetAttribute", t.product_set, why) &&
      resolve(library, "cublasLtMatrixLayoutInit_internal", t.layout_init, why) &&
      resolve(library, "cublasLtMatmulPreferenceInit_internal", t.preference_init, why) &&
      resolve(library, "cublasLtMatmulPreferenceSetAttribute", t.preference_set, why) &&
      resolve(library, "cublasLtMatmulAlgoGetHeuristic", t.heuristics, why) &&
      resolve(library, "cublasLtMatmulAlgoCheck", t.check, why) &&
      resolve(library, "cublasLtMatmulAlgoConfigGetAttribute", t.algorithm_get, why) &&
      resolve(library, "cublasLtMatmul", t.multiply, why);
  return loaded;
}

}  // namespace

const CublasLt* cublaslt(std::string* reason) {
  static const Loaded loaded = load();
  *reason = "no cuBLASLt: " + loaded.reason;
  return loaded.complete ? &loaded.table : nullptr;
}

#endif

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
