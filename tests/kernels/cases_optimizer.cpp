// Cases of AdamW over many tensors.
#include "kernels/adamw_parts.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

// a = elements of the first tensor, b = tensors, c = 1 for clipping, d = columns of copies (0:
// none) in the problem's type
Job adamw(graft_device device, const Problem& p) {
  Job job(device, p);
  std::vector<graft_adamw_part> parts;
  for (int64_t i = 0; i < p.b; ++i) {
    const int64_t step = p.d > 0 ? p.d : p.a % 4 == 0 ? 12 : 3, count = p.a + step * i;
    const auto seed = static_cast<uint32_t>(10 * i);
    std::vector<float> second = random_floats(count, seed + 3, 0.1f);
    for (float& value : second) value *= value;
    graft_adamw_part part{};
    part.param = job.result(job.floats(random_values(count, seed)))->floats();
    part.grad = job.floats(values_of(p.input, count, seed + 1))->floats();
    part.m = job.result(job.floats(random_values(count, seed + 2, 0.1f)))->floats();
    part.v = job.result(job.floats(second))->floats();
    part.count = count;
    part.weight_decay = i % 3 == 0 ? 0.0f : 0.1f;
    if (p.d > 0 && i % 3 != 1) {
      part.copy_columns = p.d;
      part.copy_stride = p.d + 4;
      part.copy_scale = i == 0 ? 2.5f : 1.0f;
      part.copy_type = p.type;
      part.copy = job.result(job.elements(zeros(count / p.d * part.copy_stride)))->data();
    }
    parts.push_back(part);
  }
  Array* const result = job.result(job.floats(zeros(2)));
  const size_t bytes = graft_adamw_parts_workspace_bytes(parts.data(), p.b);
  Array* const workspace = job.result(job.doubles(static_cast<int64_t>(bytes / sizeof(double))));
  const bool clips = p.c == 1;
  job.launch = [=] {
    const graft_adamw options{1e-3f, 0.9f, 0.999f, 1e-8f, 0.5f, 3, 0.5f};
    need(graft_adamw_parts_step(parts.data(), static_cast<int64_t>(parts.size()), &options,
                                clips ? 1.0f : 0.0f, result->floats(), workspace->data(), bytes,
                                device));
  };
  return job;
}

}  // namespace

std::vector<KernelCase> optimizer_cases() {
  return {
      {"adamw",
       "adamw_squares_kernel adamw_norm_kernel adamw_step_kernel",
       {sizes(1, 1), sizes(17, 3, 1), sizes(1024, 2, 1), sizes(16384, 2), sizes(16385, 1, 1),
        sizes(5, 27, 1), sizes(0, 2), shifted(sizes(64, 25, 1)), sizes(64, 4, 1, 16),
        sizes(1040, 2, 0, 5), shifted(sizes(64, 3, 0, 8))},
       {Input::kNormal, Input::kZero, Input::kDenormal, Input::kOutlier, Input::kConstant,
        Input::kLarge, Input::kMinusInfinity},
       {GRAFT_F32, GRAFT_BF16},
       adamw,
       sizes(4096 * 16, 448),
       [](const Problem& p) { return 32.0 * static_cast<double>(p.a * p.b); },
       [](const Problem&) { return 0.0; },
       {{"adamw_squares_kernel", "lanes added in another order", "optimizer.cu",
         "threadIdx.x % 32 / 4 * 4) + from;", "threadIdx.x % 32 / 4 * 4) + 3 - from;"},
        {"adamw_norm_kernel", "the sum is no longer finite, but steps are made", "optimizer.cu",
         "const bool finite = norm <= 1.7976931348623157e308;", "const bool finite = true;"},
        {"adamw_norm_kernel", "dropped barrier after the tiles", "optimizer.cu",
         "? squares[base + threadIdx.x] : 0.0;\n    __syncthreads();",
         "? squares[base + threadIdx.x] : 0.0;"},
        {"adamw_step_kernel", "the first tensor's weight decay for all", "optimizer.cu",
         "__fmul_rn(a, part.decay)", "__fmul_rn(a, parts.part[0].decay)"},
        {"adamw_step_kernel", "copies without their gap", "optimizer.cu",
         "copy + row * part.copy_stride + column, scaled, 4",
         "copy + row * part.copy_columns + column, scaled, 4"},
        {"adamw_step_kernel", "copies without their scale", "optimizer.cu",
         "return __fmul_rn(a, part.copy_scale);", "return a;"},
        {"adamw_step_kernel", "blocks of the tensor before", "optimizer.cu",
         "if (parts.part[middle].first_unit <= unit) {",
         "if (parts.part[middle].first_unit < unit) {"}}},
  };
}

}  // namespace graft::kernels::test
