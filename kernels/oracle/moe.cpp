#include "kernels/oracle/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace graft::kernels::oracle {
namespace {

size_t at(int64_t index) {
  return static_cast<size_t>(index);
}

}  // namespace

Routing moe_route(const Router& router, const Array& logits) {
  Routing result;
  for (int64_t token = 0; token < router.tokens; ++token) {
    const auto row = logits.begin() + token * router.experts;
    const double largest = *std::max_element(row, row + router.experts);
    Array p(row, row + router.experts);
    for (double& value : p) value = std::exp(value - largest);
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
    std::vector<int32_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return p[at(a)] > p[at(b)]; });
    order.resize(at(router.top));
    double chosen = 0.0;
    for (const int32_t expert : order) chosen += p[at(expert)];
    for (const int32_t expert : order) {
      result.weight.push_back(router.renormalise ? p[at(expert)] / chosen : p[at(expert)]);
    }
    result.probabilities.insert(result.probabilities.end(), p.begin(), p.end());
    result.expert.insert(result.expert.end(), order.begin(), order.end());
  }
  return result;
}

Array moe_route_gradient(const Router& router, const Array& logits, const Array& dweight) {
  const Routing routing = moe_route(router, logits);
  Array dlogits(logits.size());
  for (int64_t token = 0; token < router.tokens; ++token) {
    const double* p = routing.probabilities.data() + token * router.experts;
    const int32_t* expert = routing.expert.data() + token * router.top;
    double chosen = 0.0;
    for (int64_t j = 0; j < router.top; ++j) chosen += p[expert[j]];
    // d weight_j / d p_i = ([i = j] - [renormalise] weight_j) / (chosen or 1).
    Array dp(at(router.experts));
    for (int64_t j = 0; j < router.top; ++j) {
      const double d = dweight[at(token * router.top + j)];
      if (!router.renormalise) {
        dp[at(expert[j])] += d;
        continue;
      }
      for (int64_t i = 0; i < router.top; ++i) {
        dp[at(expert[i])] += d * ((i == j ? 1.0 : 0.0) - p[expert[j]] / chosen) / chosen;
      }
    }
    // d p_i / d logit_e = p_i ([i = e] - p_e).
    for (int64_t e = 0; e < router.experts; ++e) {
      for (int64_t i = 0; i < router.experts; ++i) {
        dlogits[at(token * router.experts + e)] += dp[at(i)] * p[i] * ((i == e ? 1.0 : 0.0) - p[e]);
      }
    }
  }
  return dlogits;
}

}  // namespace graft::kernels::oracle
