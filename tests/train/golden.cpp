#include "tests/train/golden.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/progress.h"
#include "core/safetensors.h"
#include "kernels/rmsnorm.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/job/generate.h"
#include "train/model/weights.h"

namespace graft::test {
namespace {

using train::Batch;
using train::f32;

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  std::vector<float> values(static_cast<size_t>(info.count()));
  convert_to_f32(info.dtype, file.bytes(info), values.data(), info.count());
  return values;
}

std::vector<int64_t> integers(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  if (info.dtype != DType::kI64) fail(ExitCode::kData, "expected I64", name);
  std::vector<int64_t> values(static_cast<size_t>(info.count()));
  std::memcpy(values.data(), file.bytes(info).data(), file.bytes(info).size());
  return values;
}

double largest(const std::vector<float>& values) {
  double most = 0;
  for (const float value : values) most = std::max(most, std::fabs(static_cast<double>(value)));
  return most;
}

// The largest |a - b|; a value that is not finite is infinitely far away.
double distance(const float* a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!std::isfinite(difference)) return INFINITY;
    most = std::max(most, difference);
  }
  return most;
}

// Rows of ids [rows, length], each a document; labels (or none) say what is trained on.
Batch batch_of(const std::vector<int64_t>& ids,
               const std::vector<int64_t>& labels,
               int64_t length) {
  const float weights[2] = {0.0F, 1.0F};
  Batch batch;
  batch.clear();
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(length)) {
    std::vector<int32_t> row;
    std::vector<uint8_t> loss;
    for (size_t t = begin; t < begin + static_cast<size_t>(length); ++t) {
      row.push_back(static_cast<int32_t>(ids[t]));
      loss.push_back(!labels.empty() && labels[t] != -100 ? 1 : 0);
    }
    batch.add(row, loss, weights, static_cast<int64_t>(begin));
  }
  return batch;
}

GoldenBatch training_of(const SafetensorsFile& golden) {
  return {batch_of(integers(golden, "input_ids"), integers(golden, "labels"),
                   golden.at("input_ids").shape[1]),
          static_cast<double>(floats(golden, "loss")[0])};
}

class Comparison {
 public:
  Comparison(train::Model& model, const SafetensorsFile& golden, GoldenResult& result)
      : model_(model), golden_(golden), result_(result) {}

  void run() {
    compare_training();
    for (const char* part : {"padded.", "packed.", "long."}) {
      if (golden_.find(std::string(part) + "logits") != nullptr) compare_logits(part);
    }
    if (golden_.find("greedy") != nullptr) compare_greedy();
  }

 private:
  void add(const std::string& what, double value, double bound) {
    result_.differences.push_back({what, value, bound});
  }

  // Hidden states, logits, loss and gradients of the batch.
  void compare_training() {
    const auto [batch, loss] = training_of(golden_);
    train::train_everything(model_);
    train::Decoder decoder(model_, poisoned(model_, batch.tokens(), train::Keep::kForBackward));
    const float* residual = decoder.forward(batch, 0);
    const auto layers = model_.layers.size();
    for (size_t layer = 0; layer < layers; ++layer) {
      compare_hidden(layer, decoder.block_input(layer));
    }
    std::vector<float> normed(static_cast<size_t>(batch.tokens() * model_.config.hidden_size));
    std::vector<float> inv_rms(static_cast<size_t>(batch.tokens()));
    train::check(graft_rmsnorm_forward(
        residual, f32(model_.final_norm.weight), model_.config.rms_norm_eps, batch.tokens(),
        model_.config.hidden_size, normed.data(), inv_rms.data(), model_.config.norm));
    compare_hidden(layers, normed.data());
    std::vector<float> logits(static_cast<size_t>(batch.tokens() * model_.config.vocab_size));
    decoder.head_logits(residual, batch.tokens(), logits.data());
    add("logits", distance(logits.data(), floats(golden_, "logits")), 2e-5);

    train::AdamW(model_.trained).zero_gradients();
    const double scale = 1 / batch.weight_sum;
    const train::HeadResult head =
        decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
    add("loss", std::fabs(head.loss_sum * scale - loss) / loss, 1e-6);
    decoder.backward(batch, decoder.gradient_buffer());
    decoder.finish_gradients();
    compare_gradients();
  }

  void compare_hidden(size_t index, const float* got) {
    const std::string name = "hidden." + std::to_string(index);
    if (golden_.find(name) == nullptr) return;
    const std::vector<float> expected = floats(golden_, name);
    add("hidden state " + std::to_string(index), distance(got, expected) / largest(expected), 1e-5);
  }

  // transformers 5 holds all experts of a layer in one tensor, gate and up joined.
  std::vector<float> expert_gradient(const std::string& name) {
    const std::string prefix = name.substr(0, name.rfind('.') + 1);
    const bool down = name.substr(prefix.size()) == "down_proj";
    std::vector<float> joined;
    for (const train::Layer& layer : model_.layers) {
      const std::string& first = layer.mlps[0].down.name;
      const bool here = layer.router && first.rfind(prefix.substr(0, prefix.find("mlp.")), 0) == 0;
      if (!here) continue;
      for (const train::Mlp& mlp : layer.mlps) {
        const auto append = [&](const train::Linear& linear) {
          const float* grad = f32(linear.base_grad);
          joined.insert(joined.end(), grad, grad + linear.base_grad.numel());
        };
        if (down) {
          append(mlp.down);
        } else {
          for (const train::Linear& linear : mlp.in) append(linear);
        }
      }
    }
    return joined;
  }

