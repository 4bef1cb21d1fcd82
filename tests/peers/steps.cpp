// graft-steps: a few AdamW steps on given batches, for tests/peers/adapters.py. Not installed.
//
// usage: graft-steps MODEL BATCHES SETTINGS OUT
//   BATCHES   input_ids and labels, I64 [steps * rows, T]; -100: not trained on; not shifted.
//             begin.NAME: where the trained tensors begin, in place of their own beginning
//   SETTINGS  JSON: steps, learning_rate, weight_decay, max_grad_norm, and of the adapter r, alpha,
//             rslora, dora, init, b_lr_ratio, targets, saved, rank_pattern, alpha_pattern,
//             new_tokens (for each what its row begins as the mean of), nf4 (the base in 4 bits)
//   OUT       begin.NAME and end.NAME of everything trained, losses [steps], and with nf4
//             base.NAME of the linears' decoded weights
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "tests/peers/batches.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/new_tokens.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> texts;
  for (const Json& item : list.as_array()) texts.push_back(item.as_string());
  return texts;
}

std::vector<std::vector<int32_t>> pieces_of(const Json& tokens) {
  std::vector<std::vector<int32_t>> pieces;
  for (const Json& token : tokens.as_array()) {
    pieces.emplace_back();
    for (const Json& id : token.as_array()) {
      pieces.back().push_back(static_cast<int32_t>(id.as_int()));
    }
  }
  return pieces;
}

LoraSettings read_settings(const Json& json) {
  LoraSettings settings;
  settings.rank = json.at("r").as_int();
  settings.alpha = json.at("alpha").as_double();
  settings.rslora = json.at("rslora").as_bool();
  settings.dora = json.at("dora").as_bool();
  settings.init = json.at("init").as_string();
  settings.loftq_iter = json.at("loftq_iter").as_int();
  settings.b_lr_ratio = json.at("b_lr_ratio").as_double();
  settings.targets = texts(json.at("targets"));
  settings.saved = texts(json.at("saved"));
  for (const auto& [pattern, rank] : json.at("rank_pattern").as_object()) {
    settings.rank_pattern.emplace_back(pattern, rank.as_int());
  }
  for (const auto& [pattern, alpha] : json.at("alpha_pattern").as_object()) {
    settings.alpha_pattern.emplace_back(pattern, alpha.as_double());
  }
  return settings;
}

void take_beginnings(const SafetensorsFile& file, Model& model) {
  for (const Parameter& parameter : model.trained) {
    const TensorInfo* const info = file.find("begin." + parameter.name);
    if (info == nullptr) continue;
    if (info->dtype != DType::kF32 || info->count() != parameter.value.numel()) {
      fail(ExitCode::kData, "expected F32 of the parameter's size",
           file.path() + ": " + info->name);
    }
    const auto count = static_cast<size_t>(info->count());
    file.read(*info, 0, std::as_writable_bytes(std::span(f32(parameter.value), count)));
  }
  refresh_trained(model);
}

int run(const std::string& directory,
        const std::string& batches_path,
        const Json& json,
        const std::string& out) {
  ModelConfig config = read_model_config(directory);
  if (json.at("new_tokens").size() > 0) {
    add_tokens(config, config.vocab_size, pieces_of(json.at("new_tokens")));
  }
  const bool nf4 = json.at("nf4").as_bool();
  const auto model = load_model(config, directory, nf4 ? Precision::kNf4 : Precision::kFull);
  add_lora(*model, read_settings(json), 1, directory);
  const SafetensorsFile file(batches_path);
  take_beginnings(file, *model);
  std::vector<TensorBytes> tensors;
  std::vector<at::Tensor> begun;
  for (const Parameter& parameter : model->trained) begun.push_back(parameter.value.clone());
  OptimizerSettings settings;
  settings.weight_decay = json.at("weight_decay").as_double();
  settings.max_grad_norm = json.at("max_grad_norm").as_double();
  AdamW optimizer(model->trained);
  std::vector<float> losses;
  for (const Batch& batch : test::read_batches(file, json.at("steps").as_int())) {
    Decoder decoder(*model, StepPlan::of(*model, batch.tokens(), Keep::kForBackward));
    optimizer.zero_gradients();
    const float* residual = decoder.forward(batch, 0);
    const double scale = 1 / batch.weight_sum;
    const HeadResult head =
        decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
    decoder.backward(batch, decoder.gradient_buffer());
    decoder.finish_gradients();
    losses.push_back(static_cast<float>(head.loss_sum * scale));
    optimizer.step(settings, json.at("learning_rate").as_double(), head.loss_sum * scale);
    refresh_trained(*model);
  }
  const auto count = static_cast<int64_t>(losses.size());
  tensors.push_back({{"losses", DType::kF32, {count}}, std::as_bytes(std::span(losses))});
  for (size_t i = 0; i < begun.size(); ++i) {
    tensors.push_back(test::bytes_of("begin." + model->trained[i].name, begun[i]));
    tensors.push_back(test::bytes_of("end." + model->trained[i].name, model->trained[i].value));
  }
  std::vector<at::Tensor> decoded;
  for (const Linear* const linear : model->linears()) {
    if (!nf4) break;
    decoded.push_back(weight_of(*linear));
    tensors.push_back(test::bytes_of("base." + linear->name + ".weight", decoded.back()));
  }
  write_safetensors(out, std::move(tensors));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_main([&] {
    if (argc != 5) fail(ExitCode::kUsage, "usage: graft-steps MODEL BATCHES SETTINGS OUT");
    return run(argv[1], argv[2], parse_json(argv[3], "settings"), argv[4]);
  });
}
