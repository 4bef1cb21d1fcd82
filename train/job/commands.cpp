#include "train/job/commands.h"

#include <cstdio>

#include "core/error.h"
#include "core/progress.h"
#include "train/job/bench_step.h"
#include "train/job/check.h"
#include "train/job/compute.h"
#include "train/job/device_option.h"
#include "train/job/doctor.h"
#include "train/job/inference.h"
#include "train/job/memory.h"
#include "train/job/trainer.h"

namespace graft::train {
namespace {

int run_train(const Args& args) {
  TrainConfig config = read_train_config(args);
  run_on(config, device_of(args));
  const RunResult result = run_training(config, {args.text("--resume")});
  if (args.json()) {
    std::printf("%s\n", dump_json(result.summary).c_str());
  }
  return result.exit_code;
}

constexpr Option kModel = {"--model", "DIR", "", "Hugging Face directory of the base (required)"};
constexpr Option kAdapter = {"--adapter", "DIR", "", "PEFT directory of a LoRA adapter"};
constexpr Option k4Bit = {"--load-in-4bit", "", "", "quantize the linears to NF4 while loading"};
constexpr Option kNoCache = {"--no-quantized-cache", "", "",
                             "neither use nor keep 4-bit weights in $XDG_CACHE_HOME/graft"};
constexpr Option kCompute = compute_option("fp32");
constexpr Option kThreads = {"--threads", "N", "0", "CPU threads; 0 = every processor"};
constexpr Option kMaxNew = {"--max-new-tokens", "N", "128", "longest answer, in tokens"};

}  // namespace

std::vector<Command> train_commands() {
  std::vector<Command> commands = {
      {"train",
       "CONFIG.yaml [key=value …]",
       1,
       -1,
       "train an adapter or a whole model; the same command again resumes it",
       {{"--resume", "auto|none|DIR", "auto",
         "go on from the newest checkpoint of output_dir, start anew, or start from another "
         "run's"},
        kDeviceOption},
       {"graft train configs/qlora.yaml", "graft train run.yaml lora_r=8 output_dir=out/r8"},
       run_train},
      {"plan",
       "CONFIG.yaml [key=value …]",
       1,
       -1,
       "memory, work and time of a training run, before anything is loaded",
       {kDeviceOption},
       {"graft plan configs/qlora.yaml", "graft plan run.yaml max_memory=4GiB --json"},
       run_plan},
      {"check",
       "CONFIG.yaml [key=value …]",
       1,
       -1,
       "all that is wrong with a config, its data and its model, in one run; exit 1 where training "
       "would end with an error. Of weights names, shapes and types are read, no values",
       {},
       {"graft check configs/qlora.yaml", "graft check run.yaml datasets=[mine.jsonl] --json"},
       run_check},
      {"doctor",
       "[CONFIG.yaml [key=value …]]",
       0,
       -1,
       "this machine, and the engine's promises tried on a config's model, adapter and data; exit "
       "1 "
       "where one is broken",
       {{"--layers", "N", "0", "blocks of the model to try; 0 = as many as a minute or two allow"}},
       {"graft doctor", "graft doctor run.yaml", "graft doctor run.yaml --layers 2 --json"},
       run_doctor},
      {"eval",
       "[MORE FILES…]",
       0,
       -1,
       "loss, perplexity and token accuracy of records; exact match of generated answers",
       {kModel,
        kAdapter,
        k4Bit,
        kNoCache,
        kCompute,
        kDeviceOption,
        {"--data", "FILE", "", "records, JSONL or JSON (required)"},
        {"--compare-base", "", "", "the same without the adapter, side by side"},
        {"--generate", "", "", "answer every record greedily and compare with its last turn"},
        kMaxNew,
        {"--predictions", "FILE", "predictions.jsonl", "where --generate writes the answers"},
        kThreads},
       {"graft eval --model base --data eval.jsonl",
        "graft eval --model base --adapter out/run/adapter --load-in-4bit --data eval.jsonl "
        "--generate",
        "graft eval --model base --adapter out/run/adapter --compare-base --data a.jsonl b.jsonl"},
       run_eval},
      {"logits",
       "",
       0,
       0,
       "logits of given token ids: input_ids I64 [B, T] to logits F32 [B, T, V]",
       {kModel,
        kAdapter,
        k4Bit,
        kNoCache,
        kCompute,
        kDeviceOption,
        {"--ids", "FILE", "", "safetensors file with input_ids (required)"},
        {"--out", "FILE", "", "safetensors file to write (required)"},
        kThreads},
       {"graft logits --model base --ids ids.safetensors --out logits.safetensors"},
       run_logits},
      {"generate",
       "",
       0,
       0,
       "text from a model or adapter, streamed",
       {kModel,
        kAdapter,
        k4Bit,
        kNoCache,
        kCompute,
        kDeviceOption,
        {"--prompt", "TEXT", "", "continue this text"},
        {"--chat", "FILE", "", "answer a JSON list of messages through the chat template"},
        kMaxNew,
        {"--temperature", "T", "0", "0 = greedy"},
        {"--top-p", "P", "1", "sample from the smallest set with this probability"},
        {"--seed", "N", "0", "of the sampling"},
        kThreads},
       {"graft generate --model base --prompt \"Once upon a time\" --max-new-tokens 64",
        "graft generate --model base --adapter out/run/adapter --chat chat.json"},
       run_generate},
  };
  commands.push_back(bench_step_command());
  return commands;
}

}  // namespace graft::train
