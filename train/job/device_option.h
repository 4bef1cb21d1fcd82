// --device of the commands that train.
#pragma once

#include "core/args.h"
#include "core/error.h"
#include "train/engine/device.h"

namespace graft::train {

constexpr Option kDeviceOption = {
    "--device", "auto|cpu|emu", "auto",
    "emu: the CUDA kernels, emulated on the processor, which give its "
    "result to the bit and take far longer; auto: cpu"};

// Errors: kUsage.
inline Device device_of(const Args& args) {
  const std::string name = args.text("--device");
  if (name == "auto" || name == "cpu") return {};
  if (name == "emu") return {GRAFT_EMU};
  constexpr std::string_view kKnown[] = {"auto", "cpu", "emu"};
  fail(ExitCode::kUsage, unknown_name("device", name, kKnown), "--device");
}

}  // namespace graft::train
