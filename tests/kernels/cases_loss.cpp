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
    labels[i] = static_cast<int32_t>(i * 97 % static_cast<size_t>(p.b));  // the first of row 0
  }
  Array* const label = job.indices(labels);
  Array* const weight = job.floats(random_values(p.a, 2));
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

// a = tokens, b = dim, c = vocabulary, d = rows of a chunk + 64 for float32 logits, + 128 without
// gradients
Job head_rows(graft_device device, const Problem& p) {
  Job job(device, p);
  std::vector<int32_t> rows, labels;
  for (int32_t token = 0; token < p.a; ++token) {
    if (token % 3 == 1) continue;  // no loss
    rows.push_back(token);
    labels.push_back(static_cast<int32_t>((token * 31) % p.c));
  }
  const int64_t count = static_cast<int64_t>(rows.size());
  graft_head_rows head{};
  head.x = job.elements(values_of(p.input, p.a * p.b, 1))->data();
  head.w = job.elements(random_values(p.c * p.b, 2, 0.3f))->data();
  head.rows = job.indices(rows)->as<int32_t>();
  head.labels = job.indices(labels)->as<int32_t>();
  head.weight = job.floats(random_values(count, 3))->floats();
  head.count = count;
  head.tokens = p.a;
  head.dim = p.b;
  head.vocab = p.c;
  head.scale = 0.01f;
  head.softcap = p.b % 2 == 1 ? 30.0f : 0.0f;
  head.chunk_rows = p.d % 64;
  head.type = p.type;
  head.logits_type = (p.d & 64) != 0 ? GRAFT_F32 : p.type;
  const size_t bytes = graft_head_rows_workspace_bytes(&head);
  Array* const workspace = job.doubles(static_cast<int64_t>(bytes / sizeof(double)));
  Array* const loss = job.result(job.floats(zeros(count)));
  Array* const correct = job.result(job.bytes(std::vector<uint8_t>(rows.size())));
  Array* const dx = job.result(job.elements(random_values(p.a * p.b, 4)));
  Array* const sums = job.result(job.doubles(3));
  const bool with_gradient = (p.d & 128) == 0;
  job.launch = [=] {
    need(graft_head_rows_loss(&head, loss->floats(), correct->as<uint8_t>(),
                              with_gradient ? dx->data() : nullptr, sums->as<double>(),
                              workspace->data(), bytes, device));
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
         "e.w = exponential(__fsub_rn(v.w, top));"}},
       // One rounding of the loss apart.
       [](const Problem&) { return 0x1p-23; }},
      {"head loss",
       "embedding_forward_kernel cross_entropy_kernel scatter_rows_kernel loss_sums_kernel",
       {sizes(1, 4, 5, 1), sizes(20, 17, 40, 5), sizes(13, 16, 33, 4 + 64),
        sizes(9, 8, 12, 63 + 128), sizes(900, 4, 3, 63)},
       {Input::kNormal, Input::kOutlier},
       kBoth,
       head_rows,
       sizes(4096, 4096, 128256, 32),
       [](const Problem& p) {
         return 4.0 * static_cast<double>(p.a * p.c) * (p.type == GRAFT_F32 ? 4.0 : 2.0);
       },
       [](const Problem& p) {
         return 4.0 * static_cast<double>(p.a * p.b) * static_cast<double>(p.c) * 2.0 / 3.0;
       },
       {{"scatter_rows_kernel", "rows of the chunk instead of their tokens", "embedding.cu",
         "const int64_t row = blockIdx.x, target = call.rows[row], dim",
         "const int64_t row = blockIdx.x, target = row, dim"},
        {"loss_sums_kernel", "dropped barrier between the halvings", "cross_entropy.cu",
         "width /= 2) {\n    __syncthreads();\n    for (int j = 0; j < 3",
         "width /= 2) {\n    for (int j = 0; j < 3"},
        {"loss_sums_kernel", "unweighted losses", "cross_entropy.cu",
         "__dmul_rn(weight, static_cast<double>(call.row_loss[i]))",
         "static_cast<double>(call.row_loss[i])"}},
       // Logits of up to 17 products, and their exponentials.
       [](const Problem& p) { return p.type == GRAFT_F32 ? 0x1p-16 : 0x1p-6; }},
  };
}

}  // namespace graft::kernels::test
