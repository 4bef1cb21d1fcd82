#include "kernels/cross_entropy.h"

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

using namespace graft::kernels;

extern "C" graft_status graft_cross_entropy(float* logits,
                                            const int32_t* labels,
                                            const float* weight,
                                            int64_t rows,
                                            int64_t vocab,
                                            float scale,
                                            float* row_loss,
                                            uint8_t* row_correct,
                                            graft_ce_mode mode,
                                            graft_device device,
                                            graft_stream stream) {
  constexpr const char* kName = "graft_cross_entropy";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"vocab", vocab, 1}})) {
    return status;
  }
  if (mode != GRAFT_CE_LOSS_ONLY && mode != GRAFT_CE_WITH_GRADIENT) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "mode is %d, expected 0 or 1", static_cast<int>(mode));
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"logits", logits}, {"labels", labels}, {"row_loss", row_loss}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    const bool with_gradient = mode == GRAFT_CE_WITH_GRADIENT;
    const CrossEntropyRows call{logits, labels,   weight,      vocab,
                                scale,  row_loss, row_correct, with_gradient};
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.cross_entropy(call, rows, stream);
    });
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (labels[row] < 0 || labels[row] >= vocab) {
      return fail(GRAFT_BAD_ARGUMENT, kName, "labels[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(row), labels[row], static_cast<long long>(vocab - 1));
    }
  }
  const Table& isa = table();
  // An exponential costs about as much as four additions.
  for_pieces(rows, 4, 4 * rows * vocab, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float gradient_scale = (weight != nullptr ? weight[row] : 1.0f) * scale;
      isa.cross_entropy_row(logits + row * vocab, labels[row], vocab,
                            mode == GRAFT_CE_WITH_GRADIENT ? &gradient_scale : nullptr,
                            row_loss + row, row_correct != nullptr ? row_correct + row : nullptr);
    }
  });
  return GRAFT_OK;
}
