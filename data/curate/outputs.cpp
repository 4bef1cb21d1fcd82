#include "data/curate/outputs.h"

#include <algorithm>
#include <set>

#include <unistd.h>

#include "core/error.h"
#include "core/hash.h"
#include "data/curate/layout.h"

namespace graft::data {
namespace {

constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kFormat = "graft-data";

bool is_own_detail(const std::string& name) {
  return name == ".lock" || name == "stopped" || name.rfind(".stage-", 0) == 0;
}

// Names that the folder's manifest lists. Errors: kUsage when the folder is not graft's.
std::vector<std::string> own_files(const std::string& path) {
  std::vector<std::string> names = list_directory(path);
  names.erase(std::remove_if(names.begin(), names.end(), is_own_detail), names.end());
  if (names.empty()) {
    return {};
  }
  const std::string manifest = join_path(path, kManifest);
  bool own = false;
  std::vector<std::string> listed;
  if (file_exists(manifest)) {
    try {
      const Json json = read_json_file(manifest);
      const Json* format = json.find("format");
      own = format != nullptr && format->is_string() && format->as_string() == kFormat;
      if (const Json* outputs = json.find("outputs"); own && outputs != nullptr) {
        for (const auto& [name, value] : outputs->as_object()) {
          if (base_name(name) == name) {
            listed.push_back(name);
          }
        }
      }
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) {
        throw;
      }
    }
  }
  if (!own) {
    fail(ExitCode::kUsage, "the output folder holds files that graft did not write", path,
         "give --out a new folder, or one of an earlier run");
  }
  return listed;
}

std::string item_file(const RecordSource& source, const RawItem& item) {
  return base_name(source.files()[static_cast<size_t>(item.file)]);
}

void append_number(std::string& out, double value) {
  out += dump_json(Json(value));
}

void append_place(std::string& out, const RecordSource& source, const RawItem& item) {
  out += "{\"file\":";
  append_json_string(out, item_file(source, item));
  out += ",\"line\":" + std::to_string(item.line) + ",\"index\":" + std::to_string(item.index);
}

// `valid`: the bytes are known to be UTF-8.
void append_raw(std::string& out, std::string_view raw, bool valid) {
  if (valid || is_utf8(raw)) {
    out += ",\"raw\":";
    append_json_string(out, raw);
  } else {
    out += ",\"raw_base64\":\"" + base64_encode(raw) + "\"";
  }
}

void append_reason(std::string& out, const Verdict& verdict) {
  out += "{\"rule\":";
  append_json_string(out, verdict.rule);
  out += ",\"value\":";
  append_number(out, verdict.value);
  out += ",\"threshold\":";
  append_number(out, verdict.threshold);
  out += ",\"span\":";
  if (verdict.span.message < 0) {
    out += "null";
  } else {
    out += "[" + std::to_string(verdict.span.begin) + "," + std::to_string(verdict.span.end) +
           "],\"message\":" + std::to_string(verdict.span.message);
  }
  if (!verdict.detail.empty()) {
    out += ",\"detail\":";
    append_json_string(out, verdict.detail);
  }
  out += "}";
}

void append_reasons(std::string& out, const ItemResult& result, Action action) {
  out += ",\"reasons\":[";
  bool first = true;
  for (const Verdict& verdict : result.verdicts) {
    if (verdict.action == action) {
      out += first ? "" : ",";
      append_reason(out, verdict);
      first = false;
    }
  }
  out += "]";
}

bool is_one_line(std::string_view raw) {
  // Two searches for one byte are vectorised; one for either of two is not.
  return raw.find('\n') == std::string_view::npos && raw.find('\r') == std::string_view::npos;
}

// Writes the items and notes on the way what restore will need.
class ItemWriter {
 public:
  ItemWriter(const RecordSource& source,
             const CleanResult& result,
             OutputFolder& folder,
             const ItemFileNames& names)
      : source_(source),
        result_(result),
        kept_(folder.open(names.kept)),
        removed_(folder.open(names.removed)),
        edits_(folder.open("edits.jsonl")) {}

