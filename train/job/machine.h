// The machine as graft finds it.
#pragma once

#include <string>
#include <vector>

namespace graft::train {

struct MachineFact {
  std::string name;   // "processor"
  std::string value;  // for people
};

// Processor, instruction sets and the one that the kernels use, threads, memory, OpenMP runtime,
// CUDA device, versions. Measures the matrix product for a tenth of a second.
std::vector<MachineFact> machine_facts();

// The OpenMP runtimes in this process. More than one keep threads of their own each, and a setting
// reaches only one of them.
std::vector<std::string> openmp_runtimes();

}  // namespace graft::train
