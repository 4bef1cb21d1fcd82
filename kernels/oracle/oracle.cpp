#include "kernels/oracle/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace graft::kernels::oracle {
namespace {

size_t at(int64_t index) {
  return static_cast<size_t>(index);
}

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

}  // namespace

Array gemm(
    const GemmShape& s, double alpha, const Array& a, const Array& b, double beta, const Array& c) {
  Array out(at(s.m * s.n));
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0.0;
      for (int64_t p = 0; p < s.k; ++p) {
        sum += a[at(s.a_transposed ? p * s.m + i : i * s.k + p)] *
               b[at(s.b_transposed ? j * s.k + p : p * s.n + j)];
      }
      out[at(i * s.n + j)] = alpha * sum + beta * c[at(i * s.n + j)];
    }
  }
  return out;
}

RmsNorm rmsnorm(const Array& x, const Array& weight, double eps, int64_t rows, int64_t dim) {
  RmsNorm result{Array(x.size()), Array(at(rows))};
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += x[at(row * dim + i)] * x[at(row * dim + i)];
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + eps);
    result.inv_rms[at(row)] = inverse;
    for (int64_t i = 0; i < dim; ++i) {
      result.out[at(row * dim + i)] = x[at(row * dim + i)] * inverse * weight[at(i)];
    }
  }
  return result;
}

RmsNormGradient rmsnorm_gradient(
    const Array& dout, const Array& x, const Array& weight, double eps, int64_t rows, int64_t dim) {
  const RmsNorm forward = rmsnorm(x, weight, eps, rows, dim);
  RmsNormGradient result{Array(x.size()), Array(at(dim))};
  for (int64_t row = 0; row < rows; ++row) {
    const double inverse = forward.inv_rms[at(row)];
    double mean = 0.0;
    for (int64_t i = 0; i < dim; ++i) {
      const size_t j = at(row * dim + i);
      mean += dout[j] * weight[at(i)] * x[j] * inverse / static_cast<double>(dim);
      result.dweight[at(i)] += dout[j] * x[j] * inverse;
    }
    for (int64_t i = 0; i < dim; ++i) {
      const size_t j = at(row * dim + i);
      result.dx[j] = inverse * (dout[j] * weight[at(i)] - x[j] * inverse * mean);
    }
  }
  return result;
}

Array rope(const Array& x,
           int64_t tokens,
           int64_t heads,
           int64_t head_dim,
           const Array& cos,
           const Array& sin,
           double sign) {
  Array out(x.size());
  const int64_t half = head_dim / 2;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        const size_t low = at((token * heads + head) * head_dim + i), high = low + at(half);
        const double c = cos[at(token * half + i)], s = sign * sin[at(token * half + i)];
        out[low] = x[low] * c - x[high] * s;
        out[high] = x[high] * c + x[low] * s;
      }
    }
  }
  return out;
}

Array swiglu(const Array& gate, const Array& up) {
  Array out(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
  return out;
}

SwigluGradient swiglu_gradient(const Array& dout, const Array& gate, const Array& up) {
  SwigluGradient result{Array(gate.size()), Array(gate.size())};
  for (size_t i = 0; i < gate.size(); ++i) {
    const double s = sigmoid(gate[i]);
    result.dgate[i] = dout[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
    result.dup[i] = dout[i] * gate[i] * s;
  }
  return result;
}

namespace {

constexpr double kGeluLinear = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;

double gelu_tangent(double x) {
  return std::tanh(kGeluLinear * (x + kGeluCubic * x * x * x));
}

}  // namespace

Array geglu(const Array& gate, const Array& up) {
  Array out(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) {
    out[i] = 0.5 * gate[i] * (1.0 + gelu_tangent(gate[i])) * up[i];
  }
  return out;
}

SwigluGradient geglu_gradient(const Array& dout, const Array& gate, const Array& up) {
  SwigluGradient result{Array(gate.size()), Array(gate.size())};
  for (size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i], t = gelu_tangent(x);
    const double slope = kGeluLinear * (1.0 + 3.0 * kGeluCubic * x * x);
    result.dgate[i] = dout[i] * up[i] * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
    result.dup[i] = dout[i] * 0.5 * x * (1.0 + t);
  }
  return result;
}

Array softcap(const Array& x, double cap) {
  Array out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = cap * std::tanh(x[i] / cap);
  return out;
}

Array softcap_gradient(const Array& dout, const Array& x, double cap) {
  Array out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double t = std::tanh(x[i] / cap);
    out[i] = dout[i] * (1.0 - t * t);
  }
  return out;
}

