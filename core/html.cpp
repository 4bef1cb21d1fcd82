#include "core/html.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace graft {
namespace {

constexpr std::string_view kStyle = R"(
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d2327;--dim:#667079;--line:#dfe3e6;--card:#fff;--accent:#1f6f8b;
--c0:#1f6f8b;--c1:#c8553d;--c2:#588157;--c3:#8d5a97;--mark:#ffe08a}
@media(prefers-color-scheme:dark){:root{--bg:#14181b;--fg:#e6eaec;--dim:#93a0a8;--line:#2c343a;
--card:#1b2125;--accent:#67b7d1;--c0:#67b7d1;--c1:#ee8e78;--c2:#93c48f;--c3:#c79bd1;--mark:#6b5a17}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:960px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}
.sub{color:var(--dim);margin:0 0 20px}.figures{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}
.figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;
min-width:130px}.figure b{display:block;font-size:22px;font-variant-numeric:tabular-nums}
.figure span{color:var(--dim);font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:600;font-size:13px}.r{text-align:right;white-space:nowrap}
td:last-child:not(.r){min-width:260px}
ol{margin:8px 0;padding-left:26px}li{margin:10px 0;overflow-wrap:anywhere}small{color:var(--dim)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;
overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,monospace}
details{border:1px solid var(--line);border-radius:8px;padding:8px 14px;margin:8px 0;
background:var(--card)}summary{cursor:pointer}mark{background:var(--mark);color:inherit}
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:12px}
.legend{color:var(--dim);font-size:13px}.legend i{display:inline-block;width:10px;height:10px;
border-radius:2px;margin:0 5px 0 14px}
)";
constexpr int kSeriesColors = 4;

std::string number(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.6g", value);
  return buffer;
}

// About five round steps (1, 2 or 5 times a power of ten) over a range.
std::vector<double> ticks(double low, double high) {
  const double raw = (high - low) / 5;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double unit = raw / power;
  const double step = (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10) * power;
  std::vector<double> result;
  for (double at = std::ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
    result.push_back(std::fabs(at) < step * 1e-9 ? 0 : at);
  }
  return result;
}

struct Range {
  double low = 0;
  double high = 1;
};

template <typename Get>
Range range_of(const std::vector<HtmlReport::Line>& lines, Get get) {
  Range range{INFINITY, -INFINITY};
  for (const auto& line : lines) {
    for (const double value : get(line)) {
      if (std::isfinite(value)) {
        range.low = std::min(range.low, value);
        range.high = std::max(range.high, value);
      }
    }
  }
  if (range.low > range.high) {
    return {};
  }
  if (range.low == range.high) {
    range.low -= 0.5;
    range.high += 0.5;
  }
  return range;
}

}  // namespace

std::string html_escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

HtmlReport::HtmlReport(std::string_view title, std::string_view subtitle)
    : title_(title), subtitle_(subtitle) {}

void HtmlReport::heading(std::string_view text) {
  body_ += "<h2>" + html_escape(text) + "</h2>\n";
}

void HtmlReport::paragraph(std::string_view text) {
  body_ += "<p>" + html_escape(text) + "</p>\n";
}

void HtmlReport::figures(const std::vector<std::pair<std::string, std::string>>& label_value) {
  body_ += "<div class=\"figures\">";
  for (const auto& [label, value] : label_value) {
    body_ += "<div class=\"figure\"><b>" + html_escape(value) + "</b><span>" + html_escape(label) +
             "</span></div>";
  }
  body_ += "</div>\n";
}

void HtmlReport::table(std::string_view align, const std::vector<std::vector<std::string>>& rows) {
  body_ += "<div class=\"scroll\"><table>";
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::string tag = r == 0 ? "th" : "td";
    body_ += "<tr>";
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const bool right = c < align.size() && align[c] == '>';
      body_ +=
          "<" + tag + (right ? " class=\"r\">" : ">") + html_escape(rows[r][c]) + "</" + tag + ">";
    }
    body_ += "</tr>\n";
  }
  body_ += "</table></div>\n";
}

void HtmlReport::preformatted(std::string_view text) {
  body_ += "<pre>" + html_escape(text) + "</pre>\n";
}

void HtmlReport::details(std::string_view summary, std::string_view body_html) {
  body_ += "<details><summary>" + html_escape(summary) + "</summary>" + std::string(body_html) +
           "</details>\n";
}

