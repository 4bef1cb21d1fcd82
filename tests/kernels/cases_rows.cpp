// Cases of RMSNorm, RoPE, the gated units and the embedding.
#include <algorithm>
#include <cmath>

#include "kernels/embedding.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kBoth = {GRAFT_F32, GRAFT_BF16};
const std::vector<Input> kFinite = {Input::kNormal,  Input::kZero,     Input::kDenormal,
                                    Input::kOutlier, Input::kConstant, Input::kLarge};

const std::vector<Input> kFiniteAndHuge = {Input::kNormal,  Input::kZero,  Input::kDenormal,
                                           Input::kOutlier, Input::kLarge, Input::kHuge};

double element_bytes(const Problem& p) {
  return p.type == GRAFT_F32 ? 4.0 : 2.0;
}
double values_of_problem(const Problem& p) {
  return static_cast<double>(p.a * p.b);
}
double no_flops(const Problem&) {
  return 0.0;
}

// a = rows, b = dim, c = graft_rmsnorm_kind, d = gap after each row of out.
Job norm_forward(graft_device device, const Problem& p, bool adds) {
  Job job(device, p);
  const auto kind = static_cast<graft_rmsnorm_kind>(p.c);
  Array* const x = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const y = job.elements(random_values(p.a * p.b, 2));
  Array* const weight = job.floats(random_values(p.b, 3));
  Array* const out = job.result(job.elements(zeros(p.a * (p.b + p.d))));
  Array* const inverse = job.result(job.floats(zeros(p.a)));
  job.result(x);
  job.launch = [=, &p] {
    if (adds) {
      need(graft_add_rmsnorm_forward(x->data(), y->data(), weight->floats(), 1e-6f, p.a, p.b,
                                     out->data(), inverse->floats(), kind, p.type, p.b + p.d,
                                     device));
    } else {
      need(graft_rmsnorm_forward(x->data(), weight->floats(), 1e-6f, p.a, p.b, out->data(),
                                 inverse->floats(), kind, p.type, p.b + p.d, device));
    }
  };
  return job;
}
Job plain_norm_forward(graft_device device, const Problem& p) {
  return norm_forward(device, p, false);
}
Job norm_forward_bf16(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const x = job.result(job.floats(values_of(p.input, p.a * p.b, 1)));
  Array* const weight = job.floats(random_values(p.b, 3));
  Array* const out = job.result(job.bfloat16s(zeros(p.a * (p.b + p.d))));
  Array* const inverse = job.result(job.floats(zeros(p.a)));
  job.launch = [=, &p] {
    need(graft_rmsnorm_forward_bf16(x->floats(), weight->floats(), 1e-6f, p.a, p.b,
                                    out->as<uint16_t>(), inverse->floats(),
                                    static_cast<graft_rmsnorm_kind>(p.c), p.b + p.d, device));
  };
  return job;
}
Job add_norm_forward(graft_device device, const Problem& p) {
  return norm_forward(device, p, true);
}

Job norm_backward(graft_device device, const Problem& p, bool weight_gradient) {
  Job job(device, p);
  const auto kind = static_cast<graft_rmsnorm_kind>(p.c);
  Array* const x = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const dout = job.elements(random_values(p.a * (p.b + p.d), 2));
  Array* const weight = job.floats(random_values(p.b, 3));
  std::vector<float> roots = random_floats(p.a, 4);
  for (float& root : roots) root = std::fabs(root) + 0.5f;
  Array* const inverse = job.floats(roots);
  Array* const dx = job.result(job.elements(random_values(p.a * p.b, 5)));
  Array* const dweight = job.result(job.floats(random_values(p.b, 6)));
  job.launch = [=, &p] {
    need(graft_rmsnorm_backward(dout->data(), x->data(), weight->floats(), inverse->floats(), p.a,
                                p.b, dx->data(), weight_gradient ? dweight->floats() : nullptr,
                                kind, p.type, p.b + p.d, device));
  };
  return job;
}
Job input_gradient(graft_device device, const Problem& p) {
  return norm_backward(device, p, false);
}
Job both_gradients(graft_device device, const Problem& p) {
  return norm_backward(device, p, true);
}

