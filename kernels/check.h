// Argument checks shared by the C functions (internal).
#pragma once

#include <initializer_list>

#include "kernels/status.h"

namespace graft::kernels {

// Keeps "function: text" for graft_last_error() and returns `status`.
[[gnu::format(printf, 3, 4)]] graft_status fail(graft_status status,
                                                const char* function,
                                                const char* format,
                                                ...);

struct Count {
  const char* name;
  int64_t value;
  int64_t least = 0;
};

// GRAFT_BAD_SHAPE, naming the argument, when a value is below its least.
inline graft_status check_counts(const char* function, std::initializer_list<Count> counts) {
  for (const Count& count : counts) {
    if (count.value < count.least) {
      return fail(GRAFT_BAD_SHAPE, function, "%s is %lld, expected at least %lld", count.name,
                  static_cast<long long>(count.value), static_cast<long long>(count.least));
    }
  }
  return GRAFT_OK;
}

struct Pointer {
  const char* name;
  const void* value;
};

// GRAFT_BAD_ARGUMENT, naming the argument, when a pointer is null.
inline graft_status check_pointers(const char* function, std::initializer_list<Pointer> pointers) {
  for (const Pointer& pointer : pointers) {
    if (pointer.value == nullptr) {
      return fail(GRAFT_BAD_ARGUMENT, function, "%s is NULL", pointer.name);
    }
  }
  return GRAFT_OK;
}

// GRAFT_BAD_ARGUMENT for a type that activations cannot have.
inline graft_status check_element(const char* function, graft_float_type type) {
  if (type == GRAFT_F32 || type == GRAFT_BF16) return GRAFT_OK;
  return fail(GRAFT_BAD_ARGUMENT, function, "type is %d, expected 0 (float32) or 1 (bfloat16)",
              static_cast<int>(type));
}

// The bytes of one element.
inline int64_t size_of(graft_float_type type) {
  return type == GRAFT_F32 ? 4 : 2;
}

}  // namespace graft::kernels
