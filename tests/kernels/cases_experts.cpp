// Cases of mixtures of experts, of biases and of DoRA's gain.
#include <algorithm>

#include "kernels/bias.h"
#include "kernels/dora.h"
#include "kernels/moe.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kFloat32 = {GRAFT_F32};
const std::vector<Input> kFinite = {Input::kNormal,  Input::kZero,     Input::kDenormal,
                                    Input::kOutlier, Input::kConstant, Input::kLarge};

double no_flops(const Problem&) {
  return 0.0;
}

// a = rows, b = dim
Job bias_add(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const y = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  Array* const bias = job.elements(random_values(p.b, 2));
  job.launch = [=, &p] { need(graft_bias_add(y->floats(), bias->floats(), p.a, p.b, device)); };
  return job;
}
Job bias_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const dy = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const dbias = job.result(job.elements(random_values(p.b, 2)));
  job.launch = [=, &p] {
    need(graft_bias_backward(dy->floats(), p.a, p.b, dbias->floats(), device));
  };
  return job;
}

// a = rows, b = dim; c = 1 adds
Job gain_forward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const h = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const gain = job.elements(random_values(p.b, 2));
  Array* const y = job.result(job.elements(random_values(p.a * p.b, 3)));
  job.launch = [=, &p] {
    need(graft_gain_forward(h->floats(), gain->floats(), p.a, p.b, static_cast<int>(p.c),
                            y->floats(), device));
  };
  return job;
}
Job gain_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const dy = job.elements(values_of(p.input, p.a * p.b, 1));
  Array* const h = job.elements(random_values(p.a * p.b, 2));
  Array* const gain = job.elements(random_values(p.b, 3));
  Array* const inverse_norm = job.elements(random_values(p.b, 4));
  Array* const dh = job.result(job.elements(zeros(p.a * p.b)));
  Array* const dmagnitude = job.result(job.elements(random_values(p.b, 5)));
  job.launch = [=, &p] {
    need(graft_gain_backward(dy->floats(), h->floats(), gain->floats(), inverse_norm->floats(), p.a,
                             p.b, dh->floats(), dmagnitude->floats(), device));
  };
  return job;
}

// a = tokens, b = experts, c = top, d = dim of the rows (where there are any). Odd experts
// renormalise.
graft_moe_shape shape_of(const Problem& p) {
  return {p.a, p.b, p.c, static_cast<int>(p.b % 2)};
}

struct Routed {
  std::vector<float> probabilities, weight;
  std::vector<int32_t> expert, offsets, row_pair, pair_row;
};
Routed routed(const Problem& p) {
  const graft_moe_shape shape = shape_of(p);
  const auto pairs = static_cast<size_t>(p.a * p.c);
  const std::vector<float> logits = random_floats(p.a * p.b, 1);
  Routed r{std::vector<float>(logits.size()), std::vector<float>(pairs),
           std::vector<int32_t>(pairs),       std::vector<int32_t>(static_cast<size_t>(p.b) + 1),
           std::vector<int32_t>(pairs),       std::vector<int32_t>(pairs)};
  need(graft_moe_route(&shape, logits.data(), r.probabilities.data(), r.expert.data(),
                       r.weight.data()));
  need(graft_moe_sort(&shape, r.expert.data(), r.offsets.data(), r.row_pair.data(),
                      r.pair_row.data()));
  return r;
}
std::vector<int32_t> no_indices(int64_t count) {
  return std::vector<int32_t>(static_cast<size_t>(count));
}

Job route(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const logits = job.floats(values_of(p.input, p.a * p.b, 1));
  Array* const probabilities = job.result(job.floats(zeros(p.a * p.b)));
  Array* const expert = job.result(job.indices(no_indices(p.a * p.c)));
  Array* const weight = job.result(job.floats(zeros(p.a * p.c)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_route(&shape, logits->floats(), probabilities->floats(), expert->as<int32_t>(),
                         weight->floats(), device));
  };
  return job;
}
Job route_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  const Routed r = routed(p);
  Array* const probabilities = job.floats(r.probabilities);
  Array* const expert = job.indices(r.expert);
  Array* const weight = job.floats(r.weight);
  Array* const dweight = job.floats(values_of(p.input, p.a * p.c, 2));
  Array* const dlogits = job.result(job.floats(zeros(p.a * p.b)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_route_backward(&shape, probabilities->floats(), expert->as<int32_t>(),
                                  weight->floats(), dweight->floats(), dlogits->floats(), device));
  };
  return job;
}

