#include "train/engine/device.h"

#include <string>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "kernels/memory.h"

namespace graft::train {
namespace {

graft_product product_of(const Product& p) {
  graft_product product{};
  product.ta = p.ta;
  product.tb = p.tb;
  product.m = p.m;
  product.n = p.n;
  product.k = p.k;
  product.alpha = p.alpha;
  product.beta = p.beta;
  product.a = p.a;
  product.lda = p.a_stride > 0 ? p.a_stride : p.ta == GRAFT_N ? p.k : p.m;
  product.b = p.b;
  product.ldb = p.tb == GRAFT_N ? p.n : p.k;
  product.c = p.c;
  product.ldc = p.n;
  product.type = p.operands;
  product.c_type = GRAFT_F32;
  return product;
}

}  // namespace

void check(graft_status status) {
  if (status == GRAFT_OK) {
    return;
  }
  const bool device = status == GRAFT_NO_DEVICE || status == GRAFT_DEVICE_ERROR;
  fail(device ? ExitCode::kDevice : ExitCode::kBug,
       std::string(graft_status_name(status)) + ": " + graft_last_error());
}

void Device::copy(void* to, const void* from, size_t bytes) const {
  check(graft_device_copy(to, from, bytes, kind, stream));
}

void Device::fill(void* to, int byte, size_t bytes) const {
  check(graft_device_fill(to, byte, bytes, kind, stream));
}

void Device::wait() const {
  check(graft_device_synchronize(kind, stream));
}

void multiply(const Device& device, const Product& p) {
  const graft_product product = product_of(p);
  check(graft_multiply(&product, device.kind, device.stream));
}

void ProductChain::add(const Product& product) {
  if (count_ == kMost) run();
  products_[count_++] = product_of(product);
  if (product.operands != GRAFT_F32) run();
}

void ProductChain::run() {
  check(graft_multiply_chain(products_, count_, device_.kind, device_.stream));
  count_ = 0;
}

void round_values(
    const Device& device, const float* x, int64_t rows, int64_t columns, uint16_t* rounded) {
  check(graft_convert(x, GRAFT_F32, columns, rounded, GRAFT_BF16, columns, rows, columns, 1,
                      device.kind, device.stream));
}

void decode(const Device& device,
            const graft_nf4_weight& weight,
            graft_float_type type,
            void* out) {
  check(
      type == GRAFT_BF16
          ? graft_nf4_decode_bf16(&weight, static_cast<uint16_t*>(out), device.kind, device.stream)
          : graft_nf4_decode(&weight, static_cast<float*>(out), device.kind, device.stream));
}

}  // namespace graft::train
