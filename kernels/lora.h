// Linear layers with a frozen base and a low-rank adapter (LoRA, arXiv 2106.09685), and its
// gradients:
//   y = x W^T + s (x A^T) B^T
#pragma once

#include "kernels/product.h"

#ifdef __cplusplus
extern "C" {
#endif

// Where the adapter's part is added.
typedef enum graft_lora_layout GRAFT_ANY_INT {
  // W's rows are followed by s B and x's rows by u = x A^T, so that one product of depth
  // in_features +
  // rank gives y, summed and rounded once, and one with the gradient gives dx and du.
  GRAFT_LORA_EXTENDED = 0,
  // W and u stand alone; s u B^T is added to y in a second product.
  GRAFT_LORA_SEPARATE = 1
} graft_lora_layout;

// Several projections of one x are one layer: A stacked, B block by block on the diagonal,
// out_features and rank their sums. Ranks may be padded (8 values of bfloat16 are the 16 bytes of
// the fast path of graft_multiply): rows of A and columns of B that are zero stay zero. rank 0 is a
// frozen layer.
typedef struct graft_lora {
  graft_lora_layout layout;
  int64_t in_features, out_features, rank;
  const void* w;     // [out_features, in_features], decoded; EXTENDED: s B in the next rank columns
  int64_t w_stride;  // >= in_features, EXTENDED: + rank
  const void* a;     // [rank, in_features]
  const void* b;     // [out_features, rank]; EXTENDED: not read
  float scale;       // s; EXTENDED: not read
  graft_float_type type;  // of w, a, b, x, u, y and their gradients
} graft_lora;

// y = x W^T + s u B^T, u = x A^T.
//   x [tokens, in_features]   x_stride; EXTENDED: u is written behind each row, x_stride >=
//                             in_features + rank
//   u [tokens, rank]          SEPARATE: written, u_stride; EXTENDED: NULL, it lies behind x
//   y [tokens, out_features]  y_stride
// Two products (EXTENDED) or three. Errors: as graft_multiply.
graft_status graft_lora_forward(const graft_lora* layer,
                                int64_t tokens,
                                void* x,
                                int64_t x_stride,
                                void* u,
                                int64_t u_stride,
                                void* y,
                                int64_t y_stride,
                                graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                graft_stream stream GRAFT_DEFAULT(nullptr));

// dx = dy W + du A, du = s dy B.
//   dy [tokens, out_features]  dy_stride
//   dx [tokens, in_features]   dx_stride; EXTENDED: du is written behind each row, dx_stride >=
//                              in_features + rank. SEPARATE: may be NULL when only du is wanted
//                              (the first layer's input is not trained)
//   du [tokens, rank]          SEPARATE: written, du_stride; EXTENDED: NULL, it lies behind dx
// Two products (EXTENDED) or three.
graft_status graft_lora_backward(const graft_lora* layer,
                                 int64_t tokens,
                                 const void* dy,
                                 int64_t dy_stride,
                                 void* dx,
                                 int64_t dx_stride,
                                 void* du,
                                 int64_t du_stride,
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

// A and B of one projection of several of one x.
typedef struct graft_lora_pair {
  const float* a;  // [rank, in_features]
  const float* b;  // [out_features, rank]
  int64_t out_features;
  int64_t rank;  // 0: none; a and b are not read
  float scale;   // s
} graft_lora_pair;

#define GRAFT_LORA_PAIRS 4

// Writes the pairs of `count` projections of one x into their places of one extended weight: with
// out and rank the sums of the projections', to [out + rank, in_features + rank] in bfloat16 is
//   W    s B      B's blocks on the diagonal, zeros beside them
//   A    -
// of which W and the corner are left alone. Values are rounded once, to nearest, ties to even.
//   pairs  [count]  on the host, 1..GRAFT_LORA_PAIRS of them; read before the call returns; what
//                   they point at lies in the device's memory
//   to_stride       elements from row to row, >= in_features + rank
// One launch on a GPU. Every device gives the same bits. Errors: GRAFT_BAD_SHAPE,
// GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_lora_place_pairs(const graft_lora_pair* pairs,
                                    int64_t count,
                                    int64_t in_features,
                                    uint16_t* to,
                                    int64_t to_stride,
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

// Tokens of one product of the gradients' sums; a multiple of the CPU's chains.
#define GRAFT_LORA_TOKENS 2048

// dA += du^T x and dB += s dy^T u, in float32 whatever the type: over GRAFT_LORA_TOKENS tokens at a
// time, in order, so that the sum does not depend on how many tokens a call has as long as calls
// begin at such a boundary.
//   x, dy     as above
//   u, du     SEPARATE: [tokens, rank] with their strides. EXTENDED: u is NULL, it lies behind x;
//   for du
//             give dx and its stride, behind which it lies
//   da [rank, in_features]    float32
//   db [out_features, rank]   float32
// scale is read here for both layouts.
graft_status graft_lora_gradients(const graft_lora* layer,
                                  int64_t tokens,
                                  const void* x,
                                  int64_t x_stride,
                                  const void* u,
                                  int64_t u_stride,
                                  const void* dy,
                                  int64_t dy_stride,
                                  const void* du,
                                  int64_t du_stride,
                                  float* da,
                                  float* db,
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
