// Where a decoder computes: what its kernels are told, and what they leave to the engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/product.h"

namespace graft::train {

// The processor, or the emulated GPU: the CUDA kernels on host memory.
struct Device {
  graft_device kind = GRAFT_CPU;
  graft_stream stream = nullptr;

  void copy(void* to, const void* from, size_t bytes) const;
  void zero(void* to, size_t bytes) const;
};

// c [m, n] = alpha * op(a) * op(b) + beta * c in float32, all rows without gaps.
struct Product {
  graft_transpose ta, tb;
  int64_t m, n, k;
  float alpha;
  const float *a, *b;
  float beta;
  float* c;
};
void multiply(const Device& device, const Product& product);

}  // namespace graft::train
