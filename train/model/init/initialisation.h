// How A and B begin: one row here and one function for each value of init_lora_weights.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "train/model/init/low_rank.h"
#include "train/model/model.h"

namespace graft::train {

struct InitContext {
  uint64_t seed = 0;
  // Of the randomised SVD; 0 = the exact one.
  int64_t iterations = 0;
  // LoftQ's T: how often the weight is quantized and the pair is fitted.
  int64_t loftq_iter = 1;
  // A linear's weight [out, in] as the checkpoint has it, before it was quantized.
  std::function<at::Tensor(const Linear&)> original;
};

struct Initialisation {
  std::string_view name;
  bool takes_iterations = false;  // also known as NAME_niter_N
  bool changes_base = false;      // W + scale * B A is W at the beginning because W has changed
  bool needs_4bit = false;        // makes up for what quantization took
  // A [rank, in] and B [out, rank] are allocated; rank and scale are set.
  void (*run)(Linear& linear, const InitContext& context) = nullptr;
};

// The row of a name and its number of iterations. Errors: kUsage for an unknown name.
struct ChosenInit {
  const Initialisation* row;
  int64_t iterations;
};
ChosenInit find_initialisation(std::string_view name);

// A and B from a pair that is to give B A: each takes the root of the scale.
void set_pair(Linear& linear, const LowRank& pair);
// w -= scale * B A, in place.
void subtract_pair(const Linear& linear, at::Tensor& w);

// pissa.cpp, loftq.cpp
void init_pissa(Linear& linear, const InitContext& context);
void init_loftq(Linear& linear, const InitContext& context);

}  // namespace graft::train
