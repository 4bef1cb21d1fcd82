#include "data/curate/layout.h"

#include "core/error.h"
#include "data/records/scan.h"

namespace graft::data {
namespace {

constexpr std::string_view kFormat = "graft-layout";
constexpr int64_t kVersion = 1;

// One past the token at `at`: a string, one structural character, or a scalar.
size_t token_end(std::string_view text, size_t at) {
  const char c = text[at];
  if (c == '"') {
    const size_t end = json_string_end(text, at);
    return end == std::string_view::npos ? text.size() : end;
  }
  if (c == '{' || c == '}' || c == '[' || c == ']' || c == ',' || c == ':') {
    return at + 1;
  }
  while (at < text.size() && !is_json_space(text[at]) &&
         std::string_view("{}[],:\"").find(text[at]) == std::string_view::npos) {
    ++at;
  }
  return at;
}

}  // namespace

std::string fold_json(std::string_view raw) {
  std::string out;
  out.reserve(raw.size());
  for (size_t at = skip_json_space(raw, 0); at < raw.size(); at = skip_json_space(raw, at)) {
    const size_t end = token_end(raw, at);
    out += raw.substr(at, end - at);
    at = end;
  }
  return out;
}

std::string json_template(std::string_view raw) {
  std::string shape;
  for (size_t at = 0; at < raw.size();) {
    const size_t token = skip_json_space(raw, at);
    shape += raw.substr(at, token - at);
    if (token >= raw.size()) {
      break;
    }
    shape += 'x';
    at = token_end(raw, token);
  }
  return shape;
}

std::string unfold_json(std::string_view folded, std::string_view shape) {
  std::string out;
  out.reserve(folded.size() + shape.size());
  size_t at = 0;
  for (const char c : shape) {
    if (c != 'x') {
      out += c;
      continue;
    }
    if (at >= folded.size()) {
      fail(ExitCode::kData, "a folded item has fewer tokens than its template", "layout.json",
           "the outputs were changed after they were written; run the command again");
    }
    const size_t end = token_end(folded, at);
    out += folded.substr(at, end - at);
    at = end;
  }
  if (at != folded.size()) {
    fail(ExitCode::kData, "a folded item has more tokens than its template", "layout.json",
         "the outputs were changed after they were written; run the command again");
  }
  return out;
}

void RunList::add(std::string_view value) {
  if (!runs_.empty() && values_[runs_.back().value] == value) {
    ++runs_.back().count;
    return;
  }
  auto found = index_.find(value);
  if (found == index_.end()) {
    found = index_.emplace(std::string(value), values_.size()).first;
    values_.emplace_back(value);
  }
  runs_.push_back({found->second, 1});
}

Json RunList::json() const {
  Json values = Json::array();
  for (const std::string& value : values_) {
    values.push_back(value);
  }
  Json runs = Json::array();
  for (const Run& run : runs_) {
    runs.push_back(static_cast<int64_t>(run.value));
    runs.push_back(run.count);
  }
  return Json::object({{"values", std::move(values)}, {"runs", std::move(runs)}});
}

RunList RunList::from_json(const Json& json) {
  RunList list;
  for (const Json& value : json.at("values").as_array()) {
    list.values_.push_back(value.as_string());
  }
  const Json::Array& runs = json.at("runs").as_array();
  for (size_t i = 0; i + 1 < runs.size(); i += 2) {
    const int64_t value = runs[i].as_int();
    const int64_t count = runs[i + 1].as_int();
    if (value < 0 || value >= static_cast<int64_t>(list.values_.size()) || count < 1) {
      fail(ExitCode::kData, "a run of the layout is out of range", "layout.json",
           "run the command that wrote it again");
    }
    list.runs_.push_back({static_cast<size_t>(value), count});
  }
  return list;
}

const std::string& RunList::next() {
  if (at_end()) {
    fail(ExitCode::kData, "the layout ends before the items do", "layout.json",
         "run the command that wrote it again");
  }
  const Run& run = runs_[run_];
  if (++used_ == run.count) {
    ++run_;
    used_ = 0;
  }
  return values_[run.value];
}

Json Layout::json() const {
  Json list = Json::array();
  for (const File& file : files) {
    list.push_back(Json::object({{"name", file.name},
                                 {"bytes", file.bytes},
                                 {"sha256", file.sha256},
                                 {"items", file.items}}));
  }
  return Json::object({{"format", kFormat},
                       {"version", kVersion},
                       {"files", std::move(list)},
                       {"gaps", gaps.json()},
                       {"places", places.json()},
                       {"templates", templates.json()}});
}

Layout Layout::from_json(const Json& json) {
  if (json.at("format").as_string() != kFormat || json.at("version").as_int() != kVersion) {
    fail(ExitCode::kData, "not a layout of this version of graft", "layout.json",
         "use the graft that wrote it, or run the command again");
  }
  Layout layout;
  for (const Json& file : json.at("files").as_array()) {
    layout.files.push_back({file.at("name").as_string(), file.at("bytes").as_int(),
                            file.at("sha256").as_string(), file.at("items").as_int()});
  }
  layout.gaps = RunList::from_json(json.at("gaps"));
  layout.places = RunList::from_json(json.at("places"));
  layout.templates = RunList::from_json(json.at("templates"));
  return layout;
}

}  // namespace graft::data