namespace {

int64_t first_key(const AttentionShape& s, int64_t token) {
  return s.window > 0 ? std::max<int64_t>(0, token + 1 - s.window) : 0;
}

// The probabilities of one query over keys 0..token; 0 for those before its window.
Array probabilities(const AttentionShape& s,
                    const Array& q,
                    const Array& k,
                    int64_t token,
                    int64_t head,
                    double* lse,
                    Array* slope) {
  const int64_t kv_head = head / (s.heads / s.kv_heads);
  Array p(at(token + 1), -std::numeric_limits<double>::infinity());
  *slope = Array(at(token + 1), s.scale);  // of a score over its dot product
  for (int64_t key = first_key(s, token); key <= token; ++key) {
    double dot = 0.0;
    for (int64_t d = 0; d < s.head_dim; ++d) {
      dot += q[at((token * s.heads + head) * s.head_dim + d)] *
             k[at((key * s.kv_heads + kv_head) * s.head_dim + d)];
    }
    p[at(key)] = s.scale * dot;
    if (s.softcap == 0.0) continue;
    const double tangent = std::tanh(s.scale * dot / s.softcap);
    p[at(key)] = s.softcap * tangent;
    (*slope)[at(key)] = s.scale * (1.0 - tangent * tangent);
  }
  const double top = *std::max_element(p.begin(), p.end());
  double sum = 0.0;
  for (const double score : p) sum += std::exp(score - top);
  *lse = top + std::log(sum);
  for (double& score : p) score = std::exp(score - *lse);
  return p;
}

}  // namespace

Attention attention(const AttentionShape& s, const Array& q, const Array& k, const Array& v) {
  Attention result{Array(q.size()), Array(at(s.tokens * s.heads))};
  for (int64_t token = 0; token < s.tokens; ++token) {
    for (int64_t head = 0; head < s.heads; ++head) {
      const int64_t kv_head = head / (s.heads / s.kv_heads);
      Array slope;
      const Array p =
          probabilities(s, q, k, token, head, &result.lse[at(token * s.heads + head)], &slope);
      for (int64_t key = 0; key <= token; ++key) {
        for (int64_t d = 0; d < s.head_dim; ++d) {
          result.out[at((token * s.heads + head) * s.head_dim + d)] +=
              p[at(key)] * v[at((key * s.kv_heads + kv_head) * s.head_dim + d)];
        }
      }
    }
  }
  return result;
}

AttentionGradient attention_gradient(
    const AttentionShape& s, const Array& q, const Array& k, const Array& v, const Array& dout) {
  AttentionGradient result{Array(q.size()), Array(k.size()), Array(v.size())};
  for (int64_t token = 0; token < s.tokens; ++token) {
    for (int64_t head = 0; head < s.heads; ++head) {
      const int64_t kv_head = head / (s.heads / s.kv_heads);
      const int64_t row = (token * s.heads + head) * s.head_dim;
      double lse;
      Array slope;
      const Array p = probabilities(s, q, k, token, head, &lse, &slope);
      Array dp(p.size());
      double mean = 0.0;
      for (int64_t key = 0; key <= token; ++key) {
        const int64_t column = (key * s.kv_heads + kv_head) * s.head_dim;
        for (int64_t d = 0; d < s.head_dim; ++d) {
          dp[at(key)] += dout[at(row + d)] * v[at(column + d)];
          result.dv[at(column + d)] += p[at(key)] * dout[at(row + d)];
        }
        mean += p[at(key)] * dp[at(key)];
      }
      for (int64_t key = 0; key <= token; ++key) {
        const int64_t column = (key * s.kv_heads + kv_head) * s.head_dim;
        const double ds = p[at(key)] * (dp[at(key)] - mean) * slope[at(key)];
        for (int64_t d = 0; d < s.head_dim; ++d) {
          result.dq[at(row + d)] += ds * k[at(column + d)];
          result.dk[at(column + d)] += ds * q[at(row + d)];
        }
      }
    }
  }
  return result;
}

