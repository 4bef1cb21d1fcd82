// Quantized weights kept from one start to the next, and mapped there.
//
// An entry is named by what it was made of: the content of the weight files, the quantization's
// settings and the model's linears. So a changed checkpoint has another entry, and two copies of
// one share theirs. The content of a file is read again only when its size, time or inode has
// changed.
#pragma once

#include <cstdint>
#include <string>

#include "core/safetensors.h"
#include "train/model/model.h"

namespace graft::train {

struct QuantizedCache {
  std::string directory;  // "" = off
  // Models with fewer weights in their linears are quantized anew: that takes less than a tenth of
  // a second.
  int64_t least_weights = int64_t{1} << 27;

  // $XDG_CACHE_HOME/graft, or ~/.cache/graft; off where neither variable is set.
  static QuantizedCache in_home();
};

// Takes the 4-bit weights of every linear that quantizes from the cache: views of a mapping, whose
// digest was checked. False when the cache is off or has no such entry. An entry that cannot be
// read is reported in one line on stderr and counts as none.
bool load_quantized(const QuantizedCache& cache, const SafetensorsDirectory& files, Model& model);

// Keeps the model's 4-bit weights. Trouble (no space, no permission) is reported in one line on
// stderr and changes nothing else.
void keep_quantized(const QuantizedCache& cache,
                    const SafetensorsDirectory& files,
                    const Model& model);

}  // namespace graft::train
