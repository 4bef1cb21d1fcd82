// Between a corpus file and the folder of files that libFuzzer works on.
// Usage: fuzz_corpus unpack FILE DIR | pack DIR FILE | seeds TARGET DIR
#include <cstdio>
#include <string>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "tests/fuzz/corpus.h"
#include "tests/fuzz/seeds.h"

namespace {

using namespace graft;

void write_all(const std::vector<std::string>& inputs, const std::string& directory) {
  make_directories(directory);
  for (const std::string& input : inputs) {
    write_file_atomically(join_path(directory, hex64(xxh3_64(input))), input);
  }
}

int run(const std::string& verb, const std::string& from, const std::string& to) {
  if (verb == "unpack") {
    write_all(fuzz::read_corpus(from), to);
  } else if (verb == "seeds") {
    write_all(fuzz::seeds_of(from, std::string(GRAFT_SOURCE_DIR) + "/tests/golden"), to);
  } else if (verb == "pack") {
    std::vector<std::string> inputs;
    for (const std::string& name : list_directory(from)) {
      inputs.push_back(read_file(join_path(from, name)));
    }
    fuzz::write_corpus(to, std::move(inputs));
  } else {
    fail(ExitCode::kUsage, "expected unpack, pack or seeds, got " + verb);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("usage: fuzz_corpus unpack FILE DIR | pack DIR FILE | seeds TARGET DIR\n", stderr);
    return 2;
  }
  return run_main([&] { return run(argv[1], argv[2], argv[3]); });
}
