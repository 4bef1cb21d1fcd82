// Cases of matrix products, LoRA layers and the packed small product.
#include <algorithm>
#include <array>

#include "kernels/linear4.h"
#include "kernels/lora.h"
#include "kernels/product_add.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

const std::vector<graft_float_type> kBoth = {GRAFT_F32, GRAFT_BF16};

double element_bytes(const Problem& p) {
  return p.type == GRAFT_F32 ? 4.0 : 2.0;
}

// Sums of up to 600 (lora: 2048) products in another order: 2048 roundings of 2^-24 for float32,
// and one rounding to bfloat16 of the result, and of u and du before it.
double product_tolerance(const Problem& p) {
  return p.type == GRAFT_F32 ? 2048 * 0x1p-24 : 3 * 0x1p-8;
}

// a = m, b = n, c = k, d = transposes (1: A, 2: B) + 4 for a beta, + 8 for a float32 C, + 16 for a
// D that is not C.
Job multiply(graft_device device, const Problem& p) {
  Job job(device, p);
  graft_product product{};
  product.ta = (p.d & 1) != 0 ? GRAFT_T : GRAFT_N;
  product.tb = (p.d & 2) != 0 ? GRAFT_T : GRAFT_N;
  product.m = p.a;
  product.n = p.b;
  product.k = p.c;
  product.alpha = 0.5f;
  product.beta = (p.d & 4) != 0 ? 1.0f : 0.0f;
  product.type = p.type;
  product.c_type = (p.d & 8) != 0 ? GRAFT_F32 : p.type;
  product.lda = (product.ta == GRAFT_N ? p.c : p.a) + 8;
  product.ldb = (product.tb == GRAFT_N ? p.b : p.c) + 16;
  product.ldc = p.b + 24;
  product.a = job.elements(values_of(p.input, (product.ta == GRAFT_N ? p.a : p.c) * product.lda, 1))
                  ->data();
  product.b =
      job.elements(random_values((product.tb == GRAFT_N ? p.c : p.b) * product.ldb, 2))->data();
  const Values before = random_values(p.a * product.ldc, 3);
  Array* const c =
      job.result(product.c_type == GRAFT_F32 ? job.floats(before) : job.elements(before));
  product.c = c->data();
  if ((p.d & 16) == 0) {
    job.launch = [=] { need(graft_multiply(&product, device)); };
    return job;
  }
  const int64_t ldd = p.b + 8;
  const Values added = random_values(p.a * ldd, 4);
  Array* const d =
      job.result(product.c_type == GRAFT_F32 ? job.floats(added) : job.elements(added));
  job.launch = [=] { need(graft_multiply_add(&product, d->data(), ldd, device)); };
  return job;
}

// a = tokens, b = in_features, c = out_features, d = rank + 1024 for the separate layout.
Job lora(graft_device device, const Problem& p) {
  Job job(device, p);
  graft_lora layer{};
  layer.layout = p.d >= 1024 ? GRAFT_LORA_SEPARATE : GRAFT_LORA_EXTENDED;
  layer.in_features = p.b;
  layer.out_features = p.c;
  layer.rank = p.d % 1024;
  layer.type = p.type;
  layer.scale = 0.25f;
  const bool extended = layer.layout == GRAFT_LORA_EXTENDED;
  const int64_t width = p.b + (extended ? layer.rank : 0);
  layer.w_stride = width;
  layer.w = job.elements(random_values(p.c * width, 1, 0.1f))->data();
  layer.a = job.elements(random_values(layer.rank * p.b, 2, 0.1f))->data();
  layer.b = job.elements(random_values(p.c * layer.rank, 3, 0.1f))->data();
  Array* const x = job.result(job.elements(values_of(p.input, p.a * width, 4)));
  Array* const dy = job.elements(random_values(p.a * p.c, 5));
  Array* const u = job.result(job.elements(zeros(p.a * layer.rank)));
  Array* const du = job.result(job.elements(zeros(p.a * layer.rank)));
  Array* const y = job.result(job.elements(zeros(p.a * p.c)));
  Array* const dx = job.result(job.elements(zeros(p.a * width)));
  Array* const da = job.result(job.floats(random_values(layer.rank * p.b, 6)));
  Array* const db = job.result(job.floats(random_values(p.c * layer.rank, 7)));
  const int64_t tokens = p.a, out = p.c;
  job.launch = [=] {
    void* const u_apart = extended ? nullptr : u->data();
    void* const du_apart = extended ? nullptr : du->data();
    need(graft_lora_forward(&layer, tokens, x->data(), width, u_apart, layer.rank, y->data(), out,
                            device));
    need(graft_lora_backward(&layer, tokens, dy->data(), out, dx->data(), width, du_apart,
                             layer.rank, device));
    need(graft_lora_gradients(&layer, tokens, x->data(), width, u_apart, layer.rank, dy->data(),
                              out, extended ? dx->data() : du->data(),
                              extended ? width : layer.rank, da->floats(), db->floats(), device));
  };
  return job;
}

