// Checkpoints that are whole or absent, and the newest good one found again.
//
//   <output_dir>/checkpoints/step-00000120/{trained,optimizer}.safetensors state.json MANIFEST.json
//
// Written to a temporary directory, synced, renamed. MANIFEST.json holds bytes and SHA-256 of the
// others and is checked at load; a damaged checkpoint is renamed bad-step-… and the next older one
// is taken. At most `keep` good ones stay.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "core/json.h"
#include "train/engine/optimizer.h"
#include "train/model/model.h"

namespace graft::train {

// What a resume needs beside the tensors: everything else is a pure function of config and step.
struct Progressed {
  int64_t step = 0;            // optimizer steps behind us, skipped ones included
  int64_t skipped = 0;         // of them, steps skipped for gradients that were not finite
  int64_t trained_tokens = 0;  // supervised predictions so far
  int64_t metrics_bytes = 0;   // length of metrics.jsonl at this step
};

void save_checkpoint(const std::string& directory,
                     const Progressed& progressed,
                     const std::vector<Parameter>& parameters,
                     AdamW& optimizer,
                     int64_t keep);

// Loads the newest good checkpoint into parameters and optimizer; nullopt when there is none.
// `report` is called with a line for each damaged one. Errors: kIo, kData (shapes differ).
std::optional<Progressed> load_newest_checkpoint(const std::string& directory,
                                                 std::vector<Parameter>& parameters,
                                                 AdamW& optimizer,
                                                 const std::function<void(std::string)>& report);

}  // namespace graft::train
