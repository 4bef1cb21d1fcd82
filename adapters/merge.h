// An adapter folded into its base: W + scale * B * A, tile by tile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace graft::adapters {

// Onto which weights the adapter is added.
enum class MergeBase {
  kAuto,  // kDequant for a 4-bit model directory or an adapter whose file says that it was trained
          // on one (metadata "base_quantization"); kW16 otherwise
  kW16,   // the directory's own 16- or 32-bit weights
  kDequant,  // the decoded NF4 weights that QLoRA trained on: of the 4-bit directory, or of the
             // directory's weights quantized as `graft quantize` does
};
// "auto", "w16", "dequant". Errors: kUsage.
MergeBase parse_merge_base(std::string_view text);
std::string_view merge_base_name(MergeBase base);

struct MergeOptions {
  std::string model;
  std::string adapter;
  std::string out;
  MergeBase base = MergeBase::kAuto;
};

struct MergeReport {
  MergeBase base = MergeBase::kW16;  // the one that was used
  int64_t merged_tensors = 0;
  int64_t saved_tensors = 0;   // of modules_to_save: they replace the model's
  int64_t token_rows = 0;      // of trainable_token_indices, likewise
  int64_t new_rows = 0;        // that the model's vocabulary grew by
  bool own_tokenizer = false;  // it came from the adapter's directory
  int64_t copied_tensors = 0;
  int64_t bytes = 0;           // of the tensors written
  double relative_change = 0;  // |W' - W| / |W| over the merged weights, root of sums of squares
  std::string most_changed;    // the module with the largest of these
  double most_changed_value = 0;
  // With kW16 and an adapter that was trained on the 4-bit base: |W - decoded NF4(W)| / |W| over
  // all quantized weights, how far these weights are from the ones that the adapter was trained on.
  // 0 otherwise.
  double trained_base_distance = 0;
  double rounding_share = 0;  // |W' - (W + sBA)| / |sBA|: what rounding to the base's dtype loses
};

// Writes `out`, a plain Hugging Face directory. Where embeddings and head are tied and the adapter
// gives them different values, they are written apart and config.json says so. New tokens make
// embedding, head and vocab_size larger; the tokenizer is the adapter's where its directory has
// one. Each sum is float32 and is rounded once to the weight's dtype; the bytes do not depend on
// threads. Memory: the adapter and a tile of 4 MiB, and with kDequant on a 16-bit directory one
// packed matrix. Errors: kUsage (out exists, w16 asked of a 4-bit directory), kData (the adapter
// does not fit, values that are not finite), kIo.
MergeReport merge_adapter(const MergeOptions& options);

}  // namespace graft::adapters
