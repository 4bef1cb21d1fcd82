// Small kernels for the tests of the emulated device itself, most with a planted fault.
#pragma once

#include "kernels/emu/emu.h"
#include "kernels/status.h"

namespace graft::kernels::test {

// out[i] = values[63 - i] through shared memory, with or without the barrier that it needs.
graft_status reverse_block(const float* values, float* out, bool with_barrier);

// Each thread adds what its left neighbour wrote before, without a barrier: right only in the
// order 0, 1, 2, ...
bool prefix_of_block_is_right(emu::Order order);

graft_status divergent_barrier();          // half of the block skips __syncthreads
graft_status shared_overrun();             // writes one element past the shared array
graft_status write_64_floats(float* out);  // whatever the size of out

// sums[w] = sum of threadIdx.x over warp w by shuffles; order gets each thread's ticket from one
// atomic counter.
graft_status warp_sums(int* sums, int* order);

bool cuda_is_available();

}  // namespace graft::kernels::test