  void compare_gradients() {
    std::map<std::string, const train::Parameter*> ours;
    for (const train::Parameter& parameter : model_.trained) {
      std::string name = parameter.name;
      const size_t sparse = name.find("block_sparse_moe.");
      if (sparse != std::string::npos) name.replace(sparse, 17, "mlp.");
      ours[name] = &parameter;
    }
    for (const TensorInfo& info : golden_.tensors()) {
      if (info.name.rfind("grad.", 0) != 0) continue;
      const std::string name = info.name.substr(5);
      const std::vector<float> expected = floats(golden_, info.name);
      const bool experts = name.find(".experts.") != std::string::npos;
      std::vector<float> got;
      if (experts) {
        got = expert_gradient(name);
      } else if (ours.count(name) > 0) {
        const at::Tensor& grad = ours[name]->grad;
        got.assign(f32(grad), f32(grad) + grad.numel());
      }
      if (got.size() != expected.size()) {
        add("gradient of " + name + " (absent here)", INFINITY, 1e-5);
        continue;
      }
      add("gradient of " + name, distance(got.data(), expected) / largest(expected), 1e-5);
    }
  }

  // Documents apart (padded., long.) or packed by seq_id; only places that the file defines count.
  void compare_logits(const std::string& part) {
    const std::vector<int64_t> ids = integers(golden_, part + "input_ids");
    const int64_t length = golden_.at(part + "input_ids").shape[1];
    Batch batch;
    if (golden_.find(part + "seq_id") != nullptr) {
      const std::vector<int64_t> sequence = integers(golden_, part + "seq_id");
      batch.clear();
      for (size_t begin = 0; begin < ids.size();) {
        size_t end = begin;
        while (end < ids.size() && sequence[end] == sequence[begin]) ++end;
        const Batch one = batch_of(
            {ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end)},
            {}, static_cast<int64_t>(end - begin));
        batch.add(one.ids, std::vector<uint8_t>(one.ids.size()), std::vector<float>{0.0F},
                  static_cast<int64_t>(begin));
        begin = end;
      }
    } else {
      batch = batch_of(ids, {}, length);
    }
    train::Decoder decoder(model_, poisoned(model_, batch.tokens(), train::Keep::kNothing));
    const int64_t vocab = model_.config.vocab_size;
    std::vector<float> logits(static_cast<size_t>(batch.tokens() * vocab));
    decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
    if (golden_.find(part + "attention_mask") != nullptr) {
      const std::vector<int64_t> mask = integers(golden_, part + "attention_mask");
      for (size_t token = 0; token < mask.size(); ++token) {
        const auto begin = logits.begin() + static_cast<int64_t>(token) * vocab;
        if (mask[token] == 0) std::fill(begin, begin + vocab, 0.0F);
      }
    }
    add(part + "logits", distance(logits.data(), floats(golden_, part + "logits")), 2e-5);
  }

  void compare_greedy() {
    const std::vector<int64_t> ids = integers(golden_, "input_ids");
    const std::vector<int64_t> expected = integers(golden_, "greedy");
    std::vector<int32_t> prompt;
    for (size_t t = 0; t < 8; ++t) prompt.push_back(static_cast<int32_t>(ids[t]));
    train::Generator generator(model_, 64);
    train::GenerateOptions options;
    options.max_new_tokens = static_cast<int64_t>(expected.size());
    const train::Generated got = generator.generate(prompt, options);
    double wrong =
        std::fabs(static_cast<double>(got.ids.size()) - static_cast<double>(expected.size()));
    for (size_t i = 0; i < std::min(got.ids.size(), expected.size()); ++i) {
      wrong += got.ids[i] == expected[i] ? 0 : 1;
    }
    add("greedy tokens", wrong, 0);
  }

  train::Model& model_;
  const SafetensorsFile& golden_;
  GoldenResult& result_;
};

}  // namespace

std::string GoldenResult::first_failure() const {
  for (const Difference& one : differences) {
    if (!one.within()) {
      char text[64];
      std::snprintf(text, sizeof text, " differs by %.3g, at most %.3g", one.value, one.bound);
      return model + ": " + one.what + text;
    }
  }
  return "";
}

double GoldenResult::worst(const std::string& prefix) const {
  double worst = -1;
  for (const Difference& one : differences) {
    if (one.what.rfind(prefix, 0) != 0) continue;
    worst = std::max(worst, one.bound > 0 ? one.value / one.bound : one.value);
  }
  return worst;
}

GoldenResult compare_with_golden(const train::ModelConfig& config,
                                 const std::string& directory,
                                 const std::string& golden_path) {
  GoldenResult result;
  const auto model = train::load_model(config, directory, train::Precision::kFull);
  const SafetensorsFile golden(golden_path);
  Comparison(*model, golden, result).run();
  return result;
}

GoldenResult compare_with_golden(const std::string& directory, const std::string& golden_path) {
  return compare_with_golden(train::read_model_config(directory), directory, golden_path);
}

GoldenBatch golden_batch(const std::string& golden_path) {
  return training_of(SafetensorsFile(golden_path));
}

std::string golden_table(const std::vector<GoldenResult>& results) {
  constexpr const char* kColumns[] = {"hidden", "logits", "loss",  "gradient",
                                      "padded", "packed", "long.", "greedy"};
  std::vector<std::vector<std::string>> rows = {{"share of the bound", "hidden", "logits", "loss",
                                                 "gradients", "padded", "packed", "long",
                                                 "greedy"}};
  for (const GoldenResult& result : results) {
    std::vector<std::string> row = {result.model};
    for (const char* column : kColumns) {
      const double worst = result.worst(column);
      row.push_back(worst < 0 ? "-" : format_fixed(worst, 2));
    }
    rows.push_back(std::move(row));
  }
  return format_table("<>>>>>>>>", rows);
}

}  // namespace graft::test