// Pairs of c projections of a = in_features, the i-th with b + i outputs and of rank d + 2 i, the
// second without a pair.
std::array<graft_lora_pair, GRAFT_LORA_PAIRS> pairs_of(const Problem& p) {
  std::array<graft_lora_pair, GRAFT_LORA_PAIRS> pairs{};
  for (int64_t i = 0; i < p.c; ++i) {
    graft_lora_pair& pair = pairs.at(static_cast<size_t>(i));
    pair.out_features = p.b + i;
    pair.rank = i == 1 ? 0 : p.d + 2 * i;
    pair.scale = 0.25f * static_cast<float>(i + 1);
  }
  return pairs;
}
Job place_pairs(graft_device device, const Problem& p) {
  Job job(device, p);
  auto pairs = pairs_of(p);
  int64_t out = 0, rank = 0;
  uint32_t seed = 1;
  for (graft_lora_pair& pair : pairs) {
    out += pair.out_features;
    rank += pair.rank;
    if (pair.rank == 0) continue;
    pair.a = job.floats(values_of(p.input, pair.rank * p.a, seed++))->floats();
    pair.b = job.floats(random_values(pair.out_features * pair.rank, seed++))->floats();
  }
  const int64_t stride = p.a + rank + 4;
  Array* const to = job.result(job.bfloat16s(random_values((out + rank) * stride, seed)));
  const int64_t count = p.c, in = p.a;
  job.launch = [=] {
    need(graft_lora_place_pairs(pairs.data(), count, in, to->as<uint16_t>(), stride, device));
  };
  return job;
}
double pair_bytes(const Problem& p) {
  double out = 0, rank = 0, values = 0;
  for (const graft_lora_pair& pair : pairs_of(p)) {
    out += static_cast<double>(pair.out_features);
    rank += static_cast<double>(pair.rank);
    values += static_cast<double>(pair.rank * (pair.out_features + p.a));
  }
  return 4 * values + 2 * rank * (out + static_cast<double>(p.a));
}

// a = n, b = k, c = block size, d = m + 8 for double quantization, + 16 for fp4, + 32 for a beta
Job small_product(graft_device device, const Problem& p) {
  Job job(device, p);
  const int64_t m = p.d & 7, count = p.a * p.b;
  const int block = static_cast<int>(p.c);
  const int64_t blocks = graft_nf4_block_count(count, block);
  std::vector<uint8_t> bytes(static_cast<size_t>(graft_nf4_packed_bytes(count)));
  std::vector<uint8_t> codes(static_cast<size_t>(blocks));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 + i / 5);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 11);
  graft_nf4_weight weight{};
  weight.packed = job.bytes(bytes)->as<uint8_t>();
  weight.count = count;
  weight.block_size = block;
  weight.type = (p.d & 16) != 0 ? GRAFT_FP4 : GRAFT_NF4;
  if ((p.d & 8) != 0) {
    weight.absmax8 = job.bytes(codes)->as<uint8_t>();
    weight.nested_absmax = job.floats(random_values((blocks + 255) / 256, 2))->floats();
    weight.offset = 0.05f;
  } else {
    weight.absmax = job.floats(random_values(blocks, 3))->floats();
  }
  Array* const x = job.elements(values_of(p.input, m * (p.b + 2), 4));
  Array* const y = job.result(job.elements(random_values(m * (p.a + 1), 5)));
  const float beta = (p.d & 32) != 0 ? 0.5f : 0.0f;
  job.launch = [=, &p] {
    need(graft_linear4_forward(&weight, p.a, p.b, m, x->data(), p.type, p.b + 2, beta, y->data(),
                               p.a + 1, p.type, device));
  };
  return job;
}

}  // namespace

