// Cases of additions, conversions, soft caps and dropout.
#include "kernels/elementwise.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kBoth = {GRAFT_F32, GRAFT_BF16};
const std::vector<Input> kFinite = {Input::kNormal,  Input::kZero,     Input::kDenormal,
                                    Input::kOutlier, Input::kConstant, Input::kLarge};
const std::vector<Input> kAny = {Input::kNormal, Input::kDenormal, Input::kLarge,
                                 Input::kMinusInfinity};

double element_bytes(const Problem& p) {
  return p.type == GRAFT_F32 ? 4.0 : 2.0;
}
double values_of_problem(const Problem& p) {
  return static_cast<double>(p.a * p.b);
}
double no_flops(const Problem&) {
  return 0.0;
}

// a * b = count
Job addition(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const x = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  Array* const y = job.elements(random_values(p.a * p.b, 2));
  job.launch = [=, &p] { need(graft_add(x->data(), y->data(), p.a * p.b, p.type, device)); };
  return job;
}
// y of the other type
Job mixed_addition(graft_device device, const Problem& p) {
  Job job(device, p);
  const bool is_wide = p.type == GRAFT_F32;
  const Values other = random_values(p.a * p.b, 2);
  Array* const x = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  Array* const y = is_wide ? job.bfloat16s(other) : job.floats(other);
  job.launch = [=, &p] {
    need(graft_accumulate(x->data(), p.type, y->data(), is_wide ? GRAFT_BF16 : GRAFT_F32, p.a * p.b,
                          device));
  };
  return job;
}
Job softcap_forward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const x = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  job.launch = [=, &p] {
    need(graft_softcap_forward(x->data(), 30.0f, p.a * p.b, p.type, device));
  };
  return job;
}
Job softcap_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const y = job.elements(random_values(p.a * p.b, 1, 10.0f));
  Array* const dx = job.result(job.elements(values_of(p.input, p.a * p.b, 2)));
  job.launch = [=, &p] {
    need(graft_softcap_backward(y->data(), 30.0f, p.a * p.b, dx->data(), p.type, device));
  };
  return job;
}

// a = rows, b = columns, c = gap of from, d = gap of to. From float32 to the problem's type, and
// from that in place.
Job conversion(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const from = job.floats(values_of(p.input, p.a * (p.b + p.c), 1));
  Array* const to = job.result(job.elements(zeros(p.a * (p.b + p.d))));
  job.launch = [=, &p] {
    need(graft_convert(from->data(), GRAFT_F32, p.b + p.c, to->data(), p.type, p.b + p.d, p.a, p.b,
                       0.3f, device));
  };
  return job;
}
Job back_conversion(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const from = job.result(job.elements(values_of(p.input, p.a * (p.b + p.c), 1)));
  Array* const to = job.result(job.floats(zeros(p.a * (p.b + p.d))));
  job.launch = [=, &p] {
    need(graft_scale(from->data(), 0.7f, p.a * (p.b + p.c), p.type, device));
    need(graft_convert(from->data(), p.type, p.b + p.c, to->data(), GRAFT_F32, p.b + p.d, p.a, p.b,
                       1.0f, device));
  };
  return job;
}

// a = rows, b = dim
Job dropout(graft_device device, const Problem& p) {
  Job job(device, p);
  std::vector<int64_t> index(static_cast<size_t>(p.a));
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<int64_t>(i) * 7 + (int64_t{3} << 33);
  }
  Array* const rows = job.long_indices(index);
  Array* const x = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  job.launch = [=, &p] {
    need(graft_dropout_mask_apply(x->data(), p.a, p.b, rows->as<int64_t>(), 0x123456789abcdefu,
                                  0xfedcba98765u, 0.25f, p.type, device));
  };
  return job;
}

}  // namespace

