// What a finished run leaves for others: PEFT files or a Hugging Face directory, proven by
// reloading.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "data/text/token_store.h"
#include "train/engine/decoder.h"
#include "train/job/config.h"
#include "train/model/placed.h"

namespace graft::train {

// Writes <output_dir>/adapter (lora, qlora) or <output_dir>/model (none): to a temporary directory
// first, then renamed. With new tokens the tokenizer of `text_directory` goes with it. An adapter
// is read back from its files and its logits on the first documents of `store` are compared with
// the trained ones: they must be equal to the bit. Where the adapter began by changing the base
// (pissa) they must be within 1e-3 of the largest. Where it changed 4-bit weights, those go to
// <output_dir>/base, a checkpoint that is read back likewise. Returns {"directory", "files": {name:
// bytes}, "sha256", "reload": "logits equal"} and, of a base, "base": {"directory", "bytes"}.
// Errors: kIo; kBug when what is read back differs.
// `placed` has the model on the decoder's device, and on the host afterwards.
Json export_result(Model& model,
                   PlacedModel& placed,
                   const TrainConfig& config,
                   const std::string& text_directory,
                   Decoder& decoder,
                   const data::TokenStore& store,
                   const std::string& output_dir);

// What export_result wrote as a table: a title row, then paths and sizes.
std::vector<std::vector<std::string>> exported_files(const Json& exported);

}  // namespace graft::train
