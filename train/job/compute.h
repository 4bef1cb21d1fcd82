// compute: what the products of frozen weights take, as a config's key and as --compute.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "core/args.h"
#include "core/error.h"
#include "kernels/gemm_bf16.h"
#include "train/engine/device.h"

namespace graft::train {

constexpr std::string_view kComputeNames[] = {"auto", "fp32", "bf16"};

constexpr const char* compute_name(graft_float_type operands) {
  return operands == GRAFT_BF16 ? "bf16" : "fp32";
}

// Of one of the names. auto: bfloat16 where the device has instructions for it.
inline graft_float_type operands_of(std::string_view compute, const Device& device = {}) {
  const bool native = device.kind == GRAFT_CUDA || graft_gemm_bf16_native() != 0;
  const bool half = compute == "auto" ? native : compute == "bf16";
  return half ? GRAFT_BF16 : GRAFT_F32;
}

constexpr Option compute_option(const char* fallback) {
  return {"--compute", "auto|fp32|bf16", fallback,
          "operands of the products with frozen weights; bf16: rounded to bfloat16, sums in "
          "float32; auto: bf16 on a GPU and where the processor has instructions for it"};
}

// Errors: kUsage.
inline graft_float_type operands_of(const Args& args, const Device& device = {}) {
  const std::string compute = args.text("--compute");
  if (std::find(std::begin(kComputeNames), std::end(kComputeNames), compute) ==
      std::end(kComputeNames)) {
    fail(ExitCode::kUsage, unknown_name("compute", compute, kComputeNames), "--compute");
  }
  return operands_of(std::string_view{compute}, device);
}

}  // namespace graft::train
