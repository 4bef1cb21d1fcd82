#include "train/model/init/initialisation.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "kernels/gemm.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// The random numbers of a linear's A: named by it, so that the order of making does not matter.
Philox random_of(const Linear& linear, const InitContext& context) {
  return {context.seed, xxh3_64(linear.name + ".lora_A.weight")};
}

void zero_b(Linear& linear) {
  std::fill_n(f32(linear.lora.b), linear.lora.b.numel(), 0.0F);
}

// PEFT's kaiming_uniform with a = sqrt(5): uniform in +-1/sqrt(in).
void init_uniform(Linear& linear, const InitContext& context) {
  const Philox random = random_of(linear, context);
  const float bound = 1.0F / std::sqrt(static_cast<float>(linear.in));
  float* values = f32(linear.lora.a);
  for (int64_t i = 0; i < linear.lora.a.numel(); ++i) {
    values[i] = bound * (2.0F * random.uniform(static_cast<uint64_t>(i)) - 1.0F);
  }
  zero_b(linear);
}

// Normal with deviation 1 / rank.
void init_gaussian(Linear& linear, const InitContext& context) {
  const Philox random = random_of(linear, context);
  const double deviation = 1.0 / static_cast<double>(linear.lora.rank);
  float* values = f32(linear.lora.a);
  for (int64_t i = 0; i < linear.lora.a.numel(); ++i) {
    values[i] = static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
  }
  zero_b(linear);
}

constexpr Initialisation kRows[] = {
    {"default", false, false, false, init_uniform},
    {"gaussian", false, false, false, init_gaussian},
    {"pissa", true, true, false, init_pissa},
    {"loftq", true, false, true, init_loftq},
};

constexpr std::string_view kIterations = "_niter_";
constexpr int64_t kMostIterations = 64;

}  // namespace

void set_pair(Linear& linear, const LowRank& pair) {
  const double share = 1 / std::sqrt(static_cast<double>(linear.lora.scale));
  linear.lora.a.copy_(pair.a.mul(share));
  linear.lora.b.copy_(pair.b.mul(share));
}

void subtract_pair(const Linear& linear, at::Tensor& w) {
  const Lora& lora = linear.lora;
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, linear.out, linear.in, lora.rank, -lora.scale, f32(lora.b),
                       lora.rank, f32(lora.a), linear.in, 1, f32(w), linear.in));
}

ChosenInit find_initialisation(std::string_view name) {
  const size_t at = name.find(kIterations);
  for (const Initialisation& row : kRows) {
    if (name == row.name) return {&row, 0};
    if (at == std::string_view::npos || name.substr(0, at) != row.name || !row.takes_iterations) {
      continue;
    }
    const std::string_view digits = name.substr(at + kIterations.size());
    int64_t count = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (error == std::errc() && end == digits.data() + digits.size() && count >= 1 &&
        count <= kMostIterations) {
      return {&row, count};
    }
    fail(ExitCode::kUsage,
         "expected a number of iterations in 1..64, got \"" + std::string(digits) + "\"",
         "init_lora_weights", "write " + std::string(row.name) + "_niter_16");
  }
  std::vector<std::string_view> names;
  for (const Initialisation& row : kRows) names.push_back(row.name);
  fail(ExitCode::kUsage, unknown_name("initialisation", name, names), "init_lora_weights",
       "pissa and loftq also take _niter_N, such as pissa_niter_16");
}

}  // namespace graft::train
