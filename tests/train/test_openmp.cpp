// LibTorch brings an OpenMP runtime along and graft's kernels are compiled against the compiler's:
// two in one process would each keep threads of their own, and a setting would reach only one.
#include <cstdlib>
#include <string>
#include <vector>

#include <omp.h>

#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>

#include "kernels/elementwise.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "train/job/machine.h"

TEST_CASE("OpenMP: the process has one runtime, which LibTorch and the kernels share", "[train]") {
  // Both have worked before the process is looked at.
  const at::Tensor values = at::ones({1 << 20});
  REQUIRE(values.sum().item<double>() == 1 << 20);
  REQUIRE(graft_scale(values.data_ptr<float>(), 2.0F, values.numel()) == GRAFT_OK);

  const std::vector<std::string> runtimes = graft::train::openmp_runtimes();
  CAPTURE(runtimes);
  CHECK(runtimes.size() == 1);

  const int before = omp_get_max_threads();
  omp_set_num_threads(before + 1);
  const int seen_by_torch = at::get_num_threads();
  omp_set_num_threads(before);
  CHECK(seen_by_torch == before + 1);
}

TEST_CASE("OpenMP: the launcher starts a program once, with idle threads asleep", "[train]") {
  const char* const policy = std::getenv("OMP_WAIT_POLICY");
  const std::string before = policy != nullptr ? policy : "";
  ::unsetenv("OMP_WAIT_POLICY");
  // The runtime prints its settings each time that a program loads it.
  const auto result =
      graft::test::run({"graft", "train", "--help"}, "", {"OMP_DISPLAY_ENV=verbose"});
  if (!before.empty()) ::setenv("OMP_WAIT_POLICY", before.c_str(), 1);
  REQUIRE(result.exit_code == 0);
  const std::string begins = "OPENMP DISPLAY ENVIRONMENT BEGIN";
  const size_t first = result.err.find(begins);
  REQUIRE(first != std::string::npos);
  CHECK(result.err.find(begins, first + 1) == std::string::npos);
  CHECK(result.err.find("OMP_WAIT_POLICY = 'PASSIVE'") != std::string::npos);
  CHECK(result.err.find("GOMP_SPINCOUNT = '2000'") != std::string::npos);
  // What the user has set stays, and is not added to.
  const auto active = graft::test::run({"graft", "train", "--help"}, "",
                                       {"OMP_DISPLAY_ENV=verbose", "OMP_WAIT_POLICY=active"});
  CHECK(active.err.find("OMP_WAIT_POLICY = 'ACTIVE'") != std::string::npos);
  CHECK(active.err.find("GOMP_SPINCOUNT = '2000'") == std::string::npos);
}