CrossEntropy cross_entropy(const Array& logits,
                           const std::vector<int32_t>& labels,
                           const Array& weight,
                           double scale,
                           int64_t vocab) {
  CrossEntropy result{Array(labels.size()), Array(logits.size())};
  for (size_t row = 0; row < labels.size(); ++row) {
    const double* x = logits.data() + row * at(vocab);
    const double top = *std::max_element(x, x + vocab);
    double sum = 0.0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(x[i] - top);
    result.row_loss[row] = top + std::log(sum) - x[labels[row]];
    for (int64_t i = 0; i < vocab; ++i) {
      const double p = std::exp(x[i] - top) / sum;
      result.gradient[row * at(vocab) + at(i)] =
          (p - (i == labels[row] ? 1.0 : 0.0)) * weight[row] * scale;
    }
  }
  return result;
}

void adamw(AdamState& state, const Array& grad, const AdamOptions& o) {
  const double step = static_cast<double>(o.step);
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * o.grad_scale;
    state.param[i] *= 1.0 - o.lr * o.weight_decay;
    state.m[i] = o.beta1 * state.m[i] + (1.0 - o.beta1) * g;
    state.v[i] = o.beta2 * state.v[i] + (1.0 - o.beta2) * g * g;
    const double m_hat = state.m[i] / (1.0 - std::pow(o.beta1, step));
    const double v_hat = state.v[i] / (1.0 - std::pow(o.beta2, step));
    state.param[i] -= o.lr * m_hat / (std::sqrt(v_hat) + o.eps);
  }
}

PhiloxWords philox(const uint32_t (&counter)[4], const uint32_t (&key)[2]) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
        static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

namespace {

// How many midpoints of neighbouring values of a sorted table x exceeds: the nearest, ties down.
int nearest(float x, const float* table, int count) {
  int index = 0;
  while (index + 1 < count && x > (table[index] + table[index + 1]) * 0.5f) ++index;
  return index;
}

float inverse_of(float absmax) {
  return 1.0f / std::max(absmax, 1e-38f);
}

// A type's codes by ascending value; equal values (FP4's two zeros) keep the order of codes.
struct SortedCodes {
  int code[16];
  float value[16];
};
SortedCodes sorted_codes(graft_quant4_type type) {
  const float* const table = graft_quant4_codebook(type);
  SortedCodes sorted;
  std::iota(sorted.code, sorted.code + 16, 0);
  std::stable_sort(sorted.code, sorted.code + 16,
                   [&](int a, int b) { return table[a] < table[b]; });
  for (int i = 0; i < 16; ++i) sorted.value[i] = table[sorted.code[i]];
  return sorted;
}

}  // namespace

Nf4 nf4_quantize(const std::vector<float>& weight, int block_size, graft_quant4_type type) {
  const SortedCodes sorted = sorted_codes(type);
  const size_t block = static_cast<size_t>(block_size);
  Nf4 result{std::vector<uint8_t>((weight.size() + 1) / 2),
             std::vector<float>((weight.size() + block - 1) / block)};
  for (size_t i = 0; i < weight.size(); ++i) {
    float& absmax = result.absmax[i / block];
    absmax = std::max(absmax, std::fabs(weight[i]));
  }
  for (size_t i = 0; i < 2 * result.packed.size(); ++i) {
    float scaled = 0.0f;  // past an odd end
    if (i < weight.size()) {
      scaled = std::clamp(weight[i] * inverse_of(result.absmax[i / block]), -1.0f, 1.0f);
    }
    const int code = sorted.code[nearest(scaled, sorted.value, 16)];
    result.packed[i / 2] =
        static_cast<uint8_t>(result.packed[i / 2] | code << (i % 2 == 0 ? 4 : 0));
  }
  return result;
}

