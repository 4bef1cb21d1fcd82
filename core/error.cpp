#include "core/error.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace graft {
namespace {

std::string compose(const ErrorText& text) {
  std::string message = "error: " + text.what;
  if (!text.where.empty()) {
    message += "\n  at " + text.where;
  }
  if (!text.fix.empty()) {
    message += "\n  fix: " + text.fix;
  }
  return message;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

Error::Error(ExitCode code, ErrorText text)
    : code_(code), text_(std::move(text)), message_(compose(text_)) {}

void fail(ExitCode code, std::string what, std::string where, std::string fix) {
  throw Error(code, {std::move(what), std::move(where), std::move(fix)});
}

void fail_io(std::string what, std::string where, std::string fix) {
  const int number = errno;
  throw Error(ExitCode::kIo,
              {std::move(what) + ": " + std::strerror(number), std::move(where), std::move(fix)});
}

std::string nearest_name(std::string_view name, std::span<const std::string_view> known) {
  // A third of the letters may differ (at least two): "lora_rnak" finds "lora_rank", "x" nothing.
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  std::string best;
  for (const std::string_view candidate : known) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string unknown_name(std::string_view kind,
                         std::string_view name,
                         std::span<const std::string_view> known) {
  std::string text = "unknown " + std::string(kind) + " \"" + std::string(name) + "\"; known: ";
  for (size_t i = 0; i < known.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::string(known[i]);
  }
  const std::string near = nearest_name(name, known);
  if (!near.empty()) {
    text += " - did you mean \"" + near + "\"?";
  }
  return text;
}

int run_main(const std::function<int()>& body) noexcept {
  // A file-size limit must come back as a failed write, not end the process.
  std::signal(SIGXFSZ, SIG_IGN);
  int code = 0;
  try {
    code = body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      fail_io("cannot write the result", "standard output");
    }
  } catch (const Error& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s\n", error.what());
    code = static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: out of memory\n  fix: use a smaller batch, sequence or model\n");
    code = static_cast<int>(ExitCode::kDevice);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: internal: %s\n  fix: this is a bug of graft, please report it\n",
                 error.what());
    code = static_cast<int>(ExitCode::kBug);
  }
  return code;
}

}  // namespace graft