void HtmlReport::bar_chart(std::string_view title, const std::vector<Bar>& bars) {
  constexpr int kRow = 24;
  constexpr int kLabel = 220;
  constexpr int kWidth = 900;
  constexpr int kBarMax = kWidth - kLabel - 120;
  double largest = 0;
  for (const Bar& bar : bars) {
    largest = std::max(largest, bar.value);
  }
  const int height = kRow * static_cast<int>(bars.size()) + 4;
  body_ += "<figure style=\"margin:12px 0\"><figcaption class=\"legend\">" + html_escape(title) +
           "</figcaption><svg viewBox=\"0 0 " + std::to_string(kWidth) + " " +
           std::to_string(height) + "\" role=\"img\">";
  for (size_t i = 0; i < bars.size(); ++i) {
    const int y = static_cast<int>(i) * kRow;
    const double width = largest > 0 ? bars[i].value / largest * kBarMax : 0;
    body_ += "<text x=\"" + std::to_string(kLabel - 10) + "\" y=\"" + std::to_string(y + 16) +
             "\" text-anchor=\"end\">" + html_escape(bars[i].label) + "</text><rect x=\"" +
             std::to_string(kLabel) + "\" y=\"" + std::to_string(y + 4) + "\" width=\"" +
             number(std::max(width, bars[i].value > 0 ? 1.0 : 0.0)) +
             "\" height=\"16\" rx=\"2\" fill=\"var(--c0)\"/><text x=\"" +
             number(kLabel + width + 8) + "\" y=\"" + std::to_string(y + 16) + "\">" +
             html_escape(bars[i].text) + "</text>";
  }
  body_ += "</svg></figure>\n";
}

void HtmlReport::line_chart(const Axes& axes, const std::vector<Line>& lines) {
  constexpr double kWidth = 900;
  constexpr double kHeight = 300;
  constexpr double kLeft = 64;
  constexpr double kBottom = 40;
  constexpr double kTop = 12;
  const Range x_range = range_of(
      lines, [](const Line& line) -> auto& { return line.x; });
  const Range y_range = range_of(
      lines, [](const Line& line) -> auto& { return line.y; });
  const auto place_x = [&](double x) {
    return kLeft + (x - x_range.low) / (x_range.high - x_range.low) * (kWidth - kLeft - 12);
  };
  const auto place_y = [&](double y) {
    return kHeight - kBottom -
           (y - y_range.low) / (y_range.high - y_range.low) * (kHeight - kBottom - kTop);
  };
  std::string svg;
  for (const double y : ticks(y_range.low, y_range.high)) {
    svg += "<line x1=\"64\" x2=\"888\" y1=\"" + number(place_y(y)) + "\" y2=\"" +
           number(place_y(y)) + "\" stroke=\"var(--line)\"/><text x=\"56\" y=\"" +
           number(place_y(y) + 4) + "\" text-anchor=\"end\">" + number(y) + "</text>";
  }
  for (const double x : ticks(x_range.low, x_range.high)) {
    svg += "<text x=\"" + number(place_x(x)) + "\" y=\"" + number(kHeight - kBottom + 18) +
           "\" text-anchor=\"middle\">" + number(x) + "</text>";
  }
  std::string legend = html_escape(axes.title);
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string color = "var(--c" + std::to_string(i % kSeriesColors) + ")";
    svg += "<polyline fill=\"none\" stroke-width=\"2\" stroke-linejoin=\"round\" stroke=\"" +
           color + "\" points=\"";
    for (size_t k = 0; k < std::min(lines[i].x.size(), lines[i].y.size()); ++k) {
      if (std::isfinite(lines[i].y[k])) {
        svg += number(place_x(lines[i].x[k])) + "," + number(place_y(lines[i].y[k])) + " ";
      }
    }
    svg += "\"/>";
    if (lines.size() > 1) {
      legend += "<i style=\"background:" + color + "\"></i>" + html_escape(lines[i].name);
    }
  }
  body_ += "<figure style=\"margin:12px 0\"><figcaption class=\"legend\">" + legend +
           "</figcaption><svg viewBox=\"0 0 900 300\" role=\"img\">" + svg +
           "<text x=\"476\" y=\"296\" text-anchor=\"middle\">" + html_escape(axes.x_label) +
           "</text><text transform=\"translate(14 140) rotate(-90)\" text-anchor=\"middle\">" +
           html_escape(axes.y_label) + "</text></svg></figure>\n";
}

std::string HtmlReport::finish() {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>" +
         html_escape(title_) + "</title><style>" + std::string(kStyle) +
         "</style></head><body><main>" + "<h1>" + html_escape(title_) + "</h1><p class=\"sub\">" +
         html_escape(subtitle_) + "</p>\n" + body_ + "</main></body></html>\n";
}

}  // namespace graft
