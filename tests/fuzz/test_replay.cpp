// The corpora of `make fuzz`, replayed: every input ends in a result or in an error, soon.
#include <algorithm>
#include <cstdio>

#include <catch2/catch.hpp>
#include <sys/resource.h>

#include "tests/fuzz/corpus.h"
#include "tests/fuzz/targets.h"
#include "tests/support/support.h"

namespace graft::fuzz {
namespace {

int64_t peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

}  // namespace

TEST_CASE("fuzz: every input of the corpora ends within a second and in bounded memory", "[fuzz]") {
  const size_t index = GENERATE(range(size_t{0}, kTargets.size()));
  const Target& target = kTargets[index];
  const std::string name(target.name);
  CAPTURE(name);
  const std::vector<std::string> inputs =
      read_corpus(test::source_path("tests/fuzz/corpus/" + name));
  CHECK(inputs.size() >= 20);
  double slowest = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(i);
    const double start = test::cpu_seconds();
    target.run(inputs[i]);
    const double took = test::cpu_seconds() - start;
    slowest = std::max(slowest, took);
    CHECK(took < 1.0);
  }
  CHECK(peak_mib() < 512);
  std::printf("fuzz %s: %zu inputs, the slowest took %.3f s, memory %lld MiB\n", name.c_str(),
              inputs.size(), slowest, static_cast<long long>(peak_mib()));
}

}  // namespace graft::fuzz