Nf4Nested nf4_compress(const std::vector<float>& absmax) {
  double lane[256] = {};
  for (size_t i = 0; i < absmax.size(); ++i) lane[i % 256] += static_cast<double>(absmax[i]);
  for (int width = 128; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  Nf4Nested result{std::vector<uint8_t>(absmax.size()),
                   std::vector<float>((absmax.size() + 255) / 256),
                   static_cast<float>(lane[0] / static_cast<double>(absmax.size()))};
  for (size_t i = 0; i < absmax.size(); ++i) {
    float& nested = result.nested_absmax[i / 256];
    nested = std::max(nested, std::fabs(absmax[i] - result.offset));
  }
  for (size_t i = 0; i < absmax.size(); ++i) {
    const float scaled = (absmax[i] - result.offset) * inverse_of(result.nested_absmax[i / 256]);
    result.absmax8[i] = static_cast<uint8_t>(nearest(scaled, graft_dynamic_map_signed(), 256));
  }
  return result;
}

std::vector<float> nf4_absmax(const Nf4Nested& nested) {
  std::vector<float> absmax(nested.absmax8.size());
  for (size_t i = 0; i < absmax.size(); ++i) {
    const float product =
        graft_dynamic_map_signed()[nested.absmax8[i]] * nested.nested_absmax[i / 256];
    absmax[i] = product + nested.offset;
  }
  return absmax;
}

std::vector<float> nf4_decode(const std::vector<uint8_t>& packed,
                              const std::vector<float>& absmax,
                              int64_t count,
                              int block_size,
                              graft_quant4_type type) {
  std::vector<float> out(at(count));
  for (size_t i = 0; i < out.size(); ++i) {
    const int code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
    out[i] = graft_quant4_codebook(type)[code] * absmax[i / static_cast<size_t>(block_size)];
  }
  return out;
}

Quant8 quant8_quantize(const std::vector<float>& x, const float* map, int block_size) {
  const size_t block = static_cast<size_t>(block_size);
  Quant8 result{std::vector<uint8_t>(x.size()), std::vector<float>((x.size() + block - 1) / block)};
  for (size_t i = 0; i < x.size(); ++i) {
    float& absmax = result.absmax[i / block];
    absmax = std::max(absmax, std::fabs(x[i]));
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const float scaled = std::clamp(x[i] * inverse_of(result.absmax[i / block]), -1.0f, 1.0f);
    result.codes[i] = static_cast<uint8_t>(nearest(scaled, map, 256));
  }
  return result;
}

std::vector<float> gemm_bf16(const GemmShape& s,
                             const std::vector<float>& a,
                             const std::vector<float>& b) {
  std::vector<float> out(at(s.m * s.n));
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      const auto product = [&](int64_t p, float sum) {
        if (p >= s.k) return sum;
        const float x = a[at(s.a_transposed ? p * s.m + i : i * s.k + p)];
        const float y = b[at(s.b_transposed ? j * s.k + p : p * s.n + j)];
        return sum + x * y;  // the product of two bfloat16 is exact
      };
      float total = 0.0f;
      for (int64_t chain = 0; chain < s.k; chain += 512) {
        float sum = 0.0f;
        for (int64_t p = chain; p < std::min(chain + 512, s.k); p += 2) {
          sum = product(p, product(p + 1, sum));
        }
        total = chain == 0 ? sum : total + sum;
      }
      out[at(i * s.n + j)] = total;
    }
  }
  return out;
}

}  // namespace graft::kernels::oracle
