#include "train/engine/device.h"

#include <cstring>

#include "train/engine/tensor.h"

namespace graft::train {

void Device::copy(void* to, const void* from, size_t bytes) const {
  std::memcpy(to, from, bytes);
}

void Device::zero(void* to, size_t bytes) const {
  std::memset(to, 0, bytes);
}

void multiply(const Device& device, const Product& p) {
  graft_product product{};
  product.ta = p.ta;
  product.tb = p.tb;
  product.m = p.m;
  product.n = p.n;
  product.k = p.k;
  product.alpha = p.alpha;
  product.beta = p.beta;
  product.a = p.a;
  product.lda = p.ta == GRAFT_N ? p.k : p.m;
  product.b = p.b;
  product.ldb = p.tb == GRAFT_N ? p.n : p.k;
  product.c = p.c;
  product.ldc = p.n;
  check(graft_multiply(&product, device.kind, device.stream));
}

}  // namespace graft::train
