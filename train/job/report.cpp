#include "train/job/report.h"

#include <sstream>

#include "core/file.h"
#include "core/html.h"
#include "core/progress.h"
#include "train/job/export.h"

namespace graft::train {
namespace {

struct Series {
  HtmlReport::Line loss{"training loss", {}, {}};
  HtmlReport::Line eval_loss{"held-out loss", {}, {}};
  HtmlReport::Line rate{"learning rate", {}, {}};
  HtmlReport::Line norm{"gradient norm", {}, {}};
  double tokens = 0;
  double seconds = 0;
};

void add(HtmlReport::Line& line, double x, double y) {
  line.x.push_back(x);
  line.y.push_back(y);
}

Series read_series(const std::string& path) {
  Series series;
  std::istringstream lines(read_file(path));
  std::string text;
  while (std::getline(lines, text)) {
    const Json line = parse_json(text, path);
    const double step = line.at("step").as_double();
    if (const Json* eval = line.find("eval_loss")) {
      if (!eval->is_null()) {  // null when it was not finite
        add(series.eval_loss, step, eval->as_double());
      }
      continue;
    }
    const Json& loss = line.at("loss");  // null when it was not finite
    if (!loss.is_null()) {
      add(series.loss, step, loss.as_double());
    }
    add(series.rate, step, line.at("learning_rate").as_double());
    if (!line.at("grad_norm").is_null()) {
      add(series.norm, step, line.at("grad_norm").as_double());
    }
    series.tokens += line.at("tokens").as_double();
    series.seconds += line.at("tokens").as_double() / line.at("tokens_per_s").as_double();
  }
  return series;
}

std::string plain(const Json& value) {
  return value.is_string() ? value.as_string() : dump_json(value, {.spaces = true});
}

}  // namespace

void write_training_report(const TrainConfig& config,
                           const std::string& directory,
                           const Json& summary) {
  const Series series = read_series(join_path(directory, "metrics.jsonl"));
  HtmlReport report("Training report", config.output_dir);
  std::vector<std::pair<std::string, std::string>> figures = {
      {"optimizer steps", format_count(summary.at("steps").as_int())},
      {"trained tokens", format_count(summary.at("trained_tokens").as_int())},
      {"tokens a second",
       format_count(static_cast<int64_t>(series.tokens / std::max(series.seconds, 1e-9)))},
      {"skipped steps", format_count(summary.at("skipped_steps").as_int())},
  };
  if (!series.loss.y.empty()) {
    figures.emplace_back("last training loss", format_fixed(series.loss.y.back(), 4));
  }
  if (!series.eval_loss.y.empty()) {
    figures.emplace_back("held-out loss, first to last",
                         format_fixed(series.eval_loss.y.front(), 3) + " → " +
                             format_fixed(series.eval_loss.y.back(), 3));
  }
  report.figures(figures);
  report.heading("Loss");
  report.line_chart({"Loss a trained token", "optimizer step", "nats"},
                    series.eval_loss.y.empty()
                        ? std::vector<HtmlReport::Line>{series.loss}
                        : std::vector<HtmlReport::Line>{series.loss, series.eval_loss});
  report.heading("Learning rate and gradient");
  report.line_chart({"Learning rate", "optimizer step", ""}, {series.rate});
  report.line_chart({"Gradient norm before clipping", "optimizer step", ""}, {series.norm});
  report.heading("Files");
  report.table("<>", exported_files(summary.at("export")));
  report.heading("Config");
  std::vector<std::vector<std::string>> rows = {{"key", "value"}};
  const Json all = config_to_json(config);
  for (const auto& [key, value] : all.as_object()) {
    rows.push_back({key, plain(value)});
  }
  report.table("<<", rows);
  write_file_atomically(join_path(directory, "report.html"), report.finish());
}

}  // namespace graft::train
