// Cases of attention.
#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kBoth = {GRAFT_F32, GRAFT_BF16};

Problem packed(
    std::vector<int32_t> lengths, int64_t heads, int64_t kv_heads, int64_t dim, int64_t window) {
  Problem problem = sizes(heads, kv_heads, dim, window);
  problem.lengths = std::move(lengths);
  return problem;
}

// a = heads, b = kv_heads (odd: scores are capped), c = head_dim, d = window
graft_attention_shape shape_of(const Problem& p) {
  graft_attention_shape shape{};
  shape.documents = static_cast<int64_t>(p.lengths.size());
  shape.heads = p.a;
  shape.kv_heads = p.b;
  shape.head_dim = p.c;
  shape.q_stride = p.a * p.c + 4;
  shape.k_stride = p.b * p.c;
  shape.v_stride = p.b * p.c + 8;
  shape.out_stride = p.a * p.c;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(p.c));
  shape.window = p.d;
  shape.softcap = p.b % 2 == 1 ? 20.0f : 0.0f;
  for (const int32_t length : p.lengths) shape.tokens += length;
  shape.type = p.type;
  return shape;
}

std::vector<int32_t> ends_of(const Problem& p) {
  std::vector<int32_t> ends = {0};
  for (const int32_t length : p.lengths) ends.push_back(ends.back() + length);
  return ends;
}

struct Inputs {
  Array *q, *k, *v;
  graft_attention_shape shape;
};
Inputs inputs_of(Job& job, const Problem& p) {
  Inputs in{nullptr, nullptr, nullptr, shape_of(p)};
  in.shape.cu_seqlens = job.indices(ends_of(p))->as<int32_t>();
  // Scores up to 1e4 for the large input: q of 1e4, k of 1.
  in.q = job.elements(values_of(p.input, in.shape.tokens * in.shape.q_stride, 1));
  in.k = job.elements(random_values(in.shape.tokens * in.shape.k_stride, 2));
  in.v = job.elements(random_values(in.shape.tokens * in.shape.v_stride, 3));
  return in;
}

Job forward(graft_device device, const Problem& p) {
  Job job(device, p);
  const Inputs in = inputs_of(job, p);
  Array* const out = job.result(job.elements(zeros(in.shape.tokens * in.shape.out_stride)));
  Array* const lse = job.result(job.floats(zeros(in.shape.tokens * p.a)));
  job.launch = [=] {
    need(graft_attention_forward(&in.shape, in.q->data(), in.k->data(), in.v->data(), out->data(),
                                 lse->floats(), device));
  };
  return job;
}

// The gradient of made-up results of a forward pass: out and lse as they would be in size. With the
// large input lse is far above every score, with the others near them.
Job backward(graft_device device, const Problem& p) {
  Job job(device, p);
  const Inputs in = inputs_of(job, p);
  const graft_attention_shape& shape = in.shape;
  Array* const out = job.elements(random_values(shape.tokens * shape.out_stride, 5));
  std::vector<float> sums = random_floats(shape.tokens * p.a, 6);
  for (float& sum : sums) sum += p.input == Input::kLarge ? 4e4f : 5.0f;
  Array* const lse = job.floats(sums);
  Array* const dout = job.elements(random_values(shape.tokens * shape.out_stride, 4));
  Array* const dq = job.result(job.elements(zeros(shape.tokens * shape.q_stride)));
  Array* const dk = job.result(job.elements(zeros(shape.tokens * shape.k_stride)));
  Array* const dv = job.result(job.elements(zeros(shape.tokens * shape.v_stride)));
  graft_attention_shape sized = shape;
  const std::vector<int32_t> ends = ends_of(p);  // the size is asked for on the host
  sized.cu_seqlens = ends.data();
  const size_t bytes = graft_attention_workspace_bytes(&sized, device);
  Array* const workspace = job.floats(zeros(static_cast<int64_t>(bytes / sizeof(float))));
  job.launch = [=] {
    need(graft_attention_backward(&in.shape, in.q->data(), in.k->data(), in.v->data(), out->data(),
                                  lse->floats(), dout->data(), dq->data(), dk->data(), dv->data(),
                                  workspace->data(), bytes, device));
  };
  return job;
}

// One document: the positions.
Job decode_step(graft_device device, const Problem& p) {
  Job job(device, p);
  const int64_t positions = p.lengths[0];
  Array* const q = job.elements(values_of(p.input, p.a * p.c, 1));
  Array* const k = job.elements(random_values(positions * p.b * p.c, 2));
  Array* const v = job.elements(random_values(positions * p.b * p.c, 3));
  Array* const out = job.result(job.elements(zeros(p.a * p.c)));
  job.launch = [=, &p] {
    need(graft_attention_decode(q->data(), k->data(), v->data(), positions, p.a, p.b, p.c, 0.2f,
                                out->data(), p.d, p.b % 2 == 1 ? 20.0f : 0.0f, p.type, device));
  };
  return job;
}

// Products of a query and a key: pairs that see each other, times head_dim and the heads.
double pairs_of(const Problem& p) {
  double pairs = 0.0;
  for (const int32_t n : p.lengths) pairs += 0.5 * n * n;
  return pairs * static_cast<double>(p.a * p.c);
}
double element_bytes(const Problem& p) {
  return p.type == GRAFT_F32 ? 4.0 : 2.0;
}
double tokens_of(const Problem& p) {
  double tokens = 0.0;
  for (const int32_t n : p.lengths) tokens += n;
  return tokens;
}

}  // namespace

