// What nvcc's assembler says of each kernel, as a table.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::kernels::test {

struct PtxasLog {
  std::string compiler;             // "nvcc V13.0.88"
  std::vector<std::string> rows;    // "sm_90a decode_kernel<ToBf16, true>: 38 registers, 1088 B"
  std::vector<std::string> spills;  // rows of kernels with a stack frame or spills
};

// Reads <build>/kernels/ptxas.log (cmake/GraftCuda.cmake); rows sorted.
PtxasLog parse_ptxas_log(std::string_view text);

}  // namespace graft::kernels::test
