// One row per operator that has CUDA kernels: what runs it, on which device, shapes and inputs, how
// much it moves and computes, and which faults planted in its source it has to find. What walks the
// table: test_cases.cpp (`make test`), kernel_check.cpp (`make mutants`, `make gpu-check`).
#pragma once

#include <string>
#include <vector>

#include "tests/kernels/job.h"

namespace graft::kernels::test {

// A fault: the text `from`, which stands once in kernels/<file>, replaced by `to`.
struct Mutation {
  const char* kernel;  // the __global__ function that it breaks
  const char* fault;   // for example "dropped barrier"
  const char* file;
  const char* from;
  const char* to;
};

struct KernelCase {
  const char* name;
  const char* kernels;  // the __global__ functions that it starts, separated by spaces; "" for
                        // what cuBLASLt does
  std::vector<Problem> shapes;
  std::vector<Input> inputs;            // each shape is run with each of them,
  std::vector<graft_float_type> types;  // and with each type of activations
  Job (*prepare)(graft_device device, const Problem& problem);
  // For the bench: its problem, the bytes that one launch has to move, and the floating operations
  // of products, 0 where memory is the limit.
  Problem bench;
  double (*bytes)(const Problem& problem);
  double (*flops)(const Problem& problem);
  std::vector<Mutation> mutations;
  // Largest difference on a GPU as a share of the largest result; NULL: the same bits. Products are
  // cuBLASLt's with its own order of sums, and a loss has the device library's logarithm.
  double (*gpu_tolerance)(const Problem& problem) = nullptr;
};

struct CasePart {
  const char* name;
  std::vector<KernelCase> cases;
};
const std::vector<CasePart>& case_parts();

// Every problem of a case: shapes x inputs x types, with fewer inputs for the types after the
// first.
std::vector<Problem> problems_of(const KernelCase& kernel_case);
// "rmsnorm forward: 3, 127, 0, 0, bf16, outlier, shifted"
std::string text_of(const KernelCase& kernel_case, const Problem& problem);

// The parts of the table.
std::vector<KernelCase> row_cases();
std::vector<KernelCase> elementwise_cases();
std::vector<KernelCase> attention_cases();
std::vector<KernelCase> expert_cases();
std::vector<KernelCase> loss_cases();
std::vector<KernelCase> optimizer_cases();
std::vector<KernelCase> weight_cases();
std::vector<KernelCase> product_cases();

}  // namespace graft::kernels::test
