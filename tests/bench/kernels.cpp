#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include <omp.h>

#include "core/error.h"
#include "core/hash.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/gemm.h"
#include "kernels/nf4.h"
#include "kernels/optimizer.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "tests/bench/measure.h"

#ifdef GRAFT_BENCH_DNNL
#include <dnnl.h>
#endif

namespace graft::bench {
namespace {

using Floats = std::shared_ptr<std::vector<float>>;

void need(graft_status status) {
  if (status != GRAFT_OK) {
    fail(ExitCode::kBug, graft_last_error());
  }
}

// `count` values spread evenly in [-1, 1); every page is touched by the thread that will use it.
Floats floats(int64_t count, uint64_t seed) {
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(count));
  const Philox random(seed, 1);
  float* data = values->data();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    data[i] = 2.0F * random.uniform(static_cast<uint64_t>(i)) - 1.0F;
  }
  return values;
}

void add_copy(Bench& bench) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const Floats from = floats(kBytes / 4, 1);
  const Floats to = floats(kBytes / 4, 2);
  bench.add({"copy",
             Unit::kGigabytes,
             2.0 * kBytes,
             {{"memcpy",
               [from, to] {
#pragma omp parallel
                 {
                   const int64_t share = kBytes / 4 / omp_get_num_threads();
                   const int64_t begin = share * omp_get_thread_num();
                   std::memcpy(to->data() + begin, from->data() + begin,
                               static_cast<size_t>(share) * 4);
                 }
               }}},
             {}});
}

// 64 Mi weights: 256 MiB of float32, eight times a 32 MiB last-level cache.
void add_nf4(Bench& bench) {
  if (!bench.wants("nf4 quantize") && !bench.wants("nf4 decode")) {
    return;
  }
  constexpr int64_t kCount = int64_t{64} << 20;
  constexpr int kBlock = 64;
  const int64_t blocks = graft_nf4_block_count(kCount, kBlock);
  const Floats weight = floats(kCount, 3);
  const Floats absmax = floats(blocks, 4);
  const Floats nested = floats((blocks + 255) / 256, 5);
  const Floats offset = floats(1, 6);
  const auto packed = std::make_shared<std::vector<uint8_t>>(kCount / 2);
  const auto absmax8 = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(blocks));
  need(graft_nf4_quantize(weight->data(), kCount, kBlock, packed->data(), absmax->data(), GRAFT_CPU,
                          nullptr));
  need(graft_nf4_compress_absmax(absmax->data(), blocks, absmax8->data(), nested->data(),
                                 offset->data(), GRAFT_CPU, nullptr));
  const double plain_bytes = 4.5 * kCount + 4.0 * static_cast<double>(blocks);
  bench.add({"nf4 quantize",
             Unit::kGigabytes,
             plain_bytes,
             {{"graft",
               [=] {
                 need(graft_nf4_quantize(weight->data(), kCount, kBlock, packed->data(),
                                         absmax->data(), GRAFT_CPU, nullptr));
               }}},
             {}});
  bench.add({"nf4 decode to float32",
             Unit::kGigabytes,
             plain_bytes,
             {{"graft",
               [=] {
                 const graft_nf4_weight view{packed->data(), absmax->data(), nullptr, nullptr, 0,
                                             kCount,         kBlock};
                 need(graft_nf4_decode(&view, weight->data(), GRAFT_CPU, nullptr));
               }}},
             {}});
  bench.add({"nf4 decode to float32, nested absmax",
             Unit::kGigabytes,
             4.5 * kCount + static_cast<double>(blocks),
             {{"graft",
               [=] {
                 const graft_nf4_weight view{packed->data(), nullptr,      absmax8->data(),
                                             nested->data(), (*offset)[0], kCount,
                                             kBlock};
                 need(graft_nf4_decode(&view, weight->data(), GRAFT_CPU, nullptr));
               }}},
             {}});
  bench.add({"nf4 decode to bfloat16",
             Unit::kGigabytes,
             2.5 * kCount + 4.0 * static_cast<double>(blocks),
             {{"graft",
               [=] {
                 const graft_nf4_weight view{packed->data(), absmax->data(), nullptr, nullptr, 0,
                                             kCount,         kBlock};
                 need(graft_nf4_decode_bf16(&view, reinterpret_cast<uint16_t*>(weight->data()),
                                            GRAFT_CPU, nullptr));
               }}},
             {}});
}

