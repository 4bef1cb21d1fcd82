// --device of the commands that train.
#pragma once

#include "core/args.h"
#include "core/error.h"
#include "kernels/memory.h"
#include "train/engine/device.h"

namespace graft::train {

constexpr Option kDeviceOption = {
    "--device", "auto|cpu|cuda|emu", "auto",
    "cuda: the first GPU; emu: its kernels, emulated on the processor, which take far longer; "
    "auto: cuda where there is a GPU, else cpu"};

// Whether kernels run on a GPU here.
inline bool has_gpu() {
  char name[256];
  double speed = 0;
  return graft_device_describe(GRAFT_CUDA, name, sizeof name, &speed) == GRAFT_OK;
}

// Errors: kUsage; kDevice for cuda where no GPU can be used, with the reason.
inline Device device_of(const Args& args) {
  const std::string name = args.text("--device");
  if (name == "cpu") return {};
  if (name == "emu") return {GRAFT_EMU};
  if (name == "auto") return has_gpu() ? Device{GRAFT_CUDA} : Device{};
  if (name == "cuda") {
    if (has_gpu()) return {GRAFT_CUDA};
    fail(ExitCode::kDevice, graft_last_error(), "--device cuda",
         "leave out --device to train on the processor");
  }
  constexpr std::string_view kKnown[] = {"auto", "cpu", "cuda", "emu"};
  fail(ExitCode::kUsage, unknown_name("device", name, kKnown), "--device");
}

}  // namespace graft::train