// a = tokens, b = heads, c = head_dim, d = rotary_dim; odd heads turn back.
Job rope(graft_device device, const Problem& p) {
  Job job(device, p);
  const int64_t stride = p.b * p.c + 4;
  Array* const x = job.result(job.elements(values_of(p.input, p.a * stride, 1)));
  std::vector<float> cos = random_floats(p.a * p.d / 2, 2), sin(cos.size());
  for (size_t i = 0; i < cos.size(); ++i) {
    sin[i] = std::sin(cos[i]);
    cos[i] = std::cos(cos[i]);
  }
  Array* const c = job.floats(cos);
  Array* const s = job.floats(sin);
  job.launch = [=, &p] {
    need(graft_rope_apply(x->data(), p.a, p.b, p.c, stride, c->floats(), s->floats(),
                          p.b % 2 == 1 ? GRAFT_ROPE_INVERSE : GRAFT_ROPE_FORWARD, p.d, p.type,
                          device));
  };
  return job;
}

// a = rows, b = dim, c = graft_gate, d = gap after the rows of out and dout. gate and up are the
// halves of one array, as one product gives them.
Job gate_forward(graft_device device, const Problem& p) {
  Job job(device, p);
  const int64_t distinct = std::min<int64_t>(p.a, 64);
  std::vector<float> values = values_of(p.input, 2 * distinct * p.b, 1).all();
  const std::vector<float> up = random_floats(distinct * p.b, 2);
  for (int64_t i = 0; i < distinct * p.b; ++i) {
    values[static_cast<size_t>(i / p.b * 2 * p.b + p.b + i % p.b)] = up[static_cast<size_t>(i)];
  }
  Array* const both = job.elements({values, 2 * p.a * p.b});
  Array* const out = job.result(job.elements(zeros(p.a * (p.b + p.d))));
  const int64_t half = p.b * (p.type == GRAFT_F32 ? 4 : 2);
  job.launch = [=, &p] {
    need(graft_gate_forward(static_cast<graft_gate>(p.c), p.a, p.b, both->data(),
                            both->as<char>() + half, 2 * p.b, out->data(), p.b + p.d, p.type,
                            device, nullptr));
  };
  return job;
}
Job gate_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const gate = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const up = job.elements(random_values(p.a * p.b, 2));
  Array* const dout = job.elements(random_values(p.a * (p.b + p.d), 3));
  Array* const dgate = job.result(job.elements(zeros(p.a * p.b)));
  Array* const dup = job.result(job.elements(zeros(p.a * p.b)));
  job.launch = [=, &p] {
    need(graft_gate_backward(static_cast<graft_gate>(p.c), p.a, p.b, dout->data(), p.b + p.d,
                             gate->data(), up->data(), p.b, dgate->data(), dup->data(), p.type,
                             device, nullptr));
  };
  return job;
}

// a = tokens, b = dim, c = vocabulary
Job embedding_forward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const ids = job.indices(scattered(p.a, p.c));
  Array* const table = job.elements(values_of(p.input, p.c * p.b, 1));
  Array* const out = job.result(job.elements(zeros(p.a * p.b)));
  job.launch = [=, &p] {
    need(graft_embedding_forward(ids->as<int32_t>(), p.a, table->data(), p.c, p.b, out->data(),
                                 p.type, device));
  };
  return job;
}
Job embedding_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const ids = job.indices(scattered(p.a, p.c));
  Array* const dout = job.elements(values_of(p.input, p.a * p.b, 2));
  Array* const dtable = job.result(job.floats(random_values(p.c * p.b, 3)));
  job.launch = [=, &p] {
    need(graft_embedding_backward(dout->data(), ids->as<int32_t>(), p.a, p.c, p.b, dtable->floats(),
                                  p.type, device));
  };
  return job;
}

}  // namespace

