// 4-bit weights decoded into matrices whose rows are wider than the weight's: the tail columns hold
// a LoRA's B, so that one product gives W x + B (A x) (lora.h).
#pragma once

#include "kernels/nf4.h"

#ifdef __cplusplus
extern "C" {
#endif

// Weights of one launch: all of a decoder layer.
#define GRAFT_DECODE_TARGETS 8

typedef struct graft_decode_target {
  graft_nf4_weight weight;  // [rows, columns], rows = weight.count / columns
  int64_t columns;          // a divisor of weight.count
  int64_t row_stride;       // elements from row to row of out, >= columns + tail_columns
  void* out;                // what follows in each row is left alone, but for the tail
  const void* tail;         // NULL, or [rows, tail_columns] of out's type, copied behind each row
  int64_t tail_columns;
} graft_decode_target;

// graft_nf4_decode of every target into its rows, equal to the bit; on a GPU in one launch.
//   targets [target_count]  on the host, 0..GRAFT_DECODE_TARGETS of them; read before the call
//                           returns; what they point at lies in the device's memory
// Rows that are whole words of eight weights, with out and row_stride in whole 16 bytes, move in
// 128-bit stores, and so does a tail of whole 16 bytes. Errors: as graft_nf4_decode.
graft_status graft_nf4_decode_rows(const graft_decode_target* targets,
                                   int64_t target_count,
                                   graft_device device,
                                   graft_stream stream);
graft_status graft_nf4_decode_rows_bf16(const graft_decode_target* targets,
                                        int64_t target_count,
                                        graft_device device,
                                        graft_stream stream);
graft_status graft_nf4_decode_rows_f16(const graft_decode_target* targets,
                                       int64_t target_count,
                                       graft_device device,
                                       graft_stream stream);

#ifdef __cplusplus
}
#endif