  Layout write_all() {
    size_t item = 0;
    for (size_t f = 0; f < source_.files().size(); ++f) {
      const std::string_view whole = source_.file_bytes(static_cast<int>(f));
      size_t at = 0;
      int64_t count = 0;
      for (; item < result_.items.size() && result_.items[item].file == static_cast<int>(f);
           ++item, ++count) {
        const auto begin = static_cast<size_t>(result_.items[item].begin);
        layout_.gaps.add(whole.substr(at, begin - at));
        at = static_cast<size_t>(result_.items[item].end);
        write_item(item);
      }
      layout_.gaps.add(whole.substr(at));
      layout_.files.push_back({base_name(source_.files()[f]), static_cast<int64_t>(whole.size()),
                               sha256_hex(whole), count});
    }
    return std::move(layout_);
  }

 private:
  void write_item(size_t i) {
    const RawItem& item = result_.items[i];
    const ItemResult& result = result_.results[i];
    Place place = Place::kVerbatim;
    if (result.fate == Fate::kQuarantined) {
      place = Place::kRemoved;
      removed_.write(quarantine_line(source_, result_, i));
    } else if (result.fate == Fate::kEdited) {
      place = Place::kEdited;
      write_edit(item, result);
      write_line(fold_if_needed(result.edited));
    } else if (is_one_line(item.raw) || !result.readable) {
      write_line(item.raw);
    } else {
      place = Place::kFolded;
      layout_.templates.add(json_template(item.raw));
      write_line(fold_json(item.raw));
    }
    const char digit = static_cast<char>('0' + static_cast<int>(place));
    layout_.places.add(std::string_view(&digit, 1));
  }

  static std::string fold_if_needed(const std::string& text) {
    return is_one_line(text) ? text : fold_json(text);
  }

  void write_edit(const RawItem& item, const ItemResult& result) {
    std::string line;
    append_place(line, source_, item);
    append_raw(line, item.raw, result.readable);
    line += ",\"after\":";
    append_json_string(line, fold_if_needed(result.edited));
    append_reasons(line, result, Action::kEdit);
    line += "}\n";
    edits_.write(line);
  }

  void write_line(std::string_view text) {
    kept_.write(text);
    kept_.write("\n");
  }

