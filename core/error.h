// Errors as values of one type: what went wrong, where, and how to fix it.
//
// Library code throws graft::Error at the place where a bad value is used. Only `run_main` (and the
// end of a thread) catches. On stderr an error reads:
//   error: adapter rank must be in 1..512, got 0
//     at configs/run.yaml:14:11: lora.r
//     fix: set lora.r to 8, 16 or 64
#pragma once

#include <exception>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace graft {

// Process exit codes; other programs rely on them.
enum class ExitCode : int {
  kOk = 0,
  kFindings = 1,  // findings, or a comparison that failed
  kUsage = 2,     // command line or config
  kData = 3,      // input data, or a guard rail
  kDevice = 4,    // device error or out of memory
  kNumeric = 5,   // NaN, Inf or divergence
  kBug = 70,      // a bug of graft, or a hang
  kPeer = 71,     // a peer process failed
  kIo = 74,       // reading or writing failed
  kRequeue = 75,  // state is saved; run the same command again
  kPerson = 76,   // a person has to decide
};

struct ErrorText {
  std::string what;   // expected and observed value, no trailing period
  std::string where;  // file:line:column, key or tensor; may be empty
  std::string fix;    // an action; may be empty
};

class Error : public std::exception {
 public:
  Error(ExitCode code, ErrorText text);
  ExitCode code() const noexcept { return code_; }
  const ErrorText& text() const noexcept { return text_; }
  // The three lines printed on stderr, without a trailing newline.
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ExitCode code_;
  ErrorText text_;
  std::string message_;
};

// Throws Error{code, {what, where, fix}}.
[[noreturn]] void fail(ExitCode code,
                       std::string what,
                       std::string where = "",
                       std::string fix = "");

// The same for a failed system call: appends strerror(errno); exit code kIo.
[[noreturn]] void fail_io(std::string what, std::string where, std::string fix = "");

// The known name nearest to `name` by edit distance, or "" when none is near enough to be a typo.
std::string nearest_name(std::string_view name, std::span<const std::string_view> known);

// `unknown <kind> "<name>"; known: a, b, c - did you mean "b"?`
std::string unknown_name(std::string_view kind,
                         std::string_view name,
                         std::span<const std::string_view> known);

// Runs `body`, prints what it throws to stderr and returns the process exit code. Errors that are
// not graft::Error count as a bug (70), std::bad_alloc as device (4).
int run_main(const std::function<int()>& body) noexcept;

}  // namespace graft
