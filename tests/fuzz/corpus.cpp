#include "tests/fuzz/corpus.h"

#include <algorithm>

#include "core/error.h"
#include "core/file.h"

namespace graft::fuzz {

std::vector<std::string> read_corpus(const std::string& path) {
  const std::string bytes = read_file(path);
  std::vector<std::string> inputs;
  for (size_t at = 0; at < bytes.size();) {
    size_t size = 0;
    for (size_t i = 0; i < 4 && at + i < bytes.size(); ++i) {
      size |= size_t{static_cast<unsigned char>(bytes[at + i])} << (8 * i);
    }
    if (bytes.size() - at < 4 || size > bytes.size() - at - 4) {
      fail(ExitCode::kData, "the corpus ends inside an input", path);
    }
    inputs.push_back(bytes.substr(at + 4, size));
    at += 4 + size;
  }
  return inputs;
}

void write_corpus(const std::string& path, std::vector<std::string> inputs) {
  std::sort(inputs.begin(), inputs.end());
  std::string bytes;
  for (const std::string& input : inputs) {
    for (unsigned i = 0; i < 4; ++i) bytes += static_cast<char>(input.size() >> (8 * i) & 0xFFU);
    bytes += input;
  }
  write_file_atomically(path, bytes);
}

}  // namespace graft::fuzz