std::vector<KernelCase> product_cases() {
  return {
      {"multiply",
       "",
       {sizes(1, 1, 1, 2), sizes(7, 31, 70, 0), sizes(33, 64, 64, 2), sizes(64, 24, 513, 2 + 4 + 8),
        sizes(40, 16, 300, 1 + 8), sizes(16, 40, 600, 1 + 4 + 8), sizes(5, 9, 17, 3),
        sizes(6, 5, 0, 2 + 4), sizes(6, 5, 0, 2), shifted(sizes(12, 20, 36, 2)),
        sizes(64, 24, 513, 2 + 4 + 8 + 16), sizes(9, 16, 40, 4 + 16), sizes(6, 5, 0, 2 + 4 + 16),
        sizes(7, 8, 24, 2 + 16)},
       {Input::kNormal, Input::kOutlier, Input::kLarge},
       kBoth,
       multiply,
       sizes(8192, 4096, 4096, 2),
       [](const Problem& p) {
         return element_bytes(p) * static_cast<double>(p.a * p.b + p.a * p.c + p.b * p.c);
       },
       [](const Problem& p) {
         return 2.0 * static_cast<double>(p.a * p.b) * static_cast<double>(p.c);
       },
       {},
       product_tolerance},
      {"lora",
       "",
       {sizes(1, 8, 8, 8), sizes(5, 40, 24, 8), sizes(5, 40, 24, 8 + 1024), sizes(3, 13, 7, 3),
        sizes(3, 13, 7, 3 + 1024), sizes(2050, 16, 24, 8), sizes(9, 16, 8, 0)},
       {Input::kNormal, Input::kOutlier},
       kBoth,
       lora,
       sizes(8192, 4096, 4096, 64),
       [](const Problem& p) {
         return 2.0 * element_bytes(p) * static_cast<double>(p.a * (p.b + p.c) + p.b * p.c);
       },
       [](const Problem& p) {
         return 4.0 * static_cast<double>(p.a) * static_cast<double>(p.b * p.c);
       },
       {},
       product_tolerance},
      {"pairs around their weight",
       "place_pairs_kernel",
       {sizes(1, 1, 1, 1), sizes(64, 7, 3, 8), sizes(40, 33, 1, 16), sizes(260, 5, 4, 8),
        sizes(37, 12, 3, 3), sizes(8, 300, 2, 8), shifted(sizes(40, 9, 3, 8)), sizes(24, 0, 1, 8)},
       {Input::kNormal, Input::kDenormal, Input::kHuge},
       {GRAFT_F32},
       place_pairs,
       sizes(4096, 4096, 3, 16),
       pair_bytes,
       [](const Problem&) { return 0.0; },
       {{"place_pairs_kernel", "a block of B beside its own rows", "lora.cu",
         "if (column < 0 || column >= pair.rank) return 0.0f;",
         "if (column < 0 || column >= pair.rank) return pair.scale;"},
        {"place_pairs_kernel", "B without its scale", "lora.cu",
         "__fmul_rn(pair.b[row * pair.rank + column], pair.scale)",
         "pair.b[row * pair.rank + column]"},
        {"place_pairs_kernel", "A above its rows", "lora.cu",
         "to + (call.out + row) * call.to_stride + column",
         "to + (call.out + row - 1) * call.to_stride + column"},
        {"place_pairs_kernel", "the end of a row left out", "lora.cu",
         "column, value, call.rank - column);",
         "column, value, call.rank - column > 4 ? 4 : 1);"}}},
      {"small product",
       "small_product_kernel",
       {sizes(1, 64, 64, 1), sizes(9, 128, 64, 2 + 8), sizes(17, 576, 64, 4),
        sizes(8, 1088, 64, 3 + 16), sizes(11, 96, 32, 1 + 8 + 16), sizes(7, 2048, 4096, 2 + 32),
        sizes(5, 37, 64, 1 + 8), sizes(3, 80, 64, 4 + 32), shifted(sizes(6, 512, 64, 1))},
       {Input::kNormal, Input::kZero, Input::kOutlier},
       kBoth,
       small_product,
       sizes(14336, 4096, 64, 1 + 8),
       [](const Problem& p) { return 0.516 * static_cast<double>(p.a * p.b); },
       [](const Problem&) { return 0.0; },
       {{"small_product_kernel", "dropped barrier before the bytes are overwritten", "linear4.cu",
         "      __syncwarp();\n      const int64_t mine", "      const int64_t mine"},
        {"small_product_kernel", "the scale of the first lane for every step", "linear4.cu",
         "threadIdx.x % 32 / kLanes * kLanes + s", "threadIdx.x % 32 / kLanes * kLanes"},
        {"small_product_kernel", "even and odd nibbles swapped", "linear4.cu",
         "const float high = shared.code[byte >> 4], low = shared.code[byte & 15u];",
         "const float low = shared.code[byte >> 4], high = shared.code[byte & 15u];"},
        {"small_product_kernel", "steps past the end of a row", "linear4.cu",
         "if (base + s * kStepBytes >= row_bytes) continue;", ""}}},
  };
}

}  // namespace graft::kernels::test
