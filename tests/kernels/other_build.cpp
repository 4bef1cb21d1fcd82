// Stands for the libgraft_cuda.so of another build: its table must not be taken.
extern "C" {
__attribute__((visibility("default"))) extern const unsigned long long graft_cuda_digest;
const unsigned long long graft_cuda_digest = 1;
__attribute__((visibility("default"))) const void* graft_cuda_device_table(const void*,
                                                                           const char**) {
  __builtin_trap();
}
}
