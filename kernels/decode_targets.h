// What every function that takes graft_decode_target checks (internal).
#pragma once

#include "kernels/decode_rows.h"

namespace graft::kernels {

graft_status check_decode_targets(const char* function,
                                  const graft_decode_target* targets,
                                  int64_t target_count);

}  // namespace graft::kernels
