// Cases of the losses.
#include "kernels/cross_entropy.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kBoth = {GRAFT_F32, GRAFT_BF16};

// a = rows, b = vocabulary, c = 1 for capped logits, d = 1 for the loss alone
Job cross_entropy(graft_device device, const Problem& p) {
  Job job(device, p);
  std::vector<int32_t> labels(static_cast<size_t>(p.a));
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i] = static_cast<int32_t>((i * 97 + 5) % static_cast<size_t>(p.b));
  }
  Array* const label = job.indices(labels);
  Array* const weight = job.floats(random_floats(p.a, 2));
  Array* const logits = job.result(job.elements(values_of(p.input, p.a * p.b, 1)));
  Array* const loss = job.result(job.floats(zeros(p.a)));
  Array* const correct = job.result(job.bytes(std::vector<uint8_t>(labels.size())));
  job.launch = [=, &p] {
    need(graft_cross_entropy(logits->data(), label->as<int32_t>(),
                             p.d == 1 ? nullptr : weight->floats(), p.a, p.b, 0.7f, loss->floats(),
                             correct->as<uint8_t>(),
                             p.d == 1 ? GRAFT_CE_LOSS_ONLY : GRAFT_CE_WITH_GRADIENT, p.type,
                             p.c == 1 ? 30.0f : 0.0f, device));
  };
  return job;
}

}  // namespace

std::vector<KernelCase> loss_cases() {
  return {
      {"cross entropy",
       "cross_entropy_kernel",
       {sizes(1, 1), sizes(3, 2, 1), sizes(2, 511, 0, 1), sizes(2, 512, 1), sizes(2, 513),
        shifted(sizes(2, 1024, 1, 1)), sizes(1, 33797)},
       {Input::kNormal, Input::kZero, Input::kDenormal, Input::kOutlier, Input::kConstant,
        Input::kLarge, Input::kMinusInfinity},
       kBoth,
       cross_entropy,
       sizes(4096, 128256),
       [](const Problem& p) {
         return 2.0 * (p.type == GRAFT_F32 ? 4.0 : 2.0) * static_cast<double>(p.a * p.b);
       },
       [](const Problem&) { return 0.0; },
       {{"cross_entropy_kernel", "dropped barrier before the next tiles", "cross_entropy.cu",
         "      shared.total = total;\n    }\n    __syncthreads();",
         "      shared.total = total;\n    }"},
        {"cross_entropy_kernel", "the last of the largest logits counts as right",
         "cross_entropy.cu", "b.index < a.index", "b.index > a.index"},
        {"cross_entropy_kernel", "the scale not subtracted at the label", "cross_entropy.cu",
         "*lane = __fsub_rn(*lane, scale);", "*lane = __fsub_rn(*lane, 1.0f);"},
        {"cross_entropy_kernel", "zeros past the end counted as logits", "cross_entropy.cu",
         "e.w = end - i > 3 ? exponential(__fsub_rn(v.w, top)) : 0.0f;",
         "e.w = exponential(__fsub_rn(v.w, top));"}}},
  };
}

}  // namespace graft::kernels::test
