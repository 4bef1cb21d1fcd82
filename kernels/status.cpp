#include "kernels/status.h"

#include <cstdarg>
#include <cstdio>

#include "kernels/check.h"

namespace graft::kernels {
namespace {

constexpr int kTextBytes = 512;
thread_local char last_error[kTextBytes] = "";

}  // namespace

graft_status fail(graft_status status, const char* function, const char* format, ...) {
  int used = std::snprintf(last_error, kTextBytes, "%s: ", function);
  if (used < 0 || used >= kTextBytes) used = 0;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error + used, static_cast<size_t>(kTextBytes - used), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace graft::kernels

extern "C" const char* graft_last_error(void) {
  return graft::kernels::last_error;
}

extern "C" const char* graft_status_name(graft_status status) {
  switch (status) {
    case GRAFT_OK:
      return "GRAFT_OK";
    case GRAFT_BAD_SHAPE:
      return "GRAFT_BAD_SHAPE";
    case GRAFT_BAD_ARGUMENT:
      return "GRAFT_BAD_ARGUMENT";
    case GRAFT_NOT_FINITE:
      return "GRAFT_NOT_FINITE";
    case GRAFT_NO_DEVICE:
      return "GRAFT_NO_DEVICE";
    case GRAFT_DEVICE_ERROR:
      return "GRAFT_DEVICE_ERROR";
  }
  return "unknown graft_status";
}
