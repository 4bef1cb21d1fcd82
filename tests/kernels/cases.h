// One row per operator that has CUDA kernels: what runs it, on which device and input, and what its
// result has to be. Every test of tests/kernels/test_cases.cpp walks the table.
#pragma once

#include <string>
#include <vector>

#include "kernels/memory.h"
#include "kernels/status.h"

namespace graft::kernels::test {

enum class Input { kNormal, kZero, kDenormal, kOutlier, kConstant, kLarge };
constexpr Input kInputs[] = {Input::kNormal,  Input::kZero,     Input::kDenormal,
                             Input::kOutlier, Input::kConstant, Input::kLarge};
const char* name_of(Input input);

// What a problem's sizes mean is the case's own business.
struct Problem {
  int64_t a = 1, b = 1, c = 1, d = 1;
  Input input = Input::kNormal;
  std::vector<int32_t> lengths = {};  // of documents
};

struct Run {
  graft_device device;
  const Problem& problem;
};

struct KernelCase {
  const char* name;
  const char* kernels;          // the __global__ functions that it starts, separated by spaces
  std::vector<Problem> shapes;  // each is run with every input that `inputs` has
  std::vector<Input> inputs;
  std::vector<float> (*run)(const Run& run);  // all outputs, from guarded buffers
  // Bytes that the operator has to move for its largest shape: the bench's yardstick.
  double (*bytes)(const Problem& problem);
  Problem bench;
};

const std::vector<KernelCase>& kernel_cases();

}  // namespace graft::kernels::test
