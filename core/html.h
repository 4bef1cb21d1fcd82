// Self-contained HTML reports: no script, no network, inline SVG plots, light and dark.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

std::string html_escape(std::string_view text);

class HtmlReport {
 public:
  HtmlReport(std::string_view title, std::string_view subtitle);
  void heading(std::string_view text);
  void paragraph(std::string_view text);  // escaped
  // Big figures in a row: label and value.
  void figures(const std::vector<std::pair<std::string, std::string>>& label_value);
  // First row is the header; columns marked '>' in `align` are right-aligned.
  void table(std::string_view align, const std::vector<std::vector<std::string>>& rows);
  void preformatted(std::string_view text);  // escaped
  // A block the reader can open; `body_html` is NOT escaped, build it with html_escape.
  void details(std::string_view summary, std::string_view body_html);
  struct Bar {
    std::string label;
    double value;
    std::string text;
  };
  void bar_chart(std::string_view title, const std::vector<Bar>& bars);
  struct Line {
    std::string name;
    std::vector<double> x;
    std::vector<double> y;
  };
  struct Axes {
    std::string title;
    std::string x_label;
    std::string y_label;
  };
  void line_chart(const Axes& axes, const std::vector<Line>& lines);
  // The whole document.
  std::string finish();

 private:
  std::string body_;
  std::string title_;
  std::string subtitle_;
};

}  // namespace graft
