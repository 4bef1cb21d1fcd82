#include "core/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include <sys/ioctl.h>
#include <unistd.h>

namespace graft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int terminal_width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
  return 80;
}

// Columns a text takes: code points, without the bytes of ANSI styles.
size_t display_width(std::string_view text) {
  size_t width = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\033') {
      i = std::min(text.find('m', i), text.size());
    } else if ((static_cast<unsigned char>(text[i]) & 0xc0U) != 0x80U) {
      ++width;
    }
  }
  return width;
}

}  // namespace

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      total_(total),
      unit_(std::move(unit)),
      terminal_(stderr_is_terminal()),
      start_(Clock::now()),
      last_draw_(start_) {}

Progress::~Progress() {
  if (!finished_ && terminal_) {
    std::fputc('\n', stderr);
  }
}

void Progress::update(int64_t done, std::string_view note) {
  if (first_done_ < 0) {
    first_done_ = done_;  // a resumed run does not count what an earlier one did
    start_ = Clock::now();
  }
  done_ = done;
  note_ = note;
  const double interval = terminal_ ? 0.1 : 10.0;
  if (seconds_since(last_draw_) >= interval) {
    draw(false);
  }
}

void Progress::finish(std::string_view note) {
  if (!note.empty()) {
    note_ = note;
  }
  draw(true);
  finished_ = true;
}

void Progress::draw(bool last) {
  last_draw_ = Clock::now();
  const double elapsed = seconds_since(start_);
  std::string line = label_ + " ";
  if (total_ > 0) {
    const double share =
        std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0., 1.);
    if (terminal_) {
      constexpr int kCells = 24;
      const int full = static_cast<int>(share * kCells);
      line += "[";
      for (int i = 0; i < kCells; ++i) {
        line += i < full ? "█" : "·";
      }
      line += "] ";
    }
    line += format_count(done_) + "/" + format_count(total_) + " " + unit_;
    const auto progress = static_cast<double>(done_ - std::max<int64_t>(first_done_, 0));
    if (last) {
      line += "  " + format_seconds(elapsed);
    } else if (progress > 0) {
      line +=
          "  " + format_seconds(elapsed / progress * static_cast<double>(total_ - done_)) + " left";
    }
  } else {
    line += format_count(done_) + " " + unit_ + "  " + format_seconds(elapsed);
  }
  if (!note_.empty()) {
    line += "  " + note_;
  }
  if (terminal_) {
    const size_t width = static_cast<size_t>(terminal_width() - 1);
    while (display_width(line) > width) {
      line.pop_back();
    }
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

bool stderr_is_terminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

bool stdout_is_terminal() {
  return ::isatty(STDOUT_FILENO) == 1;
}

std::string styled(std::string_view text, std::string_view code, bool on) {
  if (!on) {
    return std::string(text);
  }
  return "\033[" + std::string(code) + "m" + std::string(text) + "\033[0m";
}

std::string format_count(int64_t value) {
  std::string digits = std::to_string(value < 0 ? -value : value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return (value < 0 ? "-" : "") + digits;
}

std::string format_fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string format_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return format_fixed(value, unit == 0 || value >= 99.95 ? 0 : 1) + " " + kUnits[unit];
}

std::string format_seconds(double seconds) {
  if (seconds < 59.95) {
    return format_fixed(seconds, 1) + " s";
  }
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  char buffer[64];
  if (whole < 3600) {
    std::snprintf(buffer, sizeof buffer, "%d min %02d s", static_cast<int>(whole / 60),
                  static_cast<int>(whole % 60));
  } else {
    std::snprintf(buffer, sizeof buffer, "%lld h %02d min", static_cast<long long>(whole / 3600),
                  static_cast<int>(whole % 3600 / 60));
  }
  return buffer;
}

std::string format_table(std::string_view align,
                         const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(align.size(), 0);
  for (const auto& row : rows) {
    for (size_t column = 0; column < row.size() && column < widths.size(); ++column) {
      widths[column] = std::max(widths[column], display_width(row[column]));
    }
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t column = 0; column < row.size() && column < widths.size(); ++column) {
      const std::string space(widths[column] - display_width(row[column]), ' ');
      line += column == 0 ? "" : "  ";
      line += align[column] == '>' ? space + row[column] : row[column] + space;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

}  // namespace graft
