// Command lines from one table: each command is a row, and --help, --json, completion and the
// nearest-name suggestions come from it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

struct Option {
  std::string_view name;      // "--threads"
  std::string_view value;     // "N"; empty for a switch
  std::string_view fallback;  // shown in --help and used when absent; empty = none
  std::string_view help;
};

class Args {
 public:
  bool has(std::string_view option) const;  // given on the command line, or has a fallback
  bool flag(std::string_view option) const { return has(option); }
  std::string text(std::string_view option) const;                           // "" when absent
  std::string need(std::string_view option) const;                           // Errors: kUsage
  int64_t integer(std::string_view option, int64_t min, int64_t max) const;  // Errors: kUsage
  double number(std::string_view option, double min, double max) const;      // Errors: kUsage
  const std::vector<std::string>& positionals() const { return positionals_; }
  bool json() const { return flag("--json"); }

 private:
  friend class ArgsParser;
  std::map<std::string, std::string, std::less<>> values_;
  std::vector<std::string> positionals_;
};

struct Command {
  std::string_view name;         // "clean"; several words are allowed
  std::string_view positionals;  // "FILE…", "CONFIG.yaml [key.path=value …]", or ""
  int min_positionals;
  int max_positionals;          // -1 = any number
  std::string_view summary;     // one line
  std::vector<Option> options;  // --json and --help are added to every command
  std::vector<std::string_view> examples;
  std::function<int(const Args&)> run;  // returns the process exit code
};

// A program with a table of commands: parses argv, prints help (to stdout) or runs the command.
// `prefix` is what the user types, for example "graft data". With argv "--complete" it prints
// every command and option, one a line, for the shell completion.
int run_program(std::string_view prefix,
                std::string_view summary,
                std::span<const Command> commands,
                int argc,
                char** argv);

}  // namespace graft
