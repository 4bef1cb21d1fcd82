#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// Query rows of one forward task; at most kForwardRows of simd/attention.cpp. Whole tiles above
// 256: a document of 256 tokens is one task, which lays out its keys once.
constexpr int64_t kTaskRows = 264;

// Keys that a query sees when nothing limits them.
constexpr int64_t kNoWindow = std::numeric_limits<int32_t>::max();

graft_status check_score(const char* function, int64_t window, float softcap) {
  if (const graft_status status = check_counts(function, {{"window", window}})) return status;
  if (!(softcap >= 0.0f && std::isfinite(softcap))) {
    return fail(GRAFT_BAD_ARGUMENT, function, "softcap is %g, expected a finite number from 0",
                static_cast<double>(softcap));
  }
  return GRAFT_OK;
}

graft_status check_documents(const char* function, const graft_attention_shape& shape) {
  if (shape.cu_seqlens[0] != 0) {
    return fail(GRAFT_BAD_SHAPE, function, "cu_seqlens[0] is %d, expected 0", shape.cu_seqlens[0]);
  }
  for (int64_t i = 0; i < shape.documents; ++i) {
    if (shape.cu_seqlens[i + 1] < shape.cu_seqlens[i]) {
      return fail(GRAFT_BAD_SHAPE, function, "cu_seqlens[%lld] is %d, expected at least %d",
                  static_cast<long long>(i + 1), shape.cu_seqlens[i + 1], shape.cu_seqlens[i]);
    }
  }
  return GRAFT_OK;
}

graft_status check_shape(const char* function,
                         const graft_attention_shape* shape,
                         graft_device device) {
  if (const graft_status status = check_pointers(function, {{"shape", shape}})) return status;
  if (const graft_status status = check_element(function, shape->type)) return status;
  if (const graft_status status = check_counts(function, {{"documents", shape->documents},
                                                          {"heads", shape->heads, 1},
                                                          {"kv_heads", shape->kv_heads, 1},
                                                          {"head_dim", shape->head_dim, 8}})) {
    return status;
  }
  if (shape->head_dim > 256) {
    return fail(GRAFT_BAD_SHAPE, function, "head_dim is %lld, expected 8..256",
                static_cast<long long>(shape->head_dim));
  }
  if (shape->heads % shape->kv_heads != 0) {
    return fail(GRAFT_BAD_SHAPE, function, "heads is %lld, expected a multiple of kv_heads %lld",
                static_cast<long long>(shape->heads), static_cast<long long>(shape->kv_heads));
  }
  const int64_t q_width = shape->heads * shape->head_dim;
  const int64_t kv_width = shape->kv_heads * shape->head_dim;
  if (const graft_status status =
          check_counts(function, {{"q_stride", shape->q_stride, q_width},
                                  {"k_stride", shape->k_stride, kv_width},
                                  {"v_stride", shape->v_stride, kv_width},
                                  {"out_stride", shape->out_stride, q_width}})) {
    return status;
  }
  if (const graft_status status = check_pointers(function, {{"cu_seqlens", shape->cu_seqlens}})) {
    return status;
  }
  if (const graft_status status = check_score(function, shape->window, shape->softcap)) {
    return status;
  }
  if (device == GRAFT_CPU) return check_documents(function, *shape);
  return check_counts(function, {{"tokens", shape->tokens}});
}

int64_t token_count(const graft_attention_shape& shape, graft_device device = GRAFT_CPU) {
  return device == GRAFT_CPU ? shape.cu_seqlens[shape.documents] : shape.tokens;
}

// The shape with a window that is always one.
graft_attention_shape windowed(const graft_attention_shape& shape) {
  graft_attention_shape result = shape;
  if (result.window == 0) result.window = kNoWindow;
  return result;
}

int64_t longest_document(const graft_attention_shape& shape) {
  int64_t longest = 0;
  for (int64_t i = 0; i < shape.documents; ++i) {
    longest = std::max<int64_t>(longest, shape.cu_seqlens[i + 1] - shape.cu_seqlens[i]);
  }
  return longest;
}

struct Inputs {
  const void *q, *k, *v;
};

const void* moved(const void* p, int64_t elements, graft_float_type type) {
  return static_cast<const char*>(p) + elements * size_of(type);
}
void* moved(void* p, int64_t elements, graft_float_type type) {
  return static_cast<char*>(p) + elements * size_of(type);
}

