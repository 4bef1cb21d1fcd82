# Writes OUTPUT: the digest of FILES (a list), by which a program knows the libgraft_cuda.so that was
# built with it (kernels/device.h).
set(digests "")
foreach(file IN LISTS FILES)
  file(SHA256 ${file} digest)
  string(APPEND digests ${digest})
endforeach()
string(SHA256 digest "${digests}")
string(SUBSTRING ${digest} 0 16 digest)
file(WRITE ${OUTPUT} "#pragma once\n#define GRAFT_DEVICE_DIGEST 0x${digest}u\n")
