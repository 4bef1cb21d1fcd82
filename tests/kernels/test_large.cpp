// Indices past 2^31 elements, in arrays that are address space without memory: the processor's
// inner functions and the emulated device's last blocks work at their ends, and have to give what
// the same operator gives on the end alone.
#include <algorithm>
#include <cmath>

#include <sys/mman.h>

#include "kernels/adamw_parts.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/decode_rows.h"
#include "kernels/device.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/emu/emu.h"
#include "kernels/linear4.h"
#include "kernels/nf4.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

using Floats = std::vector<float>;

constexpr int64_t kLarge = (int64_t{1} << 31) + 8192;
// The end of an array that is looked at: whole blocks of every size, rows and vectors.
constexpr int64_t kEnd = 4096;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// `count` zeros; a page becomes memory when it is written.
template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t count) : count_(count) {
    void* const memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    values_ = static_cast<T*>(memory);
  }
  Sparse(int64_t count, const std::vector<T>& end) : Sparse(count) {
    std::copy(end.begin(), end.end(), values_ + count - static_cast<int64_t>(end.size()));
  }
  ~Sparse() { munmap(values_, bytes()); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  T* data() { return values_; }
  T* end(int64_t count) { return values_ + count_ - count; }
  std::vector<T> last(int64_t count) { return {end(count), end(0)}; }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
  int64_t count_;
  T* values_;
};

// The last blocks of every launch alone.
struct LastBlocks {
  explicit LastBlocks(uint64_t blocks = 8) { emu::run_last_blocks(blocks); }
  ~LastBlocks() { emu::run_last_blocks(0); }
  LastBlocks(const LastBlocks&) = delete;
  LastBlocks& operator=(const LastBlocks&) = delete;
};

}  // namespace

TEST_CASE("large: elementwise operators past 2^31 elements", "[kernels][emu][large]") {
  const LastBlocks few;
  const Floats x = random_floats(kEnd, 1), y = random_floats(kEnd, 2);
  SECTION("addition") {
    Sparse<float> a(kLarge, x), b(kLarge, y);
    Floats expected = x;
    REQUIRE(graft_add(expected.data(), y.data(), kEnd) == GRAFT_OK);
    REQUIRE(graft_add(a.data(), b.data(), kLarge, GRAFT_F32, GRAFT_EMU) == GRAFT_OK);
    CHECK(same_bits(a.last(kEnd), expected));
    table().addition({a.data(), b.data(), GRAFT_F32, GRAFT_F32}, kLarge - kEnd, kLarge);
    REQUIRE(graft_add(expected.data(), y.data(), kEnd) == GRAFT_OK);
    CHECK(same_bits(a.last(kEnd), expected));
  }
  SECTION("scaling, conversion and soft caps") {
    Sparse<float> a(kLarge, x), d(kLarge, y);
    Floats expected = x, gradient = y;
    REQUIRE(graft_scale(expected.data(), 0.3f, kEnd) == GRAFT_OK);
    REQUIRE(graft_softcap_forward(expected.data(), 2.0f, kEnd) == GRAFT_OK);
    REQUIRE(graft_softcap_backward(expected.data(), 2.0f, kEnd, gradient.data()) == GRAFT_OK);
    REQUIRE(graft_scale(a.data(), 0.3f, kLarge, GRAFT_F32, GRAFT_EMU) == GRAFT_OK);
    REQUIRE(graft_softcap_forward(a.data(), 2.0f, kLarge, GRAFT_F32, GRAFT_EMU) == GRAFT_OK);
    REQUIRE(graft_softcap_backward(a.data(), 2.0f, kLarge, d.data(), GRAFT_F32, GRAFT_EMU) ==
            GRAFT_OK);
    CHECK(same_bits(a.last(kEnd), expected));
    CHECK(same_bits(d.last(kEnd), gradient));
  }
  SECTION("dropout") {
    const int64_t dim = 1024, rows = kLarge / dim;
    Sparse<float> a(kLarge, x);
    Sparse<int64_t> index(rows, {7, 8, 9, 10});
    Floats expected = x;
    REQUIRE(graft_dropout_mask_apply(expected.data(), 4, dim, index.end(4), 1, 2, 0.5f) ==
            GRAFT_OK);
    REQUIRE(graft_dropout_mask_apply(a.data(), rows, dim, index.data(), 1, 2, 0.5f, GRAFT_F32,
                                     GRAFT_EMU) == GRAFT_OK);
    CHECK(same_bits(a.last(kEnd), expected));
  }
  SECTION("gated units") {
    Sparse<float> gate(kLarge, x), up(kLarge, y), out(kLarge), dgate(kLarge), dup(kLarge);
    Floats expected(at(kEnd)), dg(at(kEnd)), du(at(kEnd));
    REQUIRE(graft_swiglu_forward(x.data(), y.data(), kEnd, expected.data()) == GRAFT_OK);
    REQUIRE(graft_swiglu_backward(y.data(), x.data(), y.data(), kEnd, dg.data(), du.data()) ==
            GRAFT_OK);
    REQUIRE(graft_swiglu_forward(gate.data(), up.data(), kLarge, out.data(), GRAFT_F32,
                                 GRAFT_EMU) == GRAFT_OK);
    REQUIRE(graft_swiglu_backward(up.data(), gate.data(), up.data(), kLarge, dgate.data(),
                                  dup.data(), GRAFT_F32, GRAFT_EMU) == GRAFT_OK);
    CHECK(same_bits(out.last(kEnd), expected));
    CHECK(same_bits(dgate.last(kEnd), dg));
    CHECK(same_bits(dup.last(kEnd), du));
    Sparse<float> again(kLarge);
    table().gate_forward(
        {GRAFT_SILU, GRAFT_F32, kLarge, kLarge, kLarge, gate.data(), up.data(), again.data()},
        kLarge - kEnd, kLarge);
    CHECK(same_bits(again.last(kEnd), expected));
  }
}