std::vector<KernelCase> elementwise_cases() {
  const std::vector<Problem> flat = {sizes(1),    sizes(31),   sizes(1023),
                                     sizes(1024), sizes(1025), shifted(sizes(1028))};
  const std::vector<Problem> strided = {sizes(1, 1), sizes(3, 31, 2, 5), sizes(5, 64, 0, 8),
                                        sizes(2, 1025), shifted(sizes(7, 16, 4, 4))};
  const Problem large = sizes(16384, 4096);
  return {
      {"addition",
       "addition_kernel",
       flat,
       kFinite,
       kBoth,
       addition,
       large,
       [](const Problem& p) { return 3.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"addition_kernel", "missing tail", "elementwise.cu",
         "if (i >= count) return;\n  const float4 sum",
         "if (i + 3 >= count) return;\n  const float4 sum"}}},
      {"addition of another type",
       "addition_kernel",
       flat,
       kFinite,
       kBoth,
       mixed_addition,
       large,
       [](const Problem& p) { return (6.0 + element_bytes(p)) * values_of_problem(p); },
       no_flops,
       {{"addition_kernel", "y rounded to the type of x", "elementwise.cu",
         "load_four<kAligned>(x + i, count - i), load_four<kAligned>(y + i, count - i)",
         "load_four<kAligned>(x + i, count - i),\n                   "
         "rounded_four<X>(load_four<kAligned>(y + i, count - i))"}}},
      {"conversion",
       "conversion_kernel",
       strided,
       kFinite,
       kBoth,
       conversion,
       large,
       [](const Problem& p) { return (4.0 + element_bytes(p)) * values_of_problem(p); },
       no_flops,
       {{"conversion_kernel", "rows of the result without their gap", "elementwise.cu",
         "static_cast<To*>(call.to) + at.row * call.to_stride",
         "static_cast<To*>(call.to) + at.row * call.columns"}}},
      {"conversion to float32, scaling",
       "conversion_kernel",
       strided,
       kFinite,
       kBoth,
       back_conversion,
       large,
       [](const Problem& p) { return (4.0 + 3.0 * element_bytes(p)) * values_of_problem(p); },
       no_flops,
       {{"conversion_kernel", "the scale left out", "elementwise.cu",
         "return __fmul_rn(a, call.scale);", "return a;"}}},
      {"soft cap forward",
       "softcap_forward_kernel",
       flat,
       kAny,
       kBoth,
       softcap_forward,
       large,
       [](const Problem& p) { return 2.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"softcap_forward_kernel", "the cap multiplied before the tangent", "elementwise.cu",
         "hyperbolic_tangent(__fdiv_rn(a, cap))", "hyperbolic_tangent(__fmul_rn(a, cap))"}}},
      {"soft cap backward",
       "softcap_backward_kernel",
       flat,
       kFinite,
       kBoth,
       softcap_backward,
       large,
       [](const Problem& p) { return 3.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"softcap_backward_kernel", "1 - t instead of 1 - t^2", "elementwise.cu",
         "__fmul_rn(gradient, __fmul_rn(__fsub_rn(1.0f, t), __fadd_rn(1.0f, t)))",
         "__fmul_rn(gradient, __fsub_rn(1.0f, t))"}}},
      {"dropout",
       "dropout_kernel",
       {sizes(1, 1), sizes(5, 63), sizes(3, 64), sizes(3, 257), shifted(sizes(4, 260))},
       {Input::kNormal, Input::kConstant},
       kBoth,
       dropout,
       large,
       [](const Problem& p) { return 2.0 * element_bytes(p) * values_of_problem(p); },
       no_flops,
       {{"dropout_kernel", "the upper half of the row's index left out", "elementwise.cu",
         "static_cast<unsigned>(call.stream) ^ static_cast<unsigned>(row >> 32)",
         "static_cast<unsigned>(call.stream)"},
        {"dropout_kernel", "nine rounds", "elementwise.cu", "round < 10", "round < 9"}}},
  };
}

}  // namespace graft::kernels::test
