// What every function of kernels/ returns, and the devices that it may run on.
//
// The folder is a C API over raw pointers: no exceptions, no state but a thread's last error text
// and its scratch memory. Arrays are row-major, contiguous float32 unless a header says otherwise,
// counts are int64_t, and a count of zero is a valid empty call. Results are the same to the bit
// for any number of threads and every instruction set: rows are independent, and a sum over rows is
// taken in tiles of fixed size added in index order.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Enumerations hold any int in C++ as they do in C, so that a value that does not exist can be
// passed, and refused.
#ifdef __cplusplus
#define GRAFT_ANY_INT : int
#else
#define GRAFT_ANY_INT
#endif

typedef enum graft_status GRAFT_ANY_INT {
  GRAFT_OK = 0,
  GRAFT_BAD_SHAPE,     // a negative count, a stride below the row, a size out of its range
  GRAFT_BAD_ARGUMENT,  // a null pointer, an id out of range, an enum value that does not exist
  GRAFT_NOT_FINITE,    // NaN or infinity where the operation is defined for finite values only
  GRAFT_NO_DEVICE,     // GRAFT_CUDA without a driver, without a GPU or without libgraft_cuda.so
  GRAFT_DEVICE_ERROR   // the device refused; graft_last_error() has its words
} graft_status;

// Where a function runs and where its pointers point. GRAFT_EMU runs the CUDA sources on the host,
// each thread of a block as a fiber, to prove them without a GPU; it also takes host memory.
typedef enum graft_device GRAFT_ANY_INT { GRAFT_CPU = 0, GRAFT_CUDA, GRAFT_EMU } graft_device;

// A cudaStream_t for GRAFT_CUDA; ignored (pass NULL) elsewhere.
typedef void* graft_stream;

// What an array of floating values holds; the 16-bit types as their bits.
//
// Where a function takes the `type` of its activations, they are float32 or bfloat16 (GRAFT_F16 is
// a GRAFT_BAD_ARGUMENT): bfloat16 values are widened when they are read, everything is computed in
// float32, and a result is rounded once when it is written, to nearest with ties to even; NaN
// becomes 0x7fff. Strides count elements.
typedef enum graft_float_type GRAFT_ANY_INT {
  GRAFT_F32 = 0,
  GRAFT_BF16 = 1,
  GRAFT_F16 = 2
} graft_float_type;

// A value that a C++ caller may leave out; C has no such thing.
#ifdef __cplusplus
#define GRAFT_DEFAULT(value) = value
#else
#define GRAFT_DEFAULT(value)
#endif

// The text of this thread's latest result other than GRAFT_OK: function, argument, observed and
// expected value. Never NULL; valid until this thread's next failing call.
const char* graft_last_error(void);

// The name of a status, for example "GRAFT_BAD_SHAPE".
const char* graft_status_name(graft_status status);

#ifdef __cplusplus
}
#endif
