// The inputs that fuzzing starts from, made of the files in tests/golden.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::fuzz {

// `golden`: the folder tests/golden. Errors: kUsage (no such target), kIo, kData.
std::vector<std::string> seeds_of(std::string_view target, const std::string& golden);

}  // namespace graft::fuzz
