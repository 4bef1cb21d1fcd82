#include "kernels/product.h"

#include "kernels/bf16_product.h"
#include "kernels/device.h"

namespace graft::kernels {
namespace {

graft_status check_product(const char* function, const graft_product& p) {
  if ((p.ta != GRAFT_N && p.ta != GRAFT_T) || (p.tb != GRAFT_N && p.tb != GRAFT_T)) {
    return fail(GRAFT_BAD_ARGUMENT, function, "transpose is %d and %d, expected 0 or 1",
                static_cast<int>(p.ta), static_cast<int>(p.tb));
  }
  if (const graft_status status = check_element(function, p.type)) return status;
  if (p.c_type != GRAFT_F32 && p.c_type != p.type) {
    return fail(GRAFT_BAD_ARGUMENT, function, "c_type is %d, expected 0 (float32) or the type %d",
                static_cast<int>(p.c_type), static_cast<int>(p.type));
  }
  if (const graft_status status = check_counts(function, {{"m", p.m}, {"n", p.n}, {"k", p.k}})) {
    return status;
  }
  if (p.m == 0 || p.n == 0) return GRAFT_OK;
  if (const graft_status status =
          check_counts(function, {{"lda", p.lda, p.ta == GRAFT_N ? p.k : p.m},
                                  {"ldb", p.ldb, p.tb == GRAFT_N ? p.n : p.k},
                                  {"ldc", p.ldc, p.n}})) {
    return status;
  }
  if (const graft_status status = check_pointers(function, {{"c", p.c}})) return status;
  return p.k == 0 ? GRAFT_OK : check_pointers(function, {{"a", p.a}, {"b", p.b}});
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_multiply(const graft_product* product,
                                       graft_device device,
                                       graft_stream stream) {
  constexpr const char* kName = "graft_multiply";
  if (const graft_status status = check_pointers(kName, {{"product", product}})) return status;
  const graft_product& p = *product;
  if (const graft_status status = check_product(kName, p)) return status;
  if (p.m == 0 || p.n == 0) return GRAFT_OK;
  if (device != GRAFT_CPU) {
    return on_device(kName, device,
                     [&](const DeviceTable& functions) { return functions.multiply(p, stream); });
  }
  if (p.type == GRAFT_F32) {
    return graft_gemm_f32(p.ta, p.tb, p.m, p.n, p.k, p.alpha, static_cast<const float*>(p.a), p.lda,
                          static_cast<const float*>(p.b), p.ldb, p.beta, static_cast<float*>(p.c),
                          p.ldc);
  }
  Bf16Operands operands{p.m, p.n, p.k, p.a, p.type, p.lda, p.beta, p.c, p.ldc, p.c_type};
  operands.ta = p.ta;
  operands.alpha = p.alpha;
  bf16_product_of(operands, p.tb, static_cast<const uint16_t*>(p.b), p.ldb);
  return GRAFT_OK;
}