// Row operators and the optimizer on 16 Mi elements: 64 MiB an array.
void add_rows(Bench& bench) {
  constexpr int64_t kDim = 2048;
  constexpr int64_t kRows = 8192;
  constexpr int64_t kCount = kRows * kDim;
  const Floats x = floats(kCount, 7);
  const Floats y = floats(kCount, 8);
  const Floats z = floats(kCount, 9);
  const Floats w = floats(kCount, 15);
  const Floats u = floats(kCount, 10);
  const Floats v = floats(kCount, 11);
  const Floats weight = floats(kDim, 12);
  const Floats inv_rms = floats(kRows, 13);
  std::fill(v->begin(), v->end(), 0.01F);  // second moments are not negative
  bench.add({"rmsnorm forward",
             Unit::kGigabytes,
             8.0 * kCount,
             {{"graft",
               [=] {
                 need(graft_rmsnorm_forward(x->data(), weight->data(), 1e-5F, kRows, kDim,
                                            y->data(), inv_rms->data()));
               }}},
             {}});
  bench.add({"rmsnorm backward",
             Unit::kGigabytes,
             16.0 * kCount,
             {{"graft",
               [=] {
                 need(graft_rmsnorm_backward(z->data(), x->data(), weight->data(), inv_rms->data(),
                                             kRows, kDim, u->data(), nullptr));
               }}},
             {}});
  bench.add(
      {"swiglu forward",
       Unit::kGigabytes,
       12.0 * kCount,
       {{"graft", [=] { need(graft_swiglu_forward(x->data(), z->data(), kCount, y->data())); }}},
       {}});
  bench.add({"swiglu backward",
             Unit::kGigabytes,
             20.0 * kCount,
             {{"graft",
               [=] {
                 need(graft_swiglu_backward(z->data(), x->data(), w->data(), kCount, y->data(),
                                            u->data()));
               }}},
             {}});
  constexpr int64_t kVocab = 32768;
  constexpr int64_t kPlaces = kCount / kVocab;
  const auto labels = std::make_shared<std::vector<int32_t>>(kPlaces, 5);
  const Floats losses = floats(kPlaces, 14);
  bench.add({"cross entropy with gradient",
             Unit::kGigabytes,
             8.0 * kCount,
             {{"graft",
               [=] {
                 need(graft_cross_entropy(y->data(), labels->data(), nullptr, kPlaces, kVocab,
                                          1e-3F, losses->data(), nullptr, GRAFT_CE_WITH_GRADIENT));
               }}},
             {}});
  bench.add(
      {"adamw",
       Unit::kGigabytes,
       28.0 * kCount,
       {{"graft",
         [=] {
           const graft_adamw options{1e-4F, 0.9F, 0.999F, 1e-8F, 0.01F, 10, 1.0F};
           need(graft_adamw_step(x->data(), z->data(), u->data(), v->data(), kCount, &options));
         }}},
       {}});
}

void add_attention(
    Bench& bench, int64_t documents, int32_t length, int64_t heads, int64_t head_dim) {
  const int64_t kv_heads = heads / 2;
  const int64_t tokens = documents * length;
  const auto ends = std::make_shared<std::vector<int32_t>>();
  for (int64_t d = 0; d <= documents; ++d) {
    ends->push_back(static_cast<int32_t>(d) * length);
  }
  graft_attention_shape shape{};
  shape.documents = documents;
  shape.cu_seqlens = ends->data();
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.q_stride = heads * head_dim;
  shape.k_stride = kv_heads * head_dim;
  shape.v_stride = kv_heads * head_dim;
  shape.out_stride = heads * head_dim;
  shape.scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  const Floats q = floats(tokens * shape.q_stride, 20);
  const Floats k = floats(tokens * shape.k_stride, 21);
  const Floats v = floats(tokens * shape.v_stride, 22);
  const Floats out = floats(tokens * shape.out_stride, 23);
  const Floats lse = floats(tokens * heads, 24);
  const Floats dout = floats(tokens * shape.out_stride, 25);
  const Floats dq = floats(tokens * shape.q_stride, 26);
  const Floats dk = floats(tokens * shape.k_stride, 27);
  const Floats dv = floats(tokens * shape.v_stride, 28);
  const size_t bytes = graft_attention_workspace_bytes(&shape);
  const auto workspace = std::make_shared<std::vector<std::byte>>(bytes + 64);
  // Causal: half of length^2, two products forward and five backward.
  const double pairs = 0.5 * static_cast<double>(documents) * length * length;
  const double product = 2.0 * static_cast<double>(heads * head_dim) * pairs;
  const std::string size = std::to_string(documents) + " x " + std::to_string(length) + ", " +
                           std::to_string(heads) + " heads of " + std::to_string(head_dim);
  bench.add({"attention forward, " + size,
             Unit::kGigaflops,
             2 * product,
             {{"graft",
               [=] {
                 static_cast<void>(ends);
                 need(graft_attention_forward(&shape, q->data(), k->data(), v->data(), out->data(),
                                              lse->data()));
               }}},
             {}});
  bench.add({"attention backward, " + size,
             Unit::kGigaflops,
             5 * product,
             {{"graft",
               [=] {
                 static_cast<void>(ends);
                 void* aligned = workspace->data();
                 size_t room = workspace->size();
                 std::align(64, bytes, aligned, room);
                 need(graft_attention_backward(&shape, q->data(), k->data(), v->data(), out->data(),
                                               lse->data(), dout->data(), dq->data(), dk->data(),
                                               dv->data(), aligned, bytes));
               }}},
             {}});
}

struct Product {
  const char* use;
  graft_transpose ta;
  graft_transpose tb;
  int64_t m, n, k;
  float beta;
};