TEST_CASE("large: rows past 2^31 elements", "[kernels][emu][large]") {
  const LastBlocks few;
  const int64_t dim = 512, rows = kLarge / dim, some = kEnd / dim;  // 8 rows, one block
  const Floats x = random_floats(kEnd, 1), dout = random_floats(kEnd, 2);
  const Floats weight = random_floats(dim, 3);
  SECTION("RMSNorm") {
    Sparse<float> a(kLarge, x), out(kLarge), inverse(rows), d(kLarge, dout), dx(kLarge);
    Floats expected(at(kEnd)), roots(at(some)), gradient(at(kEnd));
    REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, some, dim, expected.data(),
                                  roots.data()) == GRAFT_OK);
    REQUIRE(graft_rmsnorm_backward(dout.data(), x.data(), weight.data(), roots.data(), some, dim,
                                   gradient.data(), nullptr) == GRAFT_OK);
    const bool emulated = GENERATE(true, false);
    if (emulated) {
      REQUIRE(graft_rmsnorm_forward(a.data(), weight.data(), 1e-6f, rows, dim, out.data(),
                                    inverse.data(), GRAFT_RMSNORM_WEIGHT, GRAFT_F32, 0,
                                    GRAFT_EMU) == GRAFT_OK);
      REQUIRE(graft_rmsnorm_backward(d.data(), a.data(), weight.data(), inverse.data(), rows, dim,
                                     dx.data(), nullptr, GRAFT_RMSNORM_WEIGHT, GRAFT_F32, 0,
                                     GRAFT_EMU) == GRAFT_OK);
    } else {
      table().rmsnorm_forward({nullptr, a.data(), weight.data(), 1e-6f, GRAFT_RMSNORM_WEIGHT,
                               GRAFT_F32, GRAFT_F32, dim, dim, out.data(), inverse.data()},
                              rows - some, rows);
      table().rmsnorm_backward({d.data(), a.data(), weight.data(), inverse.data(),
                                GRAFT_RMSNORM_WEIGHT, GRAFT_F32, dim, dim, dx.data(), nullptr},
                               rows - some, rows);
    }
    CHECK(same_bits(out.last(kEnd), expected));
    CHECK(same_bits(inverse.last(some), roots));
    CHECK(same_bits(dx.last(kEnd), gradient));
  }
  SECTION("RoPE") {
    const int64_t stride = int64_t{1} << 30;  // two rows past 2^31 elements
    Sparse<float> a(3 * stride);
    Floats cos = random_floats(3 * 8, 4), sin = random_floats(3 * 8, 5),
           expected(x.begin(), x.begin() + 32);
    std::copy(expected.begin(), expected.end(), a.data() + 2 * stride);
    REQUIRE(graft_rope_apply(expected.data(), 1, 2, 16, 32, cos.data() + 16, sin.data() + 16,
                             GRAFT_ROPE_FORWARD) == GRAFT_OK);
    REQUIRE(graft_rope_apply(a.data(), 3, 2, 16, stride, cos.data(), sin.data(), GRAFT_ROPE_FORWARD,
                             0, GRAFT_F32, GENERATE(GRAFT_CPU, GRAFT_EMU)) == GRAFT_OK);
    CHECK(same_bits({a.data() + 2 * stride, a.data() + 2 * stride + 32}, expected));
  }
  SECTION("embedding") {
    const int64_t vocab = rows;
    Sparse<float> values(kLarge, x), gradients(kLarge, x);
    const std::vector<int32_t> ids = {static_cast<int32_t>(vocab - 1),
                                      static_cast<int32_t>(vocab - 8)};
    Floats out(at(2 * dim));
    const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
    REQUIRE(graft_embedding_forward(ids.data(), 2, values.data(), vocab, dim, out.data(), GRAFT_F32,
                                    device) == GRAFT_OK);
    CHECK(same_bits({out.begin(), out.begin() + dim}, {x.end() - dim, x.end()}));
    CHECK(same_bits({out.begin() + dim, out.end()}, {x.begin(), x.begin() + dim}));
    REQUIRE(graft_embedding_backward(dout.data(), ids.data(), 2, vocab, dim, gradients.data(),
                                     GRAFT_F32, device) == GRAFT_OK);
    CHECK(gradients.end(dim)[0] == x[at(kEnd - dim)] + dout[0]);
    CHECK(gradients.end(8 * dim)[5] == x[5] + dout[at(dim + 5)]);
  }
  SECTION("cross entropy") {
    const int64_t vocab = 4096, count = kLarge / vocab;
    Sparse<float> logits(kLarge, x), loss(count);
    Sparse<int32_t> labels(count, {17});
    Floats expected = x, expected_loss(1);
    REQUIRE(graft_cross_entropy(expected.data(), labels.end(1), nullptr, 1, vocab, 0.5f,
                                expected_loss.data(), nullptr, GRAFT_CE_WITH_GRADIENT) == GRAFT_OK);
    if (GENERATE(true, false)) {
      REQUIRE(graft_cross_entropy(logits.data(), labels.data(), nullptr, count, vocab, 0.5f,
                                  loss.data(), nullptr, GRAFT_CE_WITH_GRADIENT, GRAFT_F32, 0.0f,
                                  GRAFT_EMU) == GRAFT_OK);
    } else {
      table().cross_entropy({logits.data(), logits.data(), GRAFT_F32, GRAFT_F32, labels.data(),
                             nullptr, vocab, 0.5f, 0.0f, loss.data(), nullptr, true},
                            count - 1, count);
    }
    CHECK(same_bits(logits.last(vocab), expected));
    CHECK(loss.end(1)[0] == expected_loss[0]);
  }
  SECTION("attention") {
    const int64_t stride = int64_t{1} << 30, d = 8;
    std::vector<int32_t> ends = {0, 3};
    graft_attention_shape shape{};
    shape.documents = 1;
    shape.cu_seqlens = ends.data();
    shape.heads = shape.kv_heads = 1;
    shape.head_dim = d;
    shape.scale = 0.3f;
    shape.tokens = 3;
    shape.q_stride = shape.k_stride = shape.v_stride = shape.out_stride = d;
    const Floats q(x.begin(), x.begin() + 24), k(x.begin() + 24, x.begin() + 48);
    const Floats v(x.begin() + 48, x.begin() + 72);
    Floats out(24), lse(3), dq(24), dk(24), dv(24), lse_wide(3), delta(3);
    REQUIRE(graft_attention_forward(&shape, q.data(), k.data(), v.data(), out.data(), lse.data()) ==
            GRAFT_OK);
    REQUIRE(graft_attention_backward(&shape, q.data(), k.data(), v.data(), out.data(), lse.data(),
                                     dout.data(), dq.data(), dk.data(), dv.data(), nullptr,
                                     0) == GRAFT_OK);
    const auto spread = [&](const Floats& from, Sparse<float>& to) {
      for (int64_t t = 0; t < 3; ++t) {
        std::copy_n(from.begin() + t * d, d, to.data() + t * stride);
      }
    };
    Sparse<float> q_wide(3 * stride), k_wide(3 * stride), v_wide(3 * stride), out_wide(3 * stride);
    Sparse<float> dout_wide(3 * stride), dq_wide(3 * stride), dk_wide(3 * stride);
    Sparse<float> dv_wide(3 * stride);
    spread(q, q_wide);
    spread(k, k_wide);
    spread(v, v_wide);
    spread(dout, dout_wide);
    graft_attention_shape wide = shape;
    wide.q_stride = wide.k_stride = wide.v_stride = wide.out_stride = stride;
    const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
    REQUIRE(graft_attention_forward(&wide, q_wide.data(), k_wide.data(), v_wide.data(),
                                    out_wide.data(), lse_wide.data(), device) == GRAFT_OK);
    REQUIRE(graft_attention_backward(&wide, q_wide.data(), k_wide.data(), v_wide.data(),
                                     out_wide.data(), lse_wide.data(), dout_wide.data(),
                                     dq_wide.data(), dk_wide.data(), dv_wide.data(), delta.data(),
                                     3 * sizeof(float), device) == GRAFT_OK);
    const auto last_token = [&](Sparse<float>& from) {
      return Floats(from.data() + 2 * stride, from.data() + 2 * stride + d);
    };
    CHECK(same_bits(last_token(out_wide), {out.begin() + 16, out.end()}));
    CHECK(same_bits(last_token(dq_wide), {dq.begin() + 16, dq.end()}));
    CHECK(same_bits(last_token(dk_wide), {dk.begin() + 16, dk.end()}));
    CHECK(same_bits(last_token(dv_wide), {dv.begin() + 16, dv.end()}));
  }
}