std::vector<KernelCase> row_cases() {
  const std::vector<Problem> norms = {
      sizes(1, 1),    sizes(3, 127, 2),          sizes(7, 128, 1),    sizes(9, 129, 1, 3),
      sizes(17, 260), shifted(sizes(8, 260, 1)), sizes(8, 64, 0, 16), sizes(2, 1027, 2)};
  return {
      {"rmsnorm forward",
       "rmsnorm_forward_kernel",
       norms,
       kFinite,
       kBoth,
       plain_norm_forward,
       sizes(16384, 4096),
       [](const Problem& p) { return 2.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"rmsnorm_forward_kernel", "epsilon outside the root", "rmsnorm.cu",
         "__fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, call.eps)))",
         "__fdiv_rn(1.0f, __fadd_rn(__fsqrt_rn(mean), call.eps))"},
        {"rmsnorm_forward_kernel", "missing tail", "rmsnorm.cu",
         "if (rounds_twice) normal = rounded_four<Element>(normal);",
         "if (rounds_twice) normal = rounded_four<Element>(normal);\n    if (dim - i < 4) return;"},
        {"rmsnorm_forward_kernel", "the first rounding left out", "rmsnorm.cu",
         "if (rounds_twice) normal = rounded_four<Element>(normal);", ""},
        {"rmsnorm_forward_kernel", "rows of out without their gap", "rmsnorm.cu",
         "static_cast<Out*>(call.out) + row * call.out_stride",
         "static_cast<Out*>(call.out) + row * dim"}}},
      {"rmsnorm forward to bf16",
       "rmsnorm_forward_kernel",
       norms,
       kFinite,
       {GRAFT_F32},
       norm_forward_bf16,
       sizes(16384, 4096),
       [](const Problem& p) { return 6.0 * values_of_problem(p); },
       no_flops,
       {{"rmsnorm_forward_kernel", "rounded to the type of out first", "rmsnorm.cu",
         "normal = rounded_four<Element>(normal);", "normal = rounded_four<Out>(normal);"}}},
      {"add and rmsnorm forward",
       "rmsnorm_forward_kernel",
       norms,
       kFinite,
       kBoth,
       add_norm_forward,
       sizes(16384, 4096),
       [](const Problem& p) { return 4.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"rmsnorm_forward_kernel", "the sum is not rounded before its square", "rmsnorm.cu",
         "value[g] = rounded_four<Element>(value[g]);", ""}}},
      {"rmsnorm backward",
       "rmsnorm_backward_kernel",
       norms,
       kFinite,
       kBoth,
       input_gradient,
       sizes(16384, 4096),
       [](const Problem& p) { return 4.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"rmsnorm_backward_kernel", "the mean over 128 lanes instead of the row", "rmsnorm.cu",
         "__fdiv_rn(__fmul_rn(row_sum(sum), inverse), static_cast<float>(dim))",
         "__fdiv_rn(__fmul_rn(row_sum(sum), inverse), 128.0f)"},
        {"rmsnorm_backward_kernel", "overwrites instead of adding", "rmsnorm.cu",
         "return __fmaf_rn(c, inverse, b);", "return __fmaf_rn(c, inverse, 0.0f * b);"}}},
      {"rmsnorm weight gradient",
       "rmsnorm_backward_kernel rmsnorm_weight_gradient_kernel",
       {sizes(1, 1), sizes(63, 31, 0, 1), sizes(64, 32, 1), sizes(65, 33, 2), sizes(2049, 36)},
       kFinite,
       kBoth,
       both_gradients,
       sizes(16384, 4096),
       [](const Problem& p) { return 6.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"rmsnorm_weight_gradient_kernel", "dropped barrier", "rmsnorm.cu",
         "shared.sum[warp][lane] = sum;\n    __syncthreads();", "shared.sum[warp][lane] = sum;"},
        {"rmsnorm_weight_gradient_kernel", "tiles of a pass counted from the first row",
         "rmsnorm.cu", "least(ceil_div(rows - base, kRowTile), kTilesOfBlock)",
         "least(ceil_div(rows, kRowTile), kTilesOfBlock - 1)"}}},
      {"rope",
       "rope_kernel",
       {sizes(1, 1, 2, 2), sizes(3, 5, 64, 64), sizes(5, 3, 80, 32), sizes(7, 2, 10, 6),
        sizes(2, 10, 128, 128), shifted(sizes(2, 2, 16, 16))},
       kFinite,
       kBoth,
       rope,
       sizes(16384, 32, 128, 128),
       [](const Problem& p) {
         return static_cast<double>(p.a * p.b * p.c) * 2.0 * element_bytes(p);
       },
       no_flops,
       {{"rope_kernel", "turns the other way", "rope.cu",
         "float4{call.sign, call.sign, call.sign, call.sign}", "float4{1.0f, 1.0f, 1.0f, 1.0f}"},
        {"rope_kernel", "heads counted by the rotary dimension", "rope.cu",
         "head * call.head_dim + i", "head * call.rotary_dim + i"}}},
      {"gated unit forward",
       "gate_forward_kernel",
       {sizes(1, 1), sizes(3, 31, 1), sizes(2, 1023), sizes(2, 1024, 1, 8), sizes(2, 1025, 0, 3),
        shifted(sizes(2, 512, 1))},
       kFinite,
       kBoth,
       gate_forward,
       sizes(4096, 14336),
       [](const Problem& p) { return 3.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"gate_forward_kernel", "rows of gate without the half between them", "swiglu.cu",
         "const Four at = four_of_thread(call.dim);\n  if (at.row >= rows) return;\n  const "
         "int64_t in "
         "= at.row * call.gate_stride + at.column;\n  const float4 gate",
         "const Four at = four_of_thread(call.dim);\n  if (at.row >= rows) return;\n  const "
         "int64_t in "
         "= at.row * call.dim + at.column;\n  const float4 gate"},
        {"gate_forward_kernel", "missing tail", "swiglu.cu",
         "const float4 gate = load_four<kAligned>(",
         "if (at.left < 4) return;\n  const float4 gate = load_four<kAligned>("}}},
      {"gated unit backward",
       "gate_backward_kernel",
       {sizes(1, 1), sizes(3, 31, 1), sizes(2, 1023), sizes(2, 1024, 1, 8), sizes(2, 1025, 0, 3),
        shifted(sizes(2, 512, 1))},
       kFiniteAndHuge,
       kBoth,
       gate_backward,
       sizes(4096, 14336),
       [](const Problem& p) { return 5.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"gate_backward_kernel", "wrong element of four", "swiglu.cu",
         "__fmul_rn(__fmul_rn(d.w, up.w), a[3].slope)",
         "__fmul_rn(__fmul_rn(d.w, up.w), a[2].slope)"},
        {"gate_backward_kernel", "cubes that overflow", "swiglu.cu",
         "bounded = 16.0f < bounded ? 16.0f : bounded;", "bounded = g;"},
        {"gate_backward_kernel", "slope of SiLU without its second term", "swiglu.cu",
         "__fmul_rn(s, __fmaf_rn(g, __fsub_rn(1.0f, s), 1.0f))", "s"}}},
      {"embedding forward",
       "embedding_forward_kernel",
       {sizes(1, 1, 1), sizes(300, 5, 7), sizes(17, 1027, 5), sizes(33, 64, 1000),
        shifted(sizes(3, 8, 5))},
       {Input::kNormal, Input::kDenormal},
       kBoth,
       embedding_forward,
       sizes(16384, 4096, 32000),
       [](const Problem& p) { return 2.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"embedding_forward_kernel", "the last partial step of a row left out", "embedding.cu",
         "i += 4 * kThreads) {\n    const float4 row =",
         "i += 4 * kThreads) {\n    if (dim - i < 4) break;\n    const float4 row ="}}},
      {"embedding backward",
       "embedding_backward_kernel",
       {sizes(1, 1, 1), sizes(300, 5, 7), sizes(17, 1027, 5), sizes(33, 64, 1000),
        sizes(600, 3, 2)},
       {Input::kNormal, Input::kDenormal},
       kBoth,
       embedding_backward,
       sizes(16384, 4096, 32000),
       [](const Problem& p) { return (element_bytes(p) + 8.0) * values_of_problem(p); },
       no_flops,
       {{"embedding_backward_kernel", "dropped barrier before the ids are overwritten",
         "embedding.cu", "base += kThreads) {\n    __syncthreads();\n    shared.id",
         "base += kThreads) {\n    shared.id"},
        {"embedding_backward_kernel", "every token adds, not the first of its id", "embedding.cu",
         "if (shared.earlier != 0) return;", ""}}},
  };
}

}  // namespace graft::kernels::test