Job sort(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const expert = job.indices(routed(p).expert);
  Array* const offsets = job.result(job.indices(no_indices(p.b + 1)));
  Array* const row_pair = job.result(job.indices(no_indices(p.a * p.c)));
  Array* const pair_row = job.result(job.indices(no_indices(p.a * p.c)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_sort(&shape, expert->as<int32_t>(), offsets->as<int32_t>(),
                        row_pair->as<int32_t>(), pair_row->as<int32_t>(), device));
  };
  return job;
}

Job gather(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const x = job.elements(values_of(p.input, p.a * p.d, 2));
  Array* const row_pair = job.indices(routed(p).row_pair);
  Array* const rows = job.result(job.elements(zeros(p.a * p.c * p.d)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_gather(&shape, x->floats(), row_pair->as<int32_t>(), p.d, rows->floats(),
                          device));
  };
  return job;
}
Job combine(graft_device device, const Problem& p) {
  Job job(device, p);
  Array* const rows = job.elements(values_of(p.input, p.a * p.c * p.d, 2));
  Array* const pair_row = job.indices(routed(p).pair_row);
  Array* const y = job.result(job.elements(zeros(p.a * p.d)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_combine(&shape, rows->floats(), pair_row->as<int32_t>(), p.d, y->floats(),
                           device));
  };
  return job;
}

Job weigh(graft_device device, const Problem& p) {
  Job job(device, p);
  const Routed r = routed(p);
  Array* const rows = job.elements(values_of(p.input, p.a * p.c * p.d, 2));
  Array* const row_pair = job.indices(r.row_pair);
  Array* const weight = job.floats(r.weight);
  Array* const out = job.result(job.elements(zeros(p.a * p.c * p.d)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_weigh(&shape, rows->floats(), row_pair->as<int32_t>(), weight->floats(), p.d,
                         out->floats(), device));
  };
  return job;
}
Job weigh_backward(graft_device device, const Problem& p) {
  Job job(device, p);
  const Routed r = routed(p);
  Array* const rows = job.elements(values_of(p.input, p.a * p.c * p.d, 2));
  Array* const dout = job.elements(random_values(p.a * p.c * p.d, 3));
  Array* const row_pair = job.indices(r.row_pair);
  Array* const weight = job.floats(r.weight);
  Array* const drows = job.result(job.elements(zeros(p.a * p.c * p.d)));
  Array* const dweight = job.result(job.floats(zeros(p.a * p.c)));
  job.launch = [=, &p] {
    const graft_moe_shape shape = shape_of(p);
    need(graft_moe_weigh_backward(&shape, dout->floats(), rows->floats(), row_pair->as<int32_t>(),
                                  weight->floats(), p.d, drows->floats(), dweight->floats(),
                                  device));
  };
  return job;
}

double row_bytes(const Problem& p) {
  return 4.0 * static_cast<double>(p.a * p.c * p.d);
}

}  // namespace