// The shapes of one step of the quickstart's model (hidden 128, intermediate 384, vocabulary 768,
// rank 16; eight rows of 128 tokens), the head's chunk of 256 rows, one decoded token, and larger
// models' shapes: 512 tokens of hidden 2048, intermediate 5632.
constexpr Product kProducts[] = {
    {"linear 128 to 128", GRAFT_N, GRAFT_T, 1024, 128, 128, 0},
    {"linear 128 to 64", GRAFT_N, GRAFT_T, 1024, 64, 128, 0},
    {"linear 128 to 384", GRAFT_N, GRAFT_T, 1024, 384, 128, 0},
    {"linear 384 to 128", GRAFT_N, GRAFT_T, 1024, 128, 384, 0},
    {"head 128 to 768", GRAFT_N, GRAFT_T, 256, 768, 128, 0},
    {"lora A of 128", GRAFT_N, GRAFT_T, 1024, 16, 128, 0},
    {"lora B to 128", GRAFT_N, GRAFT_T, 1024, 128, 16, 1},
    {"lora B to 384", GRAFT_N, GRAFT_T, 1024, 384, 16, 1},
    {"dx of 128 to 384", GRAFT_N, GRAFT_N, 1024, 128, 384, 1},
    {"dx of 384 to 128", GRAFT_N, GRAFT_N, 1024, 384, 128, 0},
    {"du of 384", GRAFT_N, GRAFT_N, 1024, 16, 384, 0},
    {"dB of 384", GRAFT_T, GRAFT_N, 384, 16, 1024, 1},
    {"dA of 128", GRAFT_T, GRAFT_N, 16, 128, 1024, 1},
    {"dW of 128 to 384", GRAFT_T, GRAFT_N, 384, 128, 1024, 1},
    {"one token 128 to 384", GRAFT_N, GRAFT_T, 1, 384, 128, 0},
    {"one token 2048 to 5632", GRAFT_N, GRAFT_T, 1, 5632, 2048, 0},
    {"cube NN", GRAFT_N, GRAFT_N, 1024, 1024, 1024, 0},
    {"cube NT", GRAFT_N, GRAFT_T, 1024, 1024, 1024, 0},
    {"cube TN", GRAFT_T, GRAFT_N, 1024, 1024, 1024, 0},
    {"linear 2048 to 2048", GRAFT_N, GRAFT_T, 512, 2048, 2048, 0},
    {"linear 2048 to 5632", GRAFT_N, GRAFT_T, 512, 5632, 2048, 0},
    {"dx of 2048 to 5632", GRAFT_N, GRAFT_N, 512, 2048, 5632, 0},
};

using Multiply = std::function<void(float* c)>;

// Whether one thread and all threads give the same bits.
std::string thread_bits(const Multiply& multiply, const std::vector<float>& start) {
  const int threads = omp_get_max_threads();
  std::vector<float> all = start;
  multiply(all.data());
  omp_set_num_threads(1);
  std::vector<float> one = start;
  multiply(one.data());
  omp_set_num_threads(threads);
  return std::memcmp(one.data(), all.data(), one.size() * sizeof(float)) == 0 ? "equal" : "differ";
}

}  // namespace

void add_kernels(Bench& bench) {
  add_copy(bench);
  add_nf4(bench);
  add_rows(bench);
  add_attention(bench, 8, 128, 4, 32);
  add_attention(bench, 4, 512, 16, 64);
}

void add_products(Bench& bench) {
  for (const Product& p : kProducts) {
    const std::string name = std::string("gemm ") + p.use + ", " + std::to_string(p.m) + " x " +
                             std::to_string(p.n) + " x " + std::to_string(p.k);
    if (!bench.wants(name)) {
      continue;
    }
    const Floats a = floats(p.m * p.k, 30);
    const Floats b = floats(p.k * p.n, 31);
    const Floats c = floats(p.m * p.n, 32);
    const int64_t lda = p.ta == GRAFT_N ? p.k : p.m;
    const int64_t ldb = p.tb == GRAFT_N ? p.n : p.k;
    std::vector<std::pair<std::string, Multiply>> arms;
    arms.emplace_back("graft", [=](float* out) {
      need(graft_gemm_f32(p.ta, p.tb, p.m, p.n, p.k, 1, a->data(), lda, b->data(), ldb, p.beta, out,
                          p.n));
    });
#ifdef GRAFT_BENCH_DNNL
    arms.emplace_back("oneDNN", [=](float* out) {
      if (dnnl_sgemm(p.ta == GRAFT_N ? 'N' : 'T', p.tb == GRAFT_N ? 'N' : 'T', p.m, p.n, p.k, 1,
                     a->data(), lda, b->data(), ldb, p.beta, out, p.n) != dnnl_success) {
        fail(ExitCode::kBug, "dnnl_sgemm failed");
      }
    });
#endif
    Comparison comparison{name,
                          Unit::kGigaflops,
                          2.0 * static_cast<double>(p.m) * static_cast<double>(p.n * p.k),
                          {},
                          {}};
    for (const auto& [arm, multiply] : arms) {
      comparison.arms.push_back({arm, [multiply = multiply, c] { multiply(c->data()); }});
      comparison.thread_bits.push_back(thread_bits(multiply, *c));
    }
    bench.add(std::move(comparison));
  }
}

}  // namespace graft::bench
