// The files of a run: all of them appear together, or none does.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/curate/clean.h"
#include "data/records/interrupt.h"

namespace graft::data {

// A folder of outputs. Files are written and synced in a staging folder inside it; commit() moves
// them into place, the manifest last. Without commit, when anything fails (a full disk) or the
// process is told to stop (Ctrl-C), the folder stays as it was.
class OutputFolder {
 public:
  // Errors: kUsage when the folder holds files but no manifest of graft (`manifest.json` with
  // "format": "graft-data"), or when another process writes to it; kIo.
  explicit OutputFolder(const std::string& path);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  // Opens an output; the reference holds until commit.
  AtomicFile& open(std::string_view name);
  void write(std::string_view name, std::string_view content);
  // Adds {"outputs": {name: {sha256, bytes}}} to the manifest and moves everything into place.
  // Files that the folder's earlier manifest lists and this run did not write are removed.
  void commit(Json manifest);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::string stage_;
  bool made_ = false;  // the folder did not exist before
  bool committed_ = false;
  std::vector<std::unique_ptr<RemoveIfStopped>> leftovers_;
  std::unique_ptr<DirectoryLock> lock_;
  std::vector<std::pair<std::string, std::unique_ptr<AtomicFile>>> files_;
};

// Names of the two files of items: clean.jsonl and quarantine.jsonl, or kept.jsonl and
// removed.jsonl.
struct ItemFileNames {
  std::string_view kept;
  std::string_view removed;
};

struct RunDescription {
  std::string_view command;  // "clean" or "dedup"
  ItemFileNames names;
  Json settings;  // what the result depends on
  std::string report_html;
};

// Writes kept and removed items, edits.jsonl, layout.json, report.html and the manifest.
// `extra` (name, content) are further files of the command.
void write_outputs(const RecordSource& source,
                   const CleanResult& result,
                   const CleanOptions& options,
                   const RunDescription& run,
                   const std::vector<std::pair<std::string, std::string>>& extra,
                   const std::string& folder);

// One line of quarantine.jsonl: {"file","line","index","raw"|"raw_base64","reasons",
// "duplicate_of","jaccard"}.
std::string quarantine_line(const RecordSource& source, const CleanResult& result, size_t item);

// The manifest's text for the inputs: [{"name","bytes","sha256","items"}].
Json describe_inputs(const RecordSource& source, const CleanResult& result);

// Rebuilds the inputs of a run from its folder, byte for byte; `out` is the file, or for a run of
// several inputs the folder to write them to under their names (a name that comes twice is
// preceded by its number, "2-train.jsonl"). Returns the paths. Nothing is written unless every
// digest is right. Errors: kData, kIo.
std::vector<std::string> restore(const std::string& folder, const std::string& out);

std::string base64_encode(std::string_view bytes);
std::string base64_decode(std::string_view text, std::string_view where);  // Errors: kData

}  // namespace graft::data
