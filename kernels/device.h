// The functions that another device provides, and where they come from (internal).
#pragma once

#include "kernels/nf4.h"

namespace graft::kernels {

// One per device, filled by the .cu files; arguments are checked before.
struct DeviceTable {
  graft_status (*nf4_quantize)(const float* weight,
                               int64_t count,
                               int block_size,
                               uint8_t* packed,
                               float* absmax,
                               graft_stream stream);
  graft_status (*nf4_compress_absmax)(const float* absmax,
                                      int64_t blocks,
                                      uint8_t* absmax8,
                                      float* nested_absmax,
                                      float* offset,
                                      graft_stream stream);
  graft_status (*nf4_decode_f32)(const graft_nf4_weight& weight, float* out, graft_stream stream);
  graft_status (*nf4_decode_bf16)(const graft_nf4_weight& weight,
                                  uint16_t* out,
                                  graft_stream stream);
  graft_status (*nf4_decode_f16)(const graft_nf4_weight& weight,
                                 uint16_t* out,
                                 graft_stream stream);
};

// What the program gives libgraft_cuda.so, which has no kernels/status.cpp of its own.
struct CudaLibraryHost {
  graft_status (*fail)(graft_status status, const char* function, const char* format, ...);
};

// The table of GRAFT_EMU or GRAFT_CUDA in *table. libgraft_cuda.so is loaded at the first call for
// GRAFT_CUDA: beside the program, in ../lib of it, or where the loader looks. GRAFT_NO_DEVICE when
// it, a driver or a GPU is missing; GRAFT_BAD_ARGUMENT for a value that is no device.
graft_status device_table(const char* function, graft_device device, const DeviceTable** table);

}  // namespace graft::kernels
