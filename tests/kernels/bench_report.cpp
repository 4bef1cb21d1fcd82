#include "tests/kernels/bench_report.h"

#include <algorithm>

#include "core/progress.h"  // format_fixed

namespace graft::kernels::test {

Json to_json(const BenchReport& report) {
  Json kernels = Json::array();
  for (const KernelFigure& figure : report.figures) {
    kernels.push_back(Json::object({{"name", figure.name},
                                    {"microseconds", 1e6 * figure.seconds},
                                    {"p10", 1e6 * figure.p10},
                                    {"p90", 1e6 * figure.p90},
                                    {"percent", figure.percent},
                                    {"of", figure.is_flops ? "bf16 product" : "copy bandwidth"}}));
  }
  return Json::object({{"device", report.device},
                       {"copy_gbps", report.copy_bytes_per_second / 1e9},
                       {"bf16_tflops", report.product_flops_per_second / 1e12},
                       {"kernels", std::move(kernels)}});
}

BenchReport report_of(const Json& json) {
  BenchReport report;
  report.device = json.at("device").as_string();
  report.copy_bytes_per_second = 1e9 * json.at("copy_gbps").as_double();
  report.product_flops_per_second = 1e12 * json.at("bf16_tflops").as_double();
  for (const Json& one : json.at("kernels").as_array()) {
    KernelFigure figure;
    figure.name = one.at("name").as_string();
    figure.seconds = 1e-6 * one.at("microseconds").as_double();
    figure.p10 = 1e-6 * one.at("p10").as_double();
    figure.p90 = 1e-6 * one.at("p90").as_double();
    figure.percent = one.at("percent").as_double();
    figure.is_flops = one.at("of").as_string() == "bf16 product";
    report.figures.push_back(std::move(figure));
  }
  return report;
}

std::vector<std::string> regressions(const BenchReport& now, const BenchReport& kept) {
  if (now.device != kept.device) {
    return {"this is " + now.device + ", the kept figures are of " + kept.device};
  }
  std::vector<std::string> lines;
  for (const KernelFigure& before : kept.figures) {
    const auto found =
        std::find_if(now.figures.begin(), now.figures.end(),
                     [&](const KernelFigure& figure) { return figure.name == before.name; });
    if (found == now.figures.end()) {
      lines.push_back(before.name + ": kept, and not measured now");
    } else if (found->percent < kKeptShare * before.percent) {
      lines.push_back(before.name + ": " + format_fixed(found->percent, 1) + " %, kept " +
                      format_fixed(before.percent, 1) + " %");
    }
  }
  return lines;
}

}  // namespace graft::kernels::test
