#include "kernels/product.h"

#include <cstring>

#include "kernels/bf16_product.h"
#include "kernels/decode_targets.h"
#include "kernels/device.h"
#include "kernels/gemm_chain.h"
#include "kernels/product_add.h"
#include "kernels/product_decode.h"

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

// What beta multiplies.
struct Addend {
  const void* values;
  int64_t stride;
};

Addend itself(const graft_product& p) {
  return {p.c, p.ldc};
}

// C = D.
void copy_rows(const graft_product& p, const Addend& d) {
  const size_t element = static_cast<size_t>(size_of(p.c_type));
  for (int64_t row = 0; row < p.m; ++row) {
    std::memcpy(static_cast<char*>(p.c) + static_cast<size_t>(row * p.ldc) * element,
                static_cast<const char*>(d.values) + static_cast<size_t>(row * d.stride) * element,
                static_cast<size_t>(p.n) * element);
  }
}

Bf16Operands bf16_operands(const graft_product& p) {
  Bf16Operands operands{p.m, p.n, p.k, p.a, p.type, p.lda, p.beta, p.c, p.ldc, p.c_type};
  operands.ta = p.ta;
  operands.alpha = p.alpha;
  return operands;
}

graft_status multiply(const graft_product& p,
                      const Addend& addend,
                      graft_device device,
                      graft_stream stream) {
  if (device != GRAFT_CPU) {
    return on_device("graft_multiply", device, [&](const DeviceTable& functions) {
      return functions.multiply(p, addend.values, addend.stride, stream);
    });
  }
  if (addend.values != p.c && p.beta != 0.0f) copy_rows(p, addend);
  if (p.type == GRAFT_F32) {
    gemm_f32_chain(&p, 1);
    return GRAFT_OK;
  }
  bf16_product_of(bf16_operands(p), p.tb, static_cast<const uint16_t*>(p.b), p.ldb);
  return GRAFT_OK;
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
  return multiply(p, itself(p), device, stream);
}

extern "C" graft_status graft_multiply_add(const graft_product* product,
                                           const void* d,
                                           int64_t ldd,
                                           graft_device device,
                                           graft_stream stream) {
  constexpr const char* kName = "graft_multiply_add";
  if (const graft_status status = check_pointers(kName, {{"product", product}})) return status;
  const graft_product& p = *product;
  if (const graft_status status = check_product(kName, p)) return status;
  if (p.m == 0 || p.n == 0) return GRAFT_OK;
  if (const graft_status status = check_counts(kName, {{"ldd", ldd, p.n}})) return status;
  if (const graft_status status = check_pointers(kName, {{"d", d}})) return status;
  if (d == p.c) return fail(GRAFT_BAD_ARGUMENT, kName, "d and c are the same array");
  return multiply(p, {d, ldd}, device, stream);
}

extern "C" graft_status graft_multiply_chain(const graft_product* products,
                                             int64_t count,
                                             graft_device device,
                                             graft_stream stream) {
  constexpr const char* kName = "graft_multiply_chain";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"products", products}})) return status;
  bool float32 = device == GRAFT_CPU;
  for (int64_t i = 0; i < count; ++i) {
    const graft_product& p = products[i];
    if (const graft_status status = check_product(kName, p)) return status;
    const graft_product& first = products[0];
    if (p.m != first.m || p.n != first.n || p.c != first.c || p.ldc != first.ldc ||
        p.c_type != first.c_type) {
      return fail(GRAFT_BAD_ARGUMENT, kName, "product %lld has another C than the first",
                  static_cast<long long>(i));
    }
    float32 = float32 && p.type == GRAFT_F32;
  }
  if (products[0].m == 0 || products[0].n == 0) return GRAFT_OK;
  if (float32) {
    gemm_f32_chain(products, count);
    return GRAFT_OK;
  }
  for (int64_t i = 0; i < count; ++i) {
    const graft_product& p = products[i];
    if (const graft_status status = multiply(p, itself(p), device, stream)) return status;
  }
  return GRAFT_OK;
}

extern "C" graft_status graft_multiply_decoding(const graft_product* product,
                                                const void* d,
                                                int64_t ldd,
                                                const graft_decode_target* targets,
                                                int64_t target_count) {
  constexpr const char* kName = "graft_multiply_decoding";
  if (const graft_status status = check_pointers(kName, {{"product", product}})) return status;
  const graft_product& p = *product;
  if (const graft_status status = check_product(kName, p)) return status;
  if (p.type != GRAFT_BF16) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "the type is %d, expected 1 (bfloat16)",
                static_cast<int>(p.type));
  }
  if (d != nullptr) {
    if (const graft_status status = check_counts(kName, {{"ldd", ldd, p.n}})) return status;
    if (d == p.c) return fail(GRAFT_BAD_ARGUMENT, kName, "d and c are the same array");
  }
  if (const graft_status status = check_decode_targets(kName, targets, target_count)) {
    return status;
  }
  if (p.m == 0 || p.n == 0) return GRAFT_OK;
  const PartlyPacked b{static_cast<const uint16_t*>(p.b), p.ldb, targets, target_count};
  const int64_t rows = p.tb == GRAFT_T ? p.n : p.k;
  for (int64_t i = 0; i < target_count; ++i) {
    const graft_decode_target& target = targets[i];
    const int64_t first = b.first_row(target);
    if (first < 0 || target.row_stride != p.ldb || target.tail != nullptr) {
      return fail(GRAFT_BAD_SHAPE, kName,
                  "target %lld does not lie in rows of b, %lld values from one to the next",
                  static_cast<long long>(i), static_cast<long long>(p.ldb));
    }
    if (target.weight.count / target.columns > rows - first) {
      return fail(GRAFT_BAD_SHAPE, kName, "target %lld ends behind b's %lld rows",
                  static_cast<long long>(i), static_cast<long long>(rows));
    }
  }
  if (d != nullptr && p.beta != 0.0f) copy_rows(p, {d, ldd});
  bf16_product_decoding(bf16_operands(p), p.tb, b);
  return GRAFT_OK;
}