std::vector<KernelCase> expert_cases() {
  const std::vector<Problem> biases = {sizes(1, 1),   sizes(63, 31),   sizes(64, 32),
                                       sizes(65, 33), sizes(1030, 36), shifted(sizes(9, 1284))};
  const std::vector<Problem> routers = {sizes(1, 1, 1), sizes(5, 4, 2), sizes(64, 8, 2),
                                        sizes(65, 33, 5), sizes(130, 128, 8)};
  const std::vector<Problem> moves = {sizes(1, 1, 1, 1), sizes(5, 4, 2, 7), sizes(64, 8, 2, 64),
                                      sizes(65, 33, 5, 129), shifted(sizes(9, 5, 3, 136))};
  const Problem bench = sizes(16384, 128, 8, 2048);
  return {
      {"bias",
       "bias_add_kernel",
       biases,
       kFinite,
       kFloat32,
       bias_add,
       sizes(16384, 4096),
       [](const Problem& p) { return 8.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"bias_add_kernel", "the last partial step of a row left out", "bias.cu",
         "i += 4 * kThreads) {\n    const float4 sum",
         "i += 4 * kThreads) {\n    if (dim - i < 4) break;\n    const float4 sum"}}},
      {"bias gradient",
       "bias_backward_kernel",
       biases,
       kFinite,
       kFloat32,
       bias_backward,
       sizes(16384, 4096),
       [](const Problem& p) { return 4.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"bias_backward_kernel", "dropped barrier", "bias.cu",
         "shared.sum[warp][lane] = sum;\n    __syncthreads();", "shared.sum[warp][lane] = sum;"},
        {"bias_backward_kernel", "overwrites instead of adding", "bias.cu",
         "inside && warp == 0 ? dbias[column] : 0.0f", "0.0f"}}},
      {"DoRA gain",
       "gain_forward_kernel",
       {sizes(1, 1), sizes(63, 31, 1), sizes(5, 36), sizes(7, 1284, 1), shifted(sizes(9, 1284))},
       kFinite,
       kFloat32,
       gain_forward,
       sizes(16384, 4096),
       [](const Problem& p) { return 8.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"gain_forward_kernel", "adds to the product instead of the output", "dora.cu",
         "load_four<kAligned>(to + i, dim - i), value,", "value, value,"}}},
      {"DoRA gain gradient",
       "gain_backward_kernel",
       biases,
       kFinite,
       kFloat32,
       gain_backward,
       sizes(16384, 4096),
       [](const Problem& p) { return 12.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"gain_backward_kernel", "dropped barrier", "dora.cu",
         "shared.sum[warp][lane] = sum;\n    __syncthreads();", "shared.sum[warp][lane] = sum;"},
        {"gain_backward_kernel", "overwrites instead of adding", "dora.cu",
         "__fadd_rn(dmagnitude[column], __fmul_rn(inverse_norm[column], total))",
         "__fmul_rn(inverse_norm[column], total)"}}},
      {"router",
       "moe_route_kernel",
       routers,
       {Input::kNormal, Input::kZero, Input::kOutlier, Input::kConstant, Input::kLarge},
       kFloat32,
       route,
       sizes(16384, 128, 8),
       [](const Problem& p) { return 8.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"moe_route_kernel", "the last expert wins a tie", "moe.cu",
         "if (!taken && (best < 0 || p[e] > p[best])) best = e;",
         "if (!taken && (best < 0 || p[e] >= p[best])) best = e;"},
        {"moe_route_kernel", "renormalises always", "moe.cu",
         "  if (call.shape.renormalise != 0) {\n    for (int64_t j = 0; j < top; ++j) weight[j]",
         "  {\n    for (int64_t j = 0; j < top; ++j) weight[j]"}}},
      {"router gradient",
       "moe_route_backward_kernel",
       routers,
       kFinite,
       kFloat32,
       route_backward,
       sizes(16384, 128, 8),
       [](const Problem& p) { return 8.0 * static_cast<double>(p.a * p.b); },
       no_flops,
       {{"moe_route_backward_kernel", "experts that were not chosen have no gradient", "moe.cu",
         "dlogits[e] = __fmul_rn(p[e], __fsub_rn(0.0f, drift));", "dlogits[e] = 0.0f;"}}},
      {"sorting by expert",
       "moe_sort_kernel",
       routers,
       {Input::kNormal},
       kFloat32,
       sort,
       sizes(16384, 128, 8),
       [](const Problem& p) { return 16.0 * static_cast<double>(p.a * p.c); },
       no_flops,
       {{"moe_sort_kernel", "dropped barrier before the choices are overwritten", "moe.cu",
         "const auto load = [&](int64_t base) {\n    __syncthreads();",
         "const auto load = [&](int64_t base) {"},
        {"moe_sort_kernel", "pairs of a pass counted from its begin", "moe.cu",
         "call.row_pair[row] = static_cast<int32_t>(base + i);",
         "call.row_pair[row] = static_cast<int32_t>(i);"}}},
      {"gathering rows",
       "moe_gather_kernel",
       moves,
       {Input::kNormal, Input::kDenormal},
       kFloat32,
       gather,
       bench,
       [](const Problem& p) { return 2.0 * row_bytes(p); },
       no_flops,
       {{"moe_gather_kernel", "pairs instead of their tokens", "moe.cu",
         "call.index[row] / call.shape.top * call.dim", "call.index[row] * call.dim"}}},
      {"combining rows",
       "moe_combine_kernel",
       moves,
       kFinite,
       kFloat32,
       combine,
       bench,
       row_bytes,
       no_flops,
       {{"moe_combine_kernel", "the last choice left out", "moe.cu",
         "for (int64_t j = 1; j < top; ++j) {  //",
         "for (int64_t j = 1; j < top - 1; ++j) {  //"}}},
      {"weighing rows",
       "moe_weigh_kernel",
       moves,
       kFinite,
       kFloat32,
       weigh,
       bench,
       [](const Problem& p) { return 2.0 * row_bytes(p); },
       no_flops,
       {{"moe_weigh_kernel", "weights by row instead of by pair", "moe.cu",
         "const float factor = call.weight[call.index[row]];",
         "const float factor = call.weight[row];"}}},
      {"weighing rows, gradient",
       "moe_weigh_backward_kernel",
       moves,
       kFinite,
       kFloat32,
       weigh_backward,
       bench,
       [](const Problem& p) { return 3.0 * row_bytes(p); },
       no_flops,
       {{"moe_weigh_backward_kernel", "a sum of half the lanes", "moe.cu",
         "__fadd_rn(__fadd_rn(lanes.x, lanes.z), __fadd_rn(lanes.y, lanes.w))",
         "__fadd_rn(lanes.x, lanes.z)"}}},
  };
}

}  // namespace graft::kernels::test
