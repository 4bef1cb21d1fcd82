// Many small inputs in one file: a corpus of libFuzzer has thousands of them.
//
// Format: for each input its size as four bytes, lowest first, and its bytes; sorted by bytes.
#pragma once

#include <string>
#include <vector>

namespace graft::fuzz {

// Errors: kIo, kData (cut short).
std::vector<std::string> read_corpus(const std::string& path);
void write_corpus(const std::string& path, std::vector<std::string> inputs);

}  // namespace graft::fuzz
