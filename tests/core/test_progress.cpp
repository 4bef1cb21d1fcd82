#include <catch2/catch.hpp>

#include "core/progress.h"

TEST_CASE("progress: numbers read well", "[core][progress]") {
  CHECK(graft::format_count(0) == "0");
  CHECK(graft::format_count(1234567) == "1,234,567");
  CHECK(graft::format_count(-1000) == "-1,000");
  CHECK(graft::format_bytes(999) == "999 B");
  CHECK(graft::format_bytes(1500) == "1.5 kB");
  CHECK(graft::format_bytes(999'999) == "1.0 MB");
  CHECK(graft::format_bytes(123'456'789) == "123 MB");
  CHECK(graft::format_seconds(4.21) == "4.2 s");
  CHECK(graft::format_seconds(59.97) == "1 min 00 s");
  CHECK(graft::format_seconds(185) == "3 min 05 s");
  CHECK(graft::format_seconds(7800) == "2 h 10 min");
}

TEST_CASE("progress: tables align columns by display width", "[core][progress]") {
  CHECK(graft::format_table("<>", {{"rule", "rows"}, {"émpty", "12"}, {"x", "1,000"}}) ==
        "rule    rows\némpty     12\nx      1,000\n");
}
