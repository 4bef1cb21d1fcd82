#include "tests/kernels/cases.h"

namespace graft::kernels::test {

const std::vector<CasePart>& case_parts() {
  static const std::vector<CasePart> kParts = {{"rows", row_cases()},
                                               {"elementwise", elementwise_cases()},
                                               {"attention", attention_cases()},
                                               {"experts", expert_cases()},
                                               {"losses", loss_cases()},
                                               {"optimizer", optimizer_cases()},
                                               {"weights", weight_cases()},
                                               {"products", product_cases()}};
  return kParts;
}

std::vector<Problem> problems_of(const KernelCase& kernel_case) {
  std::vector<Problem> problems;
  for (Problem problem : kernel_case.shapes) {
    for (const graft_float_type type : kernel_case.types) {
      for (const Input input : kernel_case.inputs) {
        // Other types differ in how values are read and written only.
        if (type != kernel_case.types[0] && input != Input::kNormal && input != Input::kLarge &&
            input != Input::kDenormal) {
          continue;
        }
        problem.type = type;
        problem.input = input;
        problems.push_back(problem);
      }
    }
  }
  return problems;
}

std::string text_of(const KernelCase& kernel_case, const Problem& problem) {
  std::string text = std::string(kernel_case.name) + ": ";
  for (const int64_t size : {problem.a, problem.b, problem.c, problem.d}) {
    text += std::to_string(size) + ", ";
  }
  for (const int32_t length : problem.lengths) text += std::to_string(length) + ", ";
  return text + name_of(problem.type) + ", " + name_of(problem.input) +
         (problem.shifted ? ", shifted" : "");
}

}  // namespace graft::kernels::test