  const RecordSource& source_;
  const CleanResult& result_;
  AtomicFile& kept_;
  AtomicFile& removed_;
  AtomicFile& edits_;
  Layout layout_;
};

Json counts_json(const CleanResult& result) {
  int64_t removed = 0;
  int64_t edited = 0;
  for (const ItemResult& item : result.results) {
    removed += item.fate == Fate::kQuarantined ? 1 : 0;
    edited += item.fate == Fate::kEdited ? 1 : 0;
  }
  const auto total = static_cast<int64_t>(result.items.size());
  return Json::object(
      {{"items", total}, {"kept", total - removed}, {"removed", removed}, {"edited", edited}});
}

Json rules_json(const CleanResult& result, const CleanOptions& options) {
  Json list = Json::array();
  for (const RuleCount& count : count_by_rule(result, options)) {
    list.push_back(Json::object({{"rule", count.rule->name},
                                 {"version", count.rule->version},
                                 {"action", action_name(count.setting.action)},
                                 {"threshold", count.setting.threshold},
                                 {"rows", count.rows}}));
  }
  return list;
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path) : path_(path) {
  made_ = !directory_exists(path);
  if (!made_) {
    own_files(path);
  }
  const auto leaves = [&](const std::string& leftover, Leftover kind) {
    leftovers_.push_back(std::make_unique<RemoveIfStopped>(leftover, kind));
  };
  if (made_) {
    leaves(path, Leftover::kEmptyFolder);
    leaves(join_path(path, ".lock"), Leftover::kFile);
  }
  make_directories(path);
  if (::access(path.c_str(), W_OK | X_OK) != 0) {
    fail_io("cannot write to the output folder", path,
            "choose another place or correct its permissions");
  }
  lock_ = std::make_unique<DirectoryLock>(path);
  stage_ = join_path(path, ".stage-" + std::to_string(getpid()));
  remove_tree(stage_);
  leaves(stage_, Leftover::kFolder);
  make_directories(stage_);
}

OutputFolder::~OutputFolder() {
  files_.clear();
  lock_.reset();
  try {
    remove_tree(stage_);
    if (made_ && !committed_) {
      remove_tree(path_);
    }
  } catch (const Error&) {
    // What is left is only a staging folder, which the next run ignores.
    committed_ = false;
  }
}

AtomicFile& OutputFolder::open(std::string_view name) {
  files_.emplace_back(std::string(name), std::make_unique<AtomicFile>(join_path(stage_, name)));
  return *files_.back().second;
}

void OutputFolder::write(std::string_view name, std::string_view content) {
  open(name).write(content);
}

void OutputFolder::commit(Json manifest) {
  Json outputs = Json::object();
  for (auto& [name, file] : files_) {
    const int64_t bytes = file->bytes_written();
    outputs.set(name, Json::object({{"sha256", file->commit()}, {"bytes", bytes}}));
  }
  manifest.set("outputs", std::move(outputs));
  write_file_atomically(join_path(stage_, kManifest), dump_json(manifest, {.indent = 2}) + "\n");
  // From here on nothing needs space: only names move, all of them or none.
  const HoldSignals hold;
  std::set<std::string> stale;
  for (const std::string& name : own_files(path_)) {
    stale.insert(name);
  }
  for (const auto& [name, file] : files_) {
    stale.erase(name);
    rename_path(join_path(stage_, name), join_path(path_, name));
  }
  rename_path(join_path(stage_, kManifest), join_path(path_, kManifest));
  for (const std::string& name : stale) {
    remove_file(join_path(path_, name));
  }
  committed_ = true;
  leftovers_.clear();
  remove_tree(stage_);
}

std::string quarantine_line(const RecordSource& source, const CleanResult& result, size_t i) {
  const RawItem& item = result.items[i];
  const ItemResult& verdict = result.results[i];
  std::string line;
  line.reserve(item.raw.size() + 256);
  append_place(line, source, item);
  append_raw(line, item.raw, verdict.readable);
  append_reasons(line, verdict, Action::kQuarantine);
  line += ",\"duplicate_of\":";
  if (verdict.duplicate_of < 0) {
    line += "null,\"jaccard\":null}\n";
    return line;
  }
  const auto kept = static_cast<size_t>(verdict.duplicate_of);
  append_place(line, source, result.items[kept]);
  if (!result.results[kept].id.empty()) {
    line += ",\"id\":";
    append_json_string(line, result.results[kept].id);
  }
  line += "},\"jaccard\":";
  append_number(line, verdict.similarity);
  line += "}\n";
  return line;
}

Json describe_inputs(const RecordSource& source, const CleanResult& result) {
  Json list = Json::array();
  for (size_t f = 0; f < source.files().size(); ++f) {
    const std::string_view bytes = source.file_bytes(static_cast<int>(f));
    const int64_t items =
        std::count_if(result.items.begin(), result.items.end(),
                      [&](const RawItem& item) { return item.file == static_cast<int>(f); });
    list.push_back(Json::object({{"name", base_name(source.files()[f])},
                                 {"bytes", static_cast<int64_t>(bytes.size())},
                                 {"sha256", sha256_hex(bytes)},
                                 {"items", items}}));
  }
  return list;
}

void write_outputs(const RecordSource& source,
                   const CleanResult& result,
                   const CleanOptions& options,
                   const RunDescription& run,
                   const std::vector<std::pair<std::string, std::string>>& extra,
                   const std::string& folder_path) {
  OutputFolder folder(folder_path);
  ItemWriter writer(source, result, folder, run.names);
  const Layout layout = writer.write_all();
  folder.write("layout.json", dump_json(layout.json()) + "\n");
  folder.write("report.html", run.report_html);
  for (const auto& [name, content] : extra) {
    folder.write(name, content);
  }
  Json inputs = Json::array();
  for (const Layout::File& file : layout.files) {
    inputs.push_back(Json::object({{"name", file.name},
                                   {"bytes", file.bytes},
                                   {"sha256", file.sha256},
                                   {"items", file.items}}));
  }
  Json stops = Json::array();
  for (const GuardStop& stop : result.stops) {
    stops.push_back(stop.what);
  }
  folder.commit(Json::object({{"format", kFormat},
                              {"version", 1},
                              {"graft", GRAFT_VERSION},
                              {"command", run.command},
                              {"inputs", std::move(inputs)},
                              {"settings", run.settings},
                              {"counts", counts_json(result)},
                              {"rules", rules_json(result, options)},
                              {"guard_rails_passed", std::move(stops)},
                              {"kept", run.names.kept},
                              {"removed", run.names.removed}}));
}

}  // namespace graft::data
