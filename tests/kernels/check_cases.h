// Runs problems of a case on a device and compares with the processor.
#pragma once

#include <string>

#include "tests/kernels/cases.h"

namespace graft::kernels::test {

// "" when the device gives what the processor gives: the same bits, or on a GPU within the case's
// tolerance. The emulated device runs its three schedules. Otherwise what differs; a launch that
// fails and a written guard byte are differences.
std::string difference(const KernelCase& kernel_case, const Problem& problem, graft_device device);

// The same against results that the caller has.
std::string difference_from(const KernelCase& kernel_case,
                            const Problem& problem,
                            graft_device device,
                            const std::vector<float>& expected);

}  // namespace graft::kernels::test
