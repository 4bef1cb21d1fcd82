// Rebuilding the inputs of a run.
#include <algorithm>
#include <array>
#include <set>

#include <unistd.h>

#include "core/error.h"
#include "core/hash.h"
#include "data/curate/layout.h"
#include "data/curate/outputs.h"

namespace graft::data {
namespace {

[[noreturn]] void damaged(const std::string& what, const std::string& where) {
  fail(ExitCode::kData, what, where,
       "the outputs were changed after they were written; run the command again");
}

// The lines of one output, in order.
class Lines {
 public:
  explicit Lines(const std::string& path) : map_(path) {}
  std::string_view next() {
    const std::string_view text = map_.text();
    const size_t end = text.find('\n', at_);
    if (end == std::string_view::npos) {
      damaged("the file ends before its items do", map_.path());
    }
    const std::string_view line = text.substr(at_, end - at_);
    at_ = end + 1;
    ++line_;
    return line;
  }
  // The original bytes that a line of the removed items or of the edits holds.
  std::string next_raw() {
    const std::string_view line = next();
    const std::string where = map_.path() + ":" + std::to_string(line_);
    const Json json = parse_json(line, where);
    if (const Json* raw = json.find("raw"); raw != nullptr && raw->is_string()) {
      return raw->as_string();
    }
    if (const Json* raw = json.find("raw_base64"); raw != nullptr && raw->is_string()) {
      return base64_decode(raw->as_string(), where);
    }
    damaged("the line has neither raw nor raw_base64", where);
  }
  void expect_end() const {
    if (at_ != map_.text().size()) {
      damaged("the file holds more lines than items", map_.path());
    }
  }

 private:
  MappedFile map_;
  size_t at_ = 0;
  int64_t line_ = 0;
};

struct Sources {
  Lines kept;
  Lines removed;
  Lines edits;
};

std::string next_item(Layout& layout, Sources& sources) {
  const std::string& digit = layout.places.next();
  const int place = digit.size() == 1 ? digit[0] - '0' : -1;
  switch (place) {
    case static_cast<int>(Place::kVerbatim):
      return std::string(sources.kept.next());
    case static_cast<int>(Place::kRemoved):
      return sources.removed.next_raw();
    case static_cast<int>(Place::kEdited):
      sources.kept.next();
      return sources.edits.next_raw();
    case static_cast<int>(Place::kFolded):
      return unfold_json(sources.kept.next(), layout.templates.next());
    default:
      damaged("unknown place of an item", "layout.json");
  }
}

void restore_file(const Layout::File& file, Layout& layout, Sources& sources, AtomicFile& out) {
  Sha256 digest;
  const auto put = [&](std::string_view text) {
    digest.update(text);
    out.write(text);
  };
  for (int64_t i = 0; i < file.items; ++i) {
    put(layout.gaps.next());
    put(next_item(layout, sources));
  }
  put(layout.gaps.next());
  const std::string found = digest.hex_digest();
  if (found != file.sha256) {
    damaged("the rebuilt file has SHA-256 " + found + ", the input had " + file.sha256, file.name);
  }
}

std::vector<std::string> output_paths(const Layout& layout, const std::string& out) {
  if (layout.files.size() == 1) {
    return {directory_exists(out) ? join_path(out, layout.files[0].name) : out};
  }
  make_directories(out);
  std::vector<std::string> paths;
  std::set<std::string> taken;
  for (size_t f = 0; f < layout.files.size(); ++f) {
    const std::string& name = layout.files[f].name;
    const bool fresh = taken.insert(name).second;
    paths.push_back(join_path(out, fresh ? name : std::to_string(f + 1) + "-" + name));
  }
  return paths;
}

}  // namespace

std::vector<std::string> restore(const std::string& folder, const std::string& out) {
  const std::string manifest_path = join_path(folder, "manifest.json");
  if (!file_exists(manifest_path)) {
    fail(ExitCode::kUsage, "no manifest.json in the folder", folder,
         "give the --out folder of `graft data clean` or `graft data dedup`");
  }
  const Json manifest = read_json_file(manifest_path);
  const std::string layout_path = join_path(folder, "layout.json");
  Layout layout = Layout::from_json(parse_json(read_file(layout_path), layout_path));
  Sources sources{Lines(join_path(folder, manifest.at("kept").as_string())),
                  Lines(join_path(folder, manifest.at("removed").as_string())),
                  Lines(join_path(folder, "edits.jsonl"))};
  const std::vector<std::string> paths = output_paths(layout, out);
  std::vector<std::unique_ptr<AtomicFile>> files;
  std::vector<std::unique_ptr<RemoveIfStopped>> leftovers;
  for (size_t f = 0; f < paths.size(); ++f) {
    if (layout.files[f].name != base_name(layout.files[f].name)) {
      damaged("a file name holds a path", layout_path);
    }
    leftovers.push_back(std::make_unique<RemoveIfStopped>(
        paths[f] + ".tmp-" + std::to_string(getpid()), Leftover::kFile));
    files.push_back(std::make_unique<AtomicFile>(paths[f]));
    restore_file(layout.files[f], layout, sources, *files.back());
  }
  sources.kept.expect_end();
  sources.removed.expect_end();
  sources.edits.expect_end();
  for (const std::unique_ptr<AtomicFile>& file : files) {
    file->commit();
  }
  return paths;
}

namespace {

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace

std::string base64_encode(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) {
      group = group << 8 | (k < left ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (size_t k = 0; k < 4; ++k) {
      out += k <= left ? kAlphabet[(group >> (18 - 6 * k)) & 63] : '=';
    }
  }
  return out;
}

std::string base64_decode(std::string_view text, std::string_view where) {
  std::array<int, 256> value{};
  value.fill(-1);
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    value[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int>(i);
  }
  std::string out;
  uint32_t group = 0;
  int bits = 0;
  while (!text.empty() && text.back() == '=') {
    text.remove_suffix(1);
  }
  for (const char c : text) {
    const int six = value[static_cast<unsigned char>(c)];
    if (six < 0) {
      damaged("raw_base64 is not base64", std::string(where));
    }
    group = group << 6 | static_cast<uint32_t>(six);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out += static_cast<char>(group >> bits & 0xFF);
    }
  }
  return out;
}

}  // namespace graft::data