AttentionHead head_of(const graft_attention_shape& shape,
                      const Inputs& inputs,
                      void* out,
                      float* lse,
                      int64_t document,
                      int64_t head) {
  const int64_t token = shape.cu_seqlens[document], d = shape.head_dim;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads);
  AttentionHead result;
  result.type = shape.type;
  result.q = moved(inputs.q, token * shape.q_stride + head * d, shape.type);
  result.k = moved(inputs.k, token * shape.k_stride + kv_head * d, shape.type);
  result.v = moved(inputs.v, token * shape.v_stride + kv_head * d, shape.type);
  result.out = moved(out, token * shape.out_stride + head * d, shape.type);
  result.lse = lse + token * shape.heads + head;
  result.q_stride = shape.q_stride;
  result.k_stride = shape.k_stride;
  result.v_stride = shape.v_stride;
  result.out_stride = shape.out_stride;
  result.lse_stride = shape.heads;
  result.length = shape.cu_seqlens[document + 1] - token;
  result.head_dim = d;
  result.window = shape.window > 0 ? shape.window : kNoWindow;
  result.scale = shape.scale;
  result.softcap = shape.softcap;
  return result;
}

// A gradient whose float32 sums are kept in the workspace, [tokens, heads, head_dim].
int64_t partial_floats(const graft_attention_shape& shape) {
  return token_count(shape) * shape.heads * shape.head_dim;
}
// Several query heads of one key/value head write their dk and dv apart, to be added in order; sums
// that continue from chunk to chunk cannot lie in bfloat16.
int64_t partial_arrays(const graft_attention_shape& shape) {
  if (shape.type == GRAFT_BF16) return 3;  // dk, dv, dq
  return shape.heads > shape.kv_heads ? 2 : 0;
}

// to [tokens, to_heads, head_dim] = the sums of each group of from [tokens, heads, head_dim].
void add_groups(const graft_attention_shape& shape,
                const float* from,
                int64_t to_heads,
                void* to,
                int64_t stride) {
  const int64_t group = shape.heads / to_heads, d = shape.head_dim;
  const int64_t tokens = token_count(shape);
  const Table& isa = table();
  for_pieces(tokens, 64, tokens * shape.heads * d, [&](int64_t begin, int64_t end) {
    float sum[256];  // the largest head_dim
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t head = 0; head < to_heads; ++head) {
        const float* const source = from + (token * shape.heads + head * group) * d;
        std::copy(source, source + d, sum);
        for (int64_t i = 1; i < group; ++i) {
          isa.addition({sum, source + i * d, GRAFT_F32, GRAFT_F32}, 0, d);
        }
        void* const target = moved(to, token * stride + head * d, shape.type);
        isa.conversion({sum, target, GRAFT_F32, shape.type, d, d, d, 1.0f}, 0, 1);
      }
    }
  });
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_attention_forward(const graft_attention_shape* shape,
                                                const void* q,
                                                const void* k,
                                                const void* v,
                                                void* out,
                                                float* lse,
                                                graft_device device,
                                                graft_stream stream) {
  constexpr const char* kName = "graft_attention_forward";
  if (const graft_status status = check_shape(kName, shape, device)) return status;
  if (token_count(*shape, device) == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"q", q}, {"k", k}, {"v", v}, {"out", out}, {"lse", lse}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.attention_forward({windowed(*shape), q, k, v, out, lse}, stream);
    });
  }
  const Table& isa = table();
  const Inputs inputs{q, k, v};
  const int64_t pieces = (longest_document(*shape) + kTaskRows - 1) / kTaskRows;
  const int64_t tasks = pieces * shape->documents * shape->heads;
  const int64_t work = token_count(*shape) * shape->heads * shape->head_dim;
  for_tasks(tasks, work > kParallelWork / 16 && omp_get_max_threads() > 1, [&](int64_t task) {
    // Last rows first: they see the most keys, and long tasks at the end would leave threads idle.
    const int64_t piece = pieces - 1 - task / (shape->documents * shape->heads);
    const int64_t document = task / shape->heads % shape->documents;
    const AttentionHead head = head_of(*shape, inputs, out, lse, document, task % shape->heads);
    const int64_t begin = piece * kTaskRows, end = std::min(begin + kTaskRows, head.length);
    if (begin >= end) return;
    isa.attention_forward(
        head, begin, end,
        thread_scratch(isa.attention_forward_scratch(shape->head_dim, shape->type)));
  });
  return GRAFT_OK;
}

extern "C" size_t graft_attention_workspace_bytes(const graft_attention_shape* shape,
                                                  graft_device device) {
  if (check_shape("graft_attention_workspace_bytes", shape, device) != GRAFT_OK) return 0;
  if (device != GRAFT_CPU) {
    return static_cast<size_t>(shape->tokens * shape->heads) * sizeof(float);
  }
  return static_cast<size_t>(partial_arrays(*shape) * partial_floats(*shape)) * sizeof(float);
}

