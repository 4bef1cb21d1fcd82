// Rotary embedding on a GPU, and on the emulated device.
//
// One block per token, a thread per four pairs (one where heads are not whole fours). In float32 16
// B read and 8 B written a pair, of which the token's cosines stay in the first-level cache: bound
// by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 128;

// kVectors: half of the rotary dimension is a multiple of four and every row begins at four
// elements' bytes.
template <class Element, bool kVectors>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeTurn call) {
  constexpr int64_t kWidth = kVectors ? 4 : 1;
  const int64_t token = blockIdx.x, half = call.rotary_dim / 2;
  const int64_t words = half / kWidth;
  for (int64_t item = threadIdx.x; item < call.heads * words; item += kThreads) {
    const int64_t head = item / words, i = item % words * kWidth;
    Element* const low =
        static_cast<Element*>(call.x) + token * call.row_stride + head * call.head_dim + i;
    Element* const high = low + half;
    const float4 c = load_four<kVectors>(call.cos + token * half + i, 1);
    float4 s = load_four<kVectors>(call.sin + token * half + i, 1);
    const auto product = [](float a, float b) { return __fmul_rn(a, b); };
    s = each_of_four(s, float4{call.sign, call.sign, call.sign, call.sign}, product);
    const float4 a = load_four<kVectors>(low, 1), b = load_four<kVectors>(high, 1);
    const float4 ac = each_of_four(a, c, product), bs = each_of_four(b, s, product);
    const float4 bc = each_of_four(b, c, product), as = each_of_four(a, s, product);
    store_four<kVectors>(low,
                         each_of_four(ac, bs, [](float p, float q) { return __fsub_rn(p, q); }), 1);
    store_four<kVectors>(high,
                         each_of_four(bc, as, [](float p, float q) { return __fadd_rn(p, q); }), 1);
  }
}

}  // namespace

graft_status rope_apply(const RopeTurn& call, int64_t tokens, graft_stream stream) {
  constexpr const char* kName = "graft_rope_apply";
  if (const graft_status status = check_grid(kName, tokens)) return status;
  const unsigned grid = static_cast<unsigned>(tokens);
  const bool vectors = call.rotary_dim % 8 == 0 && call.head_dim % 4 == 0 &&
                       call.row_stride % 4 == 0 && aligned_for_four(call.type, call.x) &&
                       aligned_to_16(call.cos, call.sin);
  for_variant(call.type, vectors, [&](auto element, auto has_vectors) {
    GRAFT_LAUNCH((rope_kernel<decltype(element), has_vectors.value>), grid, kThreads, stream, call);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