TEST_CASE("large: quantized weights past 2^31 elements", "[kernels][emu][large]") {
  const LastBlocks few(16);
  const int64_t blocks = kLarge / 64, end_blocks = kEnd / 64;
  const Floats w = random_floats(kEnd, 1);
  std::vector<uint8_t> packed(kEnd / 2);
  Floats absmax(at(end_blocks)), decoded(at(kEnd));
  REQUIRE(graft_nf4_quantize(w.data(), kEnd, 64, packed.data(), absmax.data(), GRAFT_CPU,
                             nullptr) == GRAFT_OK);
  const graft_nf4_weight end{packed.data(), absmax.data(), nullptr, nullptr, 0.0f, kEnd, 64};
  REQUIRE(graft_nf4_decode(&end, decoded.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  Sparse<uint8_t> bytes(kLarge / 2, packed);
  Sparse<float> scales(blocks, absmax);
  const graft_nf4_weight weight{bytes.data(), scales.data(), nullptr, nullptr, 0.0f, kLarge, 64};
  SECTION("quantize") {
    Sparse<float> all(kLarge, w), found(blocks);
    Sparse<uint8_t> codes(kLarge / 2);
    REQUIRE(graft_nf4_quantize(all.data(), kLarge, 64, codes.data(), found.data(), GRAFT_EMU,
                               nullptr) == GRAFT_OK);
    // The last blocks of threads take 8 blocks of weights each.
    const int64_t checked = 16 * 8;
    const int64_t share = std::min(checked, end_blocks);
    CHECK(same_bits(found.last(share), {absmax.end() - share, absmax.end()}));
    CHECK(codes.last(share * 32) == std::vector<uint8_t>(packed.end() - share * 32, packed.end()));
  }
  SECTION("decode") {
    Sparse<float> out(kLarge);
    REQUIRE(graft_nf4_decode(&weight, out.data(), GRAFT_EMU, nullptr) == GRAFT_OK);
    CHECK(same_bits(out.last(kEnd), decoded));
    table().weights->quant4_decode_f32(weight, kLarge - kEnd, kLarge, out.end(kEnd),
                                       Stores::kStreamed);
    CHECK(same_bits(out.last(kEnd), decoded));
  }
  SECTION("decode rows") {
    const int64_t columns = 512, stride = 520, rows = kLarge / columns;
    Sparse<float> out(rows * stride);
    const graft_decode_target target{weight, columns, stride, out.data(), nullptr, 0};
    REQUIRE(graft_nf4_decode_rows(&target, 1, GRAFT_EMU, nullptr) == GRAFT_OK);
    for (int64_t row = 0; row < 4; ++row) {
      const float* const from = out.data() + (rows - 4 + row) * stride;
      const float* const expected = decoded.data() + kEnd - (4 - row) * columns;
      CHECK(std::equal(from, from + columns, expected));
    }
  }
  SECTION("small product") {
    const int64_t k = 512, n = kLarge / k;
    const Floats x = random_floats(k, 3);
    Sparse<float> y(n);
    Floats expected(8);
    REQUIRE(graft_linear4_forward(&end, 8, k, 1, x.data(), GRAFT_F32, k, 0, expected.data(), 8) ==
            GRAFT_OK);
    REQUIRE(graft_linear4_forward(&weight, n, k, 1, x.data(), GRAFT_F32, k, 0, y.data(), n,
                                  GRAFT_F32, GRAFT_EMU) == GRAFT_OK);
    CHECK(same_bits(y.last(8), expected));
  }
}

TEST_CASE("large: an AdamW tensor past 2^31 elements", "[kernels][emu][large]") {
  const LastBlocks few;
  const int64_t tile = 16384;
  const Floats p = random_floats(tile, 1), g = random_floats(tile, 2);
  Floats small_p = p, m(p.size()), v(p.size());
  Sparse<float> param(kLarge / tile * tile, p), grad(kLarge / tile * tile, g);
  Sparse<float> first(kLarge / tile * tile), second(kLarge / tile * tile);
  const int64_t count = kLarge / tile * tile;
  graft_adamw_part large{}, small{};
  large.param = param.data();
  large.grad = grad.data();
  large.m = first.data();
  large.v = second.data();
  large.count = count;
  small.param = small_p.data();
  small.grad = g.data();
  small.m = m.data();
  small.v = v.data();
  small.count = tile;
  const graft_adamw options{1e-3f, 0.9f, 0.999f, 1e-8f, 0.5f, 3, 0.5f};
  float result[2], expected[2];
  std::vector<double> squares(at(count / tile)), one(1);
  REQUIRE(graft_adamw_parts_step(&small, 1, &options, 1.0f, expected, one.data(), sizeof(double)) ==
          GRAFT_OK);
  REQUIRE(graft_adamw_parts_step(&large, 1, &options, 1.0f, result, squares.data(),
                                 squares.size() * sizeof(double), GRAFT_EMU) == GRAFT_OK);
  CHECK(squares.back() == one[0]);
  CHECK(result[0] == expected[0]);  // everything before the end is zero
  CHECK(same_bits(param.last(kEnd), {small_p.end() - kEnd, small_p.end()}));
  CHECK(same_bits(second.last(kEnd), {v.end() - kEnd, v.end()}));
}
