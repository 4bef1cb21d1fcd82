// The operators again in plain loops and double precision: what the fast paths are tested against,
// and what is itself tested against finite differences. Arrays are contiguous, row-major.
// Built for the tests only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/nf4.h"

namespace graft::kernels::oracle {

using Array = std::vector<double>;

struct GemmShape {
  bool a_transposed, b_transposed;
  int64_t m, n, k;
};
// alpha * op(a) * op(b) + beta * c.
Array gemm(const GemmShape& shape,
           double alpha,
           const Array& a,
           const Array& b,
           double beta,
           const Array& c);

struct RmsNorm {
  Array out, inv_rms;
};
RmsNorm rmsnorm(const Array& x, const Array& weight, double eps, int64_t rows, int64_t dim);
struct RmsNormGradient {
  Array dx, dweight;
};
RmsNormGradient rmsnorm_gradient(
    const Array& dout, const Array& x, const Array& weight, double eps, int64_t rows, int64_t dim);

// sign is 1 forward, -1 inverse; cos and sin [tokens, head_dim / 2].
Array rope(const Array& x,
           int64_t tokens,
           int64_t heads,
           int64_t head_dim,
           const Array& cos,
           const Array& sin,
           double sign);

Array swiglu(const Array& gate, const Array& up);
struct SwigluGradient {
  Array dgate, dup;
};
SwigluGradient swiglu_gradient(const Array& dout, const Array& gate, const Array& up);

// The tanh form of GELU.
Array geglu(const Array& gate, const Array& up);
SwigluGradient geglu_gradient(const Array& dout, const Array& gate, const Array& up);

Array softcap(const Array& x, double cap);
Array softcap_gradient(const Array& dout, const Array& x, double cap);

struct AttentionShape {
  int64_t tokens, heads, kv_heads, head_dim;  // one document
  double scale;
  int64_t window = 0;  // 0 for none
  double softcap = 0.0;
};
struct Attention {
  Array out, lse;
};
Attention attention(const AttentionShape& shape, const Array& q, const Array& k, const Array& v);
struct AttentionGradient {
  Array dq, dk, dv;
};
AttentionGradient attention_gradient(
    const AttentionShape& shape, const Array& q, const Array& k, const Array& v, const Array& dout);

struct CrossEntropy {
  Array row_loss, gradient;  // gradient of sum(weight * scale * row_loss)
};
CrossEntropy cross_entropy(const Array& logits,
                           const std::vector<int32_t>& labels,
                           const Array& weight,
                           double scale,
                           int64_t vocab);

struct AdamState {
  Array param, m, v;
};
struct AdamOptions {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;
  double grad_scale;
};
void adamw(AdamState& state, const Array& grad, const AdamOptions& options);

// The four words of Philox4x32-10.
struct PhiloxWords {
  uint32_t word[4];
};
PhiloxWords philox(const uint32_t (&counter)[4], const uint32_t (&key)[2]);

// NF4 and FP4 in float32, one element at a time; the definitions of nf4.h word for word.
struct Nf4 {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};
Nf4 nf4_quantize(const std::vector<float>& weight,
                 int block_size,
                 graft_quant4_type type = GRAFT_NF4);
struct Nf4Nested {
  std::vector<uint8_t> absmax8;
  std::vector<float> nested_absmax;
  float offset;
};
Nf4Nested nf4_compress(const std::vector<float>& absmax);
std::vector<float> nf4_absmax(const Nf4Nested& nested);
std::vector<float> nf4_decode(const std::vector<uint8_t>& packed,
                              const std::vector<float>& absmax,
                              int64_t count,
                              int block_size,
                              graft_quant4_type type = GRAFT_NF4);

// 8-bit blockwise quantization as quant8.h says it, by a search through all midpoints.
struct Quant8 {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};
Quant8 quant8_quantize(const std::vector<float>& x, const float* map, int block_size);

// op(B) in bfloat16 values; sums of pairs as gemm_bf16.h orders them, in float32.
std::vector<float> gemm_bf16(const GemmShape& shape,
                             const std::vector<float>& a,
                             const std::vector<float>& b);

}  // namespace graft::kernels::oracle
