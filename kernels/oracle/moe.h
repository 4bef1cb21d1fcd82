// The router of a mixture of experts in plain loops and double precision (see oracle.h).
#pragma once

#include "kernels/oracle/oracle.h"

namespace graft::kernels::oracle {

struct Router {
  int64_t tokens, experts, top;
  bool renormalise;
};
struct Routing {
  Array probabilities, weight;  // [tokens, experts], [tokens, top]
  std::vector<int32_t> expert;  // [tokens, top], largest probability first
};
Routing moe_route(const Router& router, const Array& logits);
// The gradient of the logits, given that of the weights; which experts are chosen is held fixed.
Array moe_route_gradient(const Router& router, const Array& logits, const Array& dweight);

}  // namespace graft::kernels::oracle
