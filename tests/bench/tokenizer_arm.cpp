// One timed arm of tests/peers/bench_tokenizers.py: loads a tokenizer, encodes the rows once.
//
// Usage: graft-tokenizer-arm --tokenizer PATH --rows FILE.jsonl --what ids|offsets|load
// Prints {"seconds", "cpu_seconds", "tokens", "peak_mib"}; the time of `ids` and `offsets` starts
// with a fresh cache and excludes loading.
#include <chrono>
#include <cstdio>
#include <ctime>
#include <map>
#include <string>
#include <vector>

#include <sys/resource.h>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/text/tokenizer.h"

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_seconds_now() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

int run(int argc, char** argv) {
  using namespace graft;
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  const std::string what = options["--what"];
  std::vector<std::string> rows;
  const std::string text = read_file(options["--rows"]);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    rows.push_back(parse_json(text.substr(at, end - at), options["--rows"]).at("text").as_string());
    at = end + 1;
  }
  double start = seconds_now();
  double cpu_start = cpu_seconds_now();
  const auto tokenizer = data::load_tokenizer(options["--tokenizer"]);
  size_t tokens = 0;
  if (what != "load") {
    start = seconds_now();
    cpu_start = cpu_seconds_now();
    for (const std::string& row : rows) {
      tokens +=
          what == "offsets" ? tokenizer->encode(row).ids.size() : tokenizer->encode_ids(row).size();
    }
  }
  const double seconds = seconds_now() - start;
  const double cpu_seconds = cpu_seconds_now() - cpu_start;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"tokens\": %zu, \"peak_mib\": %.1f}\n",
              seconds, cpu_seconds, tokens, static_cast<double>(usage.ru_maxrss) / 1024.0);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return graft::run_main([&] { return run(argc, argv); });
}
