// cuDNN's attention (cuDNN 9, graphs of scaled dot product attention over packed documents), which
// is faster than LibTorch's on a Hopper GPU (docs/measurements). graft is built with it where its
// headers are (cmake/GraftCudnn.cmake).
//
// A graph is built for a number of documents and a length, both rounded up to powers of two, when a
// batch first needs it: documents that are not there are empty. The arrays of the documents' places
// are the only memory outside the arena.
#pragma once

#include "train/engine/flash.h"

namespace graft::train {

// nullptr, with the reason, where it cannot be had: built without it, no libcudnn, heads wider than
// 128. Where cuDNN has no such graph for this GPU (compute capability 8 and a fixed order), the first
// call is an Error: flash_agrees tells. Where `deterministic`, LibTorch's takes the batches
// for which cuDNN's fixed order would take too much memory, and has to be there.
std::unique_ptr<Flash> load_cudnn_flash(const Device& device,
                                        const FlashExtent& extent,
                                        bool deterministic,
                                        std::string* reason);

}  // namespace graft::train
