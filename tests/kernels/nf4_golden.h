// Checks of NF4 against golden files, on any device whose memory is the host's.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "kernels/status.h"

namespace graft::kernels::test {

// tests/golden/nf4_bitsandbytes.json, made by make_nf4.py.
graft::Json read_golden();

std::vector<uint8_t> bytes_of_hex(const std::string& hex);
std::vector<float> floats_of_hex(const std::string& hex);

// The shared file's inputs: sums of twelve draws, near normal with a deviation of 0.02, rounded to
// bfloat16 where asked.
std::vector<float> shared_input(uint32_t seed, int64_t count, bool bf16);

// Quantize, compress and decode of every case.
void check_golden_cases(graft_device device);

// The shared file: every NF4 and FP4 case's packed bytes, absmax (exact nearest where nested) and
// decode.
void check_shared_golden(const std::string& path);

}  // namespace graft::kernels::test
