// Timings that a busy machine cannot spoil silently.
//
// The arms of one comparison take turns. Before and after each arm's sample a fixed matrix product
// (the probe) is timed; a sample beside a probe below 85 % of the best probe of the whole program
// is thrown away, because something else used the processors. The figure is the median of five.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace graft::bench {

struct Arm {
  std::string name;            // "graft", "oneDNN"
  std::function<void()> call;  // one repetition
};

enum class Unit { kGigabytes, kGigaflops, kMegabytes, kTokens, kDocuments };  // all per second

struct Comparison {
  std::string name;  // "gemm forward, 1024 x 128 x 128"
  Unit unit = Unit::kGigaflops;
  double work = 0;  // bytes, flops, tokens or documents of one call
  std::vector<Arm> arms;
  // For products: the same call on one thread and on all of them, compared bit by bit.
  // Empty = not asked.
  std::vector<std::string> thread_bits;  // an arm each: "equal" or "differ"
};

struct Figure {
  std::string arm;
  double rate = 0;  // in the unit's thousand millions, millions or ones a second
  int samples = 0;  // good ones behind the median; 5, unless the machine was never quiet
  int discarded = 0;
  std::string thread_bits;
};

struct Result {
  std::string name;
  Unit unit;
  std::vector<Figure> figures;
};

class Bench {
 public:
  // `filter`: only comparisons whose name holds it are measured; "" = all.
  explicit Bench(std::string filter);

  void add(Comparison comparison);
  bool wants(const std::string& name) const;

  // Runs everything that was added, in order; results are told as they come.
  void run(const std::function<void(const Result&)>& done);

  // GB/s read plus written by plain copies of 256 MiB, on all threads.
  double copy_bandwidth() const { return copy_bandwidth_; }
  double best_probe_gflops() const { return best_probe_; }

  // GF/s of the fixed product now.
  double probe();

 private:
  struct Sample {
    double seconds;  // of one call
    double probe;    // the lower of the two around it
  };
  Sample sample(const Arm& arm, int64_t calls);
  Result measure(const Comparison& comparison);

  std::string filter_;
  std::vector<Comparison> comparisons_;
  std::vector<float> probe_a_, probe_b_, probe_c_;
  double best_probe_ = 0;
  double copy_bandwidth_ = 0;
};

const char* unit_name(Unit unit);  // "GB/s"

void add_kernels(Bench& bench);
void add_products(Bench& bench);
void add_data(Bench& bench);
void add_training(Bench& bench);  // with LibTorch only

}  // namespace graft::bench
