// Progress on stderr: a bar that redraws on a terminal, else one line every 10 seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

class Progress {
 public:
  // `total` <= 0 = unknown. `unit` follows the counts ("rows", "steps").
  Progress(std::string label, int64_t total, std::string unit);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `note` is shown after the bar ("loss 1.234  8,101 tok/s").
  void update(int64_t done, std::string_view note = "");
  void finish(std::string_view note = "");

 private:
  void draw(bool last);
  std::string label_;
  int64_t total_;
  std::string unit_;
  int64_t done_ = 0;
  int64_t first_done_ = -1;
  std::string note_;
  bool terminal_;
  bool finished_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

bool stderr_is_terminal();
bool stdout_is_terminal();
// `text` in an ANSI style ("1" bold, "2" dim, "31" red, "32" green …) when `on`; unchanged else.
std::string styled(std::string_view text, std::string_view code, bool on);

std::string format_count(int64_t value);     // 1,234,567
std::string format_bytes(int64_t bytes);     // 3.4 MB (powers of 1000)
std::string format_seconds(double seconds);  // 4.2 s, 3 min 05 s, 2 h 10 min
std::string format_fixed(double value, int digits);

// Rows as aligned columns for a terminal; columns marked '>' in `align` are right-aligned.
//   format_table("<>>", {{"rule", "rows", "share"}, …}) - the first row is the header.
std::string format_table(std::string_view align, const std::vector<std::vector<std::string>>& rows);

}  // namespace graft
