// The gated units of MLPs (arXiv 2002.05202): activation(gate) * up.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_gate GRAFT_ANY_INT {
  GRAFT_SILU = 0,      // SwiGLU: gate * sigmoid(gate)
  GRAFT_GELU_TANH = 1  // GeGLU with the tanh form of GELU (arXiv 1606.08415; Gemma), taken as gate
                       // * sigmoid(2 sqrt(2 / pi) * (gate + 0.044715 gate^3)), which does not
                       // cancel for negative gates
} graft_gate;

// out = activation(gate) * up.
//   gate, up     [rows, dim]  of `type`, gate_stride from row to row, so that both may be halves of
//                             one product's result
//   out          [rows, dim]  of `type`, out_stride from row to row; the gap is left alone (room
//   for
//                             a LoRA's x A^T, lora.h); may be gate or up with their stride
//   gate_stride, out_stride   >= dim
// sigmoid is within 3 ulp (kernels/simd/vector.h); -inf and NaN pass through as IEEE arithmetic has
// it. Every device gives the same bits.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_gate_forward(graft_gate kind,
                                int64_t rows,
                                int64_t dim,
                                const void* gate,
                                const void* up,
                                int64_t gate_stride,
                                void* out,
                                int64_t out_stride,
                                graft_float_type type,
                                graft_device device,
                                graft_stream stream);

// dgate = dout * up * activation'(gate), dup = dout * activation(gate); SiLU's slope is
// sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))).
//   dout         [rows, dim]  dout_stride from row to row
//   dgate, dup   [rows, dim]  overwritten, gate_stride from row to row. dgate may be gate (or dout
//                             of the same stride), dup may be up (or dout): an element is read
//                             before it is written; dgate and dup must differ
// Errors: as the forward.
graft_status graft_gate_backward(graft_gate kind,
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
                                 graft_stream stream);

// The same over `count` neighbouring values.
graft_status graft_swiglu_forward(const void* gate,
                                  const void* up,
                                  int64_t count,
                                  void* out,
                                  graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));
graft_status graft_swiglu_backward(const void* dout,
                                   const void* gate,
                                   const void* up,
                                   int64_t count,
                                   void* dgate,
                                   void* dup,
                                   graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));
graft_status graft_geglu_forward(const void* gate,
                                 const void* up,
                                 int64_t count,
                                 void* out,
                                 graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));
graft_status graft_geglu_backward(const void* dout,
                                  const void* gate,
                                  const void* up,
                                  int64_t count,
                                  void* dgate,
                                  void* dup,
                                  graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
