#include "train/job/machine.h"

#include <fstream>
#include <limits>
#include <set>
#include <string_view>
#include <thread>

#include <gnu/libc-version.h>
#include <omp.h>
#include <sched.h>

#include <torch/headeronly/version.h>

#include "core/progress.h"
#include "kernels/memory.h"
#include "kernels/simd/table.h"  // table().name
#include "train/job/compute.h"
#include "train/job/memory.h"

namespace graft::train {
namespace {

// The value behind `key` in a file of "key : value" lines; "" without.
std::string value_at(const std::string& path, std::string_view key) {
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(':');
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    if (colon != std::string::npos && begin != std::string::npos) return line.substr(begin);
  }
  return "";
}

std::string instruction_sets() {
  std::string text;
#if defined(__x86_64__)
  const auto add = [&](const char* name, bool has) {
    if (has) text += (text.empty() ? "" : " ") + std::string(name);
  };
  add("avx2", __builtin_cpu_supports("avx2"));
  add("fma", __builtin_cpu_supports("fma"));
  add("avx512f", __builtin_cpu_supports("avx512f"));
  add("avx512bw", __builtin_cpu_supports("avx512bw"));
  add("avx512dq", __builtin_cpu_supports("avx512dq"));
  add("avx512vl", __builtin_cpu_supports("avx512vl"));
  add("avx512bf16", __builtin_cpu_supports("avx512bf16"));
#endif
  return text.empty() ? "none that graft knows" : text;
}

// Processors that this process may run on.
int allowed_processors() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0
             ? CPU_COUNT(&set)
             : static_cast<int>(std::thread::hardware_concurrency());
}

std::string memory_text() {
  const int64_t total = total_memory(), free = free_memory();
  return (total < 0 ? "" : format_bytes(total) + ", ") +
         (free == std::numeric_limits<int64_t>::max() ? "free: not known"
                                                      : format_bytes(free) + " free");
}

std::string cuda_text() {
  char name[256] = "";
  double bytes_per_second = 0;
  if (graft_device_describe(GRAFT_CUDA, name, sizeof name, &bytes_per_second) != GRAFT_OK) {
    const std::string reason = graft_last_error();
    const size_t at = reason.find("no CUDA device");
    return at == std::string::npos ? reason : reason.substr(at);
  }
  return std::string(name) + ", " + format_fixed(bytes_per_second / 1e9, 0) + " GB/s";
}

}  // namespace

std::vector<std::string> openmp_runtimes() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> runtimes;
  for (std::string line; std::getline(maps, line);) {
    const size_t slash = line.rfind('/');
    if (slash == std::string::npos) continue;
    const std::string_view path = line;
    const std::string_view name = path.substr(slash + 1);
    for (const char* runtime : {"libgomp", "libiomp", "libomp"}) {
      if (name.rfind(runtime, 0) == 0) runtimes.insert(line.substr(line.find('/')));
    }
  }
  return {runtimes.begin(), runtimes.end()};
}

std::vector<MachineFact> machine_facts() {
  const std::string model = value_at("/proc/cpuinfo", "model name");
  std::string runtimes;
  for (const std::string& runtime : openmp_runtimes()) {
    runtimes += (runtimes.empty() ? "" : ", ") + runtime;
  }
  const graft_float_type operands = operands_of("auto");
  return {
      {"processor", model.empty() ? "not known" : model},
      {"instructions", instruction_sets()},
      {"kernels", kernels::table().name},
      {"threads", std::to_string(omp_get_max_threads()) + " of " +
                      std::to_string(allowed_processors()) + " processors"},
      {"matrix product", format_fixed(product_rate(operands) / 1e9, 0) + " GFLOP/s in " +
                             compute_name(operands) + ", which compute: auto takes"},
      {"memory", memory_text()},
      {"OpenMP", runtimes.empty() ? "none" : runtimes},
      {"CUDA", cuda_text()},
      {"versions", std::string("graft ") + GRAFT_VERSION + ", LibTorch " + TORCH_VERSION +
                       ", compiler " + __VERSION__ + ", C library " + gnu_get_libc_version()},
  };
}

}  // namespace graft::train
