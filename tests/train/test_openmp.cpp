// LibTorch brings an OpenMP runtime along and graft's kernels are compiled against the compiler's:
// two in one process would each keep threads of their own, and a setting would reach only one.
#include <fstream>
#include <set>
#include <string>

#include <omp.h>

#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>

#include "kernels/elementwise.h"
#include "tests/train/catch_aten.h"

TEST_CASE("OpenMP: the process has one runtime, which LibTorch and the kernels share", "[train]") {
  // Both have worked before the process is looked at.
  const at::Tensor values = at::ones({1 << 20});
  REQUIRE(values.sum().item<double>() == 1 << 20);
  REQUIRE(graft_scale(values.data_ptr<float>(), 2.0F, values.numel()) == GRAFT_OK);

  std::ifstream maps("/proc/self/maps");
  std::set<std::string> runtimes;
  for (std::string line; std::getline(maps, line);) {
    const size_t slash = line.rfind('/');
    if (slash == std::string::npos) continue;
    const std::string name = line.substr(slash + 1);
    for (const char* runtime : {"libgomp", "libiomp", "libomp"}) {
      if (name.rfind(runtime, 0) == 0) runtimes.insert(line.substr(line.find('/')));
    }
  }
  CAPTURE(runtimes);
  CHECK(runtimes.size() == 1);

  const int before = omp_get_max_threads();
  omp_set_num_threads(before + 1);
  const int seen_by_torch = at::get_num_threads();
  omp_set_num_threads(before);
  CHECK(seen_by_torch == before + 1);
}