std::vector<KernelCase> attention_cases() {
  const std::vector<Problem> shapes = {packed({1}, 1, 1, 8, 0),
                                       packed({1, 1, 2}, 2, 1, 16, 0),
                                       packed({7, 8, 9, 1}, 4, 2, 40, 0),
                                       packed({33, 0, 50}, 2, 2, 64, 0),
                                       packed({37}, 2, 1, 136, 0),
                                       packed({9}, 2, 2, 256, 4),
                                       packed({70, 15, 16, 17}, 2, 1, 24, 16),
                                       packed({130}, 2, 2, 8, 1),
                                       packed({19, 12}, 2, 2, 13, 0),
                                       shifted(packed({21}, 2, 1, 12, 0)),
                                       packed({530}, 2, 1, 8, 0),
                                       packed({600}, 2, 2, 8, 515)};
  const std::vector<Input> inputs = {Input::kNormal, Input::kZero, Input::kOutlier,
                                     Input::kConstant, Input::kLarge};
  const Problem long_rows = packed({2048, 2048}, 32, 8, 128, 0);
  return {
      {"attention forward",
       "attention_forward_kernel",
       shapes,
       inputs,
       kBoth,
       forward,
       long_rows,
       [](const Problem& p) {
         return tokens_of(p) * static_cast<double>((p.a + p.b) * p.c) * 2.0 * element_bytes(p);
       },
       [](const Problem& p) { return 4.0 * pairs_of(p); },
       {{"attention_forward_kernel", "a query sees the key after its own", "attention.cu",
         "last = least(position + 1, chunk_end) - begin;",
         "last = least(position + 2, chunk_end) - begin;"},
        {"attention_forward_kernel", "the window one key too long", "attention.cu",
         "const int64_t my_first = most(0, position + 1 - shape.window);",
         "const int64_t my_first = most(0, position - shape.window);"},
        {"attention_forward_kernel", "dropped barrier before the values", "attention.cu",
         "        shared.top[mine] = top;\n      }\n    }\n    __syncthreads();",
         "        shared.top[mine] = top;\n      }\n    }"},
        {"attention_forward_kernel", "no correction of earlier chunks", "attention.cu",
         "some && !starts ? exponential(__fsub_rn(before, top)) : 1.0f", "1.0f"}}},
      {"attention backward",
       "attention_delta_kernel attention_query_gradient_kernel attention_key_gradient_kernel",
       shapes,
       inputs,
       kBoth,
       backward,
       long_rows,
       [](const Problem& p) {
         return tokens_of(p) * static_cast<double>((2 * p.a + p.b) * p.c) * 2.0 * element_bytes(p);
       },
       [](const Problem& p) { return 10.0 * pairs_of(p); },
       {{"attention_delta_kernel", "the last element of a head left out", "attention.cu",
         "inside && i < shape.head_dim;", "inside && i < shape.head_dim - 1;"},
        {"attention_query_gradient_kernel", "dropped barrier after the gradients of scores",
         "attention.cu", "      shared.ds[r][threadIdx.x] = ds;\n    }\n    __syncthreads();",
         "      shared.ds[r][threadIdx.x] = ds;\n    }"},
        {"attention_query_gradient_kernel", "the slope of the cap left out", "attention.cu",
         "if (shape.softcap != 0.0f) {", "if (false) {"},
        {"attention_key_gradient_kernel", "query heads of a group overwrite one another",
         "attention.cu", "member == 0 ? dk[part][r] : __fadd_rn(dk_total[part][r], dk[part][r])",
         "dk[part][r]"},
        {"attention_key_gradient_kernel", "the last query of a window left out", "attention.cu",
         "least(place.length, place.row + place.rows - 1 + shape.window)",
         "least(place.length, place.row + place.rows - 2 + shape.window)"}}},
      {"attention decode",
       "attention_decode_kernel",
       {packed({1}, 1, 1, 8, 0), packed({17}, 4, 2, 72, 0), packed({511}, 2, 1, 64, 0),
        packed({513}, 2, 2, 136, 0), packed({600}, 2, 1, 16, 100), packed({33}, 3, 1, 13, 0),
        shifted(packed({20}, 2, 2, 16, 0))},
       {Input::kNormal, Input::kConstant, Input::kLarge},
       kBoth,
       decode_step,
       packed({16384}, 32, 8, 128, 0),
       [](const Problem& p) {
         return 2.0 * element_bytes(p) * tokens_of(p) * static_cast<double>(p.b * p.c);
       },
       [](const Problem&) { return 0.0; },
       {{"attention_decode_kernel", "dropped barrier before the scores are overwritten",
         "attention.cu",
         "const int64_t keys = least(kForwardKeys, count - key);\n    __syncthreads();",
         "const int64_t keys = least(kForwardKeys, count - key);"},
        {"attention_decode_kernel", "lanes past a head of odd length", "attention.cu",
         "if (i + j + part >= d) break;", ""}}},
  };
}

}  // namespace graft::kernels::test
