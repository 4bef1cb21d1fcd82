// Where the 8-bit maps are built (internal).
#pragma once

#include "kernels/quant8.h"
#include "kernels/simd/weight_table.h"

namespace graft::kernels {

// NULL for a value that is no map. Built at the first call.
const Map8* map8(graft_map8 map);

}  // namespace graft::kernels
