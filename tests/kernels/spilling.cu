// A kernel that needs more registers than it is given: what the check of the ptxas log has to find
// (test_ptxas.cpp). Compiled with -maxrregcount=24 and never run.
extern "C" __global__ void spilling_kernel(const float* from, float* to) {
  float value[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) value[i] = from[i * 128 + threadIdx.x];
  for (int round = 0; round < 10; ++round) {
#pragma unroll
    for (int i = 0; i < 64; ++i)
      value[i] = value[i] * value[(i * 7 + 3) % 64] + value[(i + 1) % 64];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) to[i * 128 + threadIdx.x] = value[i];
}
