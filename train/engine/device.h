// Where a decoder computes: what its kernels are told, and what they leave to the engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/nf4.h"
#include "kernels/product.h"

namespace graft::train {

// Turns a kernel's status into graft::Error: device trouble is kDevice, everything else a bug, as
// the engine checks its input before it calls a kernel.
void check(graft_status status);

// The processor, a GPU, or the emulated GPU, whose memory the host cannot follow either. Calls are
// in the stream's order; only wait() waits, and a copy to host memory that a device has not pinned.
struct Device {
  graft_device kind = GRAFT_CPU;
  graft_stream stream = nullptr;

  bool is_host() const { return kind == GRAFT_CPU; }
  // Between the device and the host, or inside one of them.
  void copy(void* to, const void* from, size_t bytes) const;
  void fill(void* to, int byte, size_t bytes) const;
  void zero(void* to, size_t bytes) const { fill(to, 0, bytes); }
  void wait() const;
};

// c [m, n] = alpha * op(a) * op(b) + beta * c, rows without gaps. Sums and c are float32.
struct Product {
  graft_transpose ta, tb;
  int64_t m, n, k;
  float alpha;
  const void *a, *b;
  float beta;
  float* c;
  graft_float_type operands = GRAFT_F32;  // a and b
  int64_t a_stride = 0;                   // from stored row to row of a; 0 = no gaps
};
void multiply(const Device& device, const Product& product);

// Products that add up in one C, collected until run(): float32 ones then go through memory once,
// others are computed as they come. The bits of multiply() in turn.
class ProductChain {
 public:
  explicit ProductChain(const Device& device) : device_(device) {}
  void add(const Product& product);
  void run();

 private:
  static constexpr int64_t kMost = 4;
  const Device& device_;
  graft_product products_[kMost];
  int64_t count_ = 0;
};

// x [rows, columns] in bfloat16, to nearest, ties to even.
void round_values(
    const Device& device, const float* x, int64_t rows, int64_t columns, uint16_t* rounded);

// A 4-bit weight's values in `type`, [count].
void decode(const Device& device, const graft_nf4_weight& weight, graft_float_type type, void* out);

}  // namespace graft::train
