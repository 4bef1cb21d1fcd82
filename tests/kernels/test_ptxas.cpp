#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <regex>
#include <sstream>

#include <cxxabi.h>

#include "core/file.h"  // read_file
#include "tests/kernels/ptxas.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

namespace graft::kernels::test {
namespace {

// "decode_kernel<ToBf16, true>" of a mangled name.
std::string kernel_name(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : mangled;
  std::free(text);
  name = std::regex_replace(name, std::regex(R"(\(anonymous namespace\)::|\w+::|^void )"), "");
  // The parameters begin at the last parenthesis outside the template's arguments.
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

}  // namespace

PtxasLog parse_ptxas_log(std::string_view text) {
  static const std::regex entry(R"(Compiling entry function '(\S+)' for '(\w+)')");
  static const std::regex stack(
      R"((\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes)");
  static const std::regex used(R"(Used (\d+) registers(?:.*?(\d+) bytes smem)?)");
  PtxasLog log;
  std::istringstream lines{std::string(text)};
  std::getline(lines, log.compiler);
  std::string kernel, frame;
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_search(line, match, entry)) {
      kernel = match[2].str() + " " + kernel_name(match[1].str());
    } else if (std::regex_search(line, match, stack)) {
      const bool clean = match[1] == "0" && match[2] == "0" && match[3] == "0";
      frame = clean ? "" : ", " + match[0].str();
    } else if (std::regex_search(line, match, used)) {
      const std::string shared = match[2].matched ? match[2].str() : "0";
      log.rows.push_back(kernel + ": " + match[1].str() + " registers, " + shared + " B shared");
      if (!frame.empty()) log.spills.push_back(kernel + frame);
    }
  }
  std::sort(log.rows.begin(), log.rows.end());
  return log;
}

}  // namespace graft::kernels::test

using namespace graft::kernels::test;

TEST_CASE("ptxas: a kernel that spills is found", "[kernels][cuda]") {
  const PtxasLog log = parse_ptxas_log(
      "nvcc V13.0.88\n"
      "ptxas info    : Compiling entry function '_ZN5graft4slowEPf' for 'sm_80'\n"
      "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
      "ptxas info    : Used 255 registers, used 1 barriers, 64 bytes smem\n"
      "ptxas info    : Compiling entry function '_ZN5graft4fastEPf' for 'sm_80'\n"
      "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
      "ptxas info    : Used 8 registers, 352 bytes cmem[0]\n");
  CHECK(log.compiler == "nvcc V13.0.88");
  CHECK(log.rows == std::vector<std::string>{"sm_80 fast: 8 registers, 0 B shared",
                                             "sm_80 slow: 255 registers, 64 B shared"});
  REQUIRE(log.spills.size() == 1);
  CHECK(log.spills[0].find("sm_80 slow") == 0);
}

TEST_CASE("ptxas: a kernel made to spill is found in the compiler's own log", "[kernels][cuda]") {
  const std::string path = std::string(GRAFT_BIN_DIR) + "/../kernels/spilling.log";
  if (!std::filesystem::exists(path)) {
    std::cout << "SKIPPED: the CUDA kernels were not compiled (no nvcc)\n";
    return;
  }
  const PtxasLog log = parse_ptxas_log("nvcc\n" + graft::read_file(path));
  REQUIRE(log.spills.size() == 1);
  CHECK(log.spills[0].find("sm_90a spilling_kernel, ") == 0);
}

TEST_CASE("ptxas: no kernel spills, and the table of registers is the committed one",
          "[kernels][cuda]") {
  const std::string path = std::string(GRAFT_BIN_DIR) + "/../kernels/ptxas.log";
  if (!std::filesystem::exists(path)) {
    std::cout << "SKIPPED: the CUDA kernels were not compiled (no nvcc)\n";
    return;
  }
  const PtxasLog log = parse_ptxas_log(graft::read_file(path));
  CHECK(log.rows.size() >= 5 * 27);  // 27 kernels, some in many forms, for five architectures
  CHECK(log.spills == std::vector<std::string>{});
  // First line: the compiler; then the rows.
  std::istringstream lines(graft::read_file(graft::test::source_path("kernels/ptxas.txt")));
  std::string compiler;
  std::getline(lines, compiler);
  if (compiler != log.compiler) {
    std::cout << "SKIPPED: kernels/ptxas.txt is of " << compiler << ", this is " << log.compiler
              << "\n";
    return;
  }
  std::vector<std::string> committed;
  for (std::string line; std::getline(lines, line);) committed.push_back(line);
  CHECK(log.rows == committed);
}

// Hidden: `test_kernels "ptxas: write the table"` after a wanted change.
TEST_CASE("ptxas: write the table", "[.][cuda]") {
  const PtxasLog log =
      parse_ptxas_log(graft::read_file(std::string(GRAFT_BIN_DIR) + "/../kernels/ptxas.log"));
  std::string text = log.compiler + "\n";
  for (const std::string& row : log.rows) text += row + "\n";
  graft::write_file_atomically(graft::test::source_path("kernels/ptxas.txt"), text);
  SUCCEED();
}