extern "C" graft_status graft_attention_backward(const graft_attention_shape* shape,
                                                 const void* q,
                                                 const void* k,
                                                 const void* v,
                                                 const void* out,
                                                 const float* lse,
                                                 const void* dout,
                                                 void* dq,
                                                 void* dk,
                                                 void* dv,
                                                 void* workspace,
                                                 size_t workspace_bytes,
                                                 graft_device device,
                                                 graft_stream stream) {
  constexpr const char* kName = "graft_attention_backward";
  if (const graft_status status = check_shape(kName, shape, device)) return status;
  if (token_count(*shape, device) == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"q", q},
                                                         {"k", k},
                                                         {"v", v},
                                                         {"out", out},
                                                         {"lse", lse},
                                                         {"dout", dout},
                                                         {"dq", dq},
                                                         {"dk", dk},
                                                         {"dv", dv}})) {
    return status;
  }
  const size_t needed = graft_attention_workspace_bytes(shape, device);
  if (workspace_bytes < needed || (needed > 0 && workspace == nullptr)) {
    return fail(GRAFT_BAD_SHAPE, kName, "workspace has %zu bytes, expected %zu", workspace_bytes,
                needed);
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.attention_backward(
          {windowed(*shape), q, k, v, out, lse, dout, dq, dk, dv, static_cast<float*>(workspace)},
          stream);
    });
  }
  const Table& isa = table();
  const Inputs inputs{q, k, v};
  const int64_t arrays = partial_arrays(*shape), d = shape->head_dim;
  const int64_t partial_stride = shape->heads * d;
  // dk, dv and dq as the heads write them: where they go, or apart in the workspace.
  struct Sums {
    float* values;
    int64_t stride;
  };
  const auto sums_of = [&](int64_t index, void* array, int64_t stride) {
    if (index >= arrays) return Sums{static_cast<float*>(array), stride};
    return Sums{static_cast<float*>(workspace) + index * partial_floats(*shape), partial_stride};
  };
  const Sums dk_sums = sums_of(0, dk, shape->k_stride), dv_sums = sums_of(1, dv, shape->v_stride);
  const Sums dq_sums = sums_of(2, dq, shape->q_stride);
  const int64_t tasks = shape->documents * shape->heads;
  const int64_t work = token_count(*shape) * partial_stride;
  for_tasks(tasks, work > kParallelWork / 16 && omp_get_max_threads() > 1, [&](int64_t task) {
    const int64_t document = task / shape->heads, index = task % shape->heads;
    const int64_t token = shape->cu_seqlens[document];
    AttentionHeadGradient head;
    // The inner function reads out and lse only.
    head.forward =
        head_of(*shape, inputs, const_cast<void*>(out), const_cast<float*>(lse), document, index);
    head.dout = moved(dout, token * shape->out_stride + index * d, shape->type);
    head.dq = dq_sums.values + token * dq_sums.stride + index * d;
    head.dk = dk_sums.values + token * dk_sums.stride + index * d;
    head.dv = dv_sums.values + token * dv_sums.stride + index * d;
    head.dq_stride = dq_sums.stride;
    head.dk_stride = dk_sums.stride;
    head.dv_stride = dv_sums.stride;
    isa.attention_backward(head, thread_scratch(isa.attention_backward_scratch(d, shape->type)));
  });
  if (arrays > 0) add_groups(*shape, dk_sums.values, shape->kv_heads, dk, shape->k_stride);
  if (arrays > 1) add_groups(*shape, dv_sums.values, shape->kv_heads, dv, shape->v_stride);
  if (arrays > 2) add_groups(*shape, dq_sums.values, shape->heads, dq, shape->q_stride);
  return GRAFT_OK;
}

extern "C" graft_status graft_attention_decode(const void* q,
                                               const void* k_cache,
                                               const void* v_cache,
                                               int64_t positions,
                                               int64_t heads,
                                               int64_t kv_heads,
                                               int64_t head_dim,
                                               float scale,
                                               void* out,
                                               int64_t window,
                                               float softcap,
                                               graft_float_type type,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_attention_decode";
  if (const graft_status status = check_counts(kName, {{"positions", positions, 1},
                                                       {"heads", heads, 1},
                                                       {"kv_heads", kv_heads, 1},
                                                       {"head_dim", head_dim, 8}})) {
    return status;
  }
  if (head_dim > 256 || heads % kv_heads != 0) {
    return fail(GRAFT_BAD_SHAPE, kName,
                "head_dim %lld, heads %lld, kv_heads %lld; expected 8..256 and whole groups",
                static_cast<long long>(head_dim), static_cast<long long>(heads),
                static_cast<long long>(kv_heads));
  }
  if (const graft_status status = check_score(kName, window, softcap)) return status;
  if (const graft_status status = check_element(kName, type)) return status;
  if (const graft_status status = check_pointers(
          kName, {{"q", q}, {"k_cache", k_cache}, {"v_cache", v_cache}, {"out", out}})) {
    return status;
  }
  const int64_t first = window > 0 ? std::max<int64_t>(0, positions - window) : 0;
  const AttentionDecode call{q,     k_cache,  v_cache,  type,  first,   positions,
                             heads, kv_heads, head_dim, scale, softcap, out};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.attention_decode(call, stream);
    });
  }
  const Table& isa = table();
  for_pieces(heads, 1, 2 * positions * heads * head_dim, [&](int64_t begin, int64_t end) {
    isa.attention_decode(call, begin, end, thread_scratch(isa.attention_decode_scratch(call)));
  });
  return GRAFT_OK;
}
