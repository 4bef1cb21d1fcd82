#include "kernels/swiglu.h"

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// 16 KiB per array: pieces of several arrays stay in the first-level cache.
constexpr int64_t kPiece = 4096;
// One sigmoid costs about as much as this many additions.
constexpr int64_t kSigmoidWork = 4;

graft_status gate_forward(const char* function,
                          const GateForward& call,
                          int64_t count,
                          graft_device device,
                          graft_stream stream) {
  if (const graft_status status = check_counts(function, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"gate", call.gate}, {"up", call.up}, {"out", call.out}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.gate_forward(call, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, kSigmoidWork * count,
             [&](int64_t begin, int64_t end) { isa.gate_forward(call, begin, end); });
  return GRAFT_OK;
}

graft_status gate_backward(const char* function,
                           const GateBackward& call,
                           int64_t count,
                           graft_device device,
                           graft_stream stream) {
  if (const graft_status status = check_counts(function, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(function, {{"dout", call.dout},
                                                            {"gate", call.gate},
                                                            {"up", call.up},
                                                            {"dgate", call.dgate},
                                                            {"dup", call.dup}})) {
    return status;
  }
  if (call.dgate == call.dup) {
    return fail(GRAFT_BAD_ARGUMENT, function, "dgate and dup are the same array");
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.gate_backward(call, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, kSigmoidWork * count,
             [&](int64_t begin, int64_t end) { isa.gate_backward(call, begin, end); });
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_swiglu_forward(const float* gate,
                                             const float* up,
                                             int64_t count,
                                             float* out,
                                             graft_device device,
                                             graft_stream stream) {
  return gate_forward("graft_swiglu_forward", {Gate::kSilu, gate, up, out}, count, device, stream);
}

extern "C" graft_status graft_swiglu_backward(const float* dout,
                                              const float* gate,
                                              const float* up,
                                              int64_t count,
                                              float* dgate,
                                              float* dup,
                                              graft_device device,
                                              graft_stream stream) {
  return gate_backward("graft_swiglu_backward", {Gate::kSilu, dout, gate, up, dgate, dup}, count,
                       device, stream);
}

extern "C" graft_status graft_geglu_forward(const float* gate,
                                            const float* up,
                                            int64_t count,
                                            float* out,
                                            graft_device device,
                                            graft_stream stream) {
  return gate_forward("graft_geglu_forward", {Gate::kGeluTanh, gate, up, out}, count, device,
                      stream);
}

extern "C" graft_status graft_geglu_backward(const float* dout,
                                             const float* gate,
                                             const float* up,
                                             int64_t count,
                                             float* dgate,
                                             float* dup,
                                             graft_device device,
                                             graft_stream stream) {
  return gate_backward("graft_geglu_backward", {Gate::kGeluTanh, dout, gate, up, dgate, dup}, count,
                       device, stream);
}
