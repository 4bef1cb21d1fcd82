#include "kernels/swiglu.h"

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// 16 KiB of float32 per array: pieces of several arrays stay in the first-level cache.
constexpr int64_t kPiece = 4096;
// One sigmoid costs about as much as this many additions.
constexpr int64_t kSigmoidWork = 4;

struct Shape {
  graft_gate kind;
  graft_float_type type;
  int64_t rows, dim, gate_stride, out_stride;
};

graft_status check_shape(const char* function, const Shape& shape) {
  if (shape.kind != GRAFT_SILU && shape.kind != GRAFT_GELU_TANH) {
    return fail(GRAFT_BAD_ARGUMENT, function, "kind is %d, expected 0 or 1",
                static_cast<int>(shape.kind));
  }
  if (const graft_status status = check_element(function, shape.type)) return status;
  return check_counts(function, {{"rows", shape.rows},
                                 {"dim", shape.dim},
                                 {"gate_stride", shape.gate_stride, shape.dim},
                                 {"out_stride", shape.out_stride, shape.dim}});
}

graft_status forward(const char* function,
                     const GateForward& call,
                     int64_t rows,
                     graft_device device,
                     graft_stream stream) {
  if (const graft_status status = check_shape(function, {call.gate_kind, call.type, rows, call.dim,
                                                         call.gate_stride, call.out_stride})) {
    return status;
  }
  if (rows == 0 || call.dim == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"gate", call.gate}, {"up", call.up}, {"out", call.out}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.gate_forward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows * call.dim, kPiece, kSigmoidWork * rows * call.dim,
             [&](int64_t begin, int64_t end) { isa.gate_forward(call, begin, end); });
  return GRAFT_OK;
}

graft_status backward(const char* function,
                      const GateBackward& call,
                      int64_t rows,
                      graft_device device,
                      graft_stream stream) {
  if (const graft_status status = check_shape(function, {call.gate_kind, call.type, rows, call.dim,
                                                         call.gate_stride, call.dout_stride})) {
    return status;
  }
  if (rows == 0 || call.dim == 0) return GRAFT_OK;
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
      return functions.gate_backward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows * call.dim, kPiece, kSigmoidWork * rows * call.dim,
             [&](int64_t begin, int64_t end) { isa.gate_backward(call, begin, end); });
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_gate_forward(graft_gate kind,
                                           int64_t rows,
                                           int64_t dim,
                                           const void* gate,
                                           const void* up,
                                           int64_t gate_stride,
                                           void* out,
                                           int64_t out_stride,
                                           graft_float_type type,
                                           graft_device device,
                                           graft_stream stream) {
  return forward("graft_gate_forward", {kind, type, dim, gate_stride, out_stride, gate, up, out},
                 rows, device, stream);
}

extern "C" graft_status graft_gate_backward(graft_gate kind,
                                            int64_t rows,
                                            int64_t dim,
                                            const void* dout,
                                            int64_t dout_stride,
                                            const void* gate,
                                            const void* up,
                                            int64_t gate_stride,
                                            void* dgate,
                                            void* dup,
                                            graft_float_type type,
                                            graft_device device,
                                            graft_stream stream) {
  return backward("graft_gate_backward",
                  {kind, type, dim, gate_stride, dout_stride, dout, gate, up, dgate, dup}, rows,
                  device, stream);
}

extern "C" graft_status graft_swiglu_forward(const void* gate,
                                             const void* up,
                                             int64_t count,
                                             void* out,
                                             graft_float_type type,
                                             graft_device device,
                                             graft_stream stream) {
  return forward("graft_swiglu_forward", {GRAFT_SILU, type, count, count, count, gate, up, out}, 1,
                 device, stream);
}

extern "C" graft_status graft_swiglu_backward(const void* dout,
                                              const void* gate,
                                              const void* up,
                                              int64_t count,
                                              void* dgate,
                                              void* dup,
                                              graft_float_type type,
                                              graft_device device,
                                              graft_stream stream) {
  return backward("graft_swiglu_backward",
                  {GRAFT_SILU, type, count, count, count, dout, gate, up, dgate, dup}, 1, device,
                  stream);
}

extern "C" graft_status graft_geglu_forward(const void* gate,
                                            const void* up,
                                            int64_t count,
                                            void* out,
                                            graft_float_type type,
                                            graft_device device,
                                            graft_stream stream) {
  return forward("graft_geglu_forward", {GRAFT_GELU_TANH, type, count, count, count, gate, up, out},
                 1, device, stream);
}

extern "C" graft_status graft_geglu_backward(const void* dout,
                                             const void* gate,
                                             const void* up,
                                             int64_t count,
                                             void* dgate,
                                             void* dup,
                                             graft_float_type type,
                                             graft_device device,
                                             graft_stream stream) {
  return backward("graft_geglu_backward",
                  {GRAFT_GELU_TANH, type, count, count, count, dout, gate, up, dgate, dup}, 1,
                  device, stream);
}
