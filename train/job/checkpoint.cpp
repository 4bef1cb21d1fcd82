#include "train/job/checkpoint.h"

#include <algorithm>
#include <cstdio>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/safetensors.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kFiles[] = {"trained.safetensors", "optimizer.safetensors",
                                       "state.json"};

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return name;
}

DType dtype_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kByte ? DType::kU8 : DType::kF32;
}

TensorBytes named(const std::string& name, const at::Tensor& tensor) {
  return {{name, dtype_of(tensor), {tensor.sizes().begin(), tensor.sizes().end()}},
          {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()}};
}

void read_into(const SafetensorsFile& file, const std::string& name, const at::Tensor& tensor) {
  const TensorInfo& info = file.at(name);
  const std::vector<int64_t> shape(tensor.sizes().begin(), tensor.sizes().end());
  if (info.dtype != dtype_of(tensor) || info.shape != shape) {
    fail(ExitCode::kData,
         "expected " + std::string(dtype_name(dtype_of(tensor))) + " " + shape_text(shape) +
             ", got " + std::string(dtype_name(info.dtype)) + " " + shape_text(info.shape),
         file.path() + ": " + name);
  }
  const std::span<const std::byte> bytes = file.bytes(info);
  const Device device = place_of(tensor);
  device.copy(tensor.data_ptr(), bytes.data(), bytes.size());
  device.wait();
}

// Names of complete checkpoints, newest first.
std::vector<std::string> checkpoint_names(const std::string& directory) {
  std::vector<std::string> names;
  if (directory_exists(directory)) {
    for (const std::string& name : list_directory(directory)) {
      if (name.rfind(kPrefix, 0) == 0) {
        names.push_back(name);
      }
    }
  }
  // By number: names grow a digit from step 100,000,000 on.
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() > b.size() : a > b;
  });
  return names;
}

void remove_unfinished(const std::string& directory) {
  for (const std::string& name : list_directory(directory)) {
    if (name.rfind(".tmp-", 0) == 0 || name.rfind(".trash-", 0) == 0) {
      remove_tree(join_path(directory, name));
    }
  }
}

void verify(const std::string& directory) {
  const Json manifest = read_json_file(join_path(directory, "MANIFEST.json"));
  for (const std::string_view name : kFiles) {
    const Json& entry = manifest.at("files").at(name);
    const std::string path = join_path(directory, name);
    if (file_size(path) != entry.at("bytes").as_int() ||
        sha256_file(path) != entry.at("sha256").as_string()) {
      fail(ExitCode::kData, "the content differs from its manifest", path);
    }
  }
}

Progressed read_state(const std::string& path) {
  const Json state = read_json_file(path);
  return {state.at("step").as_int(), state.at("skipped").as_int(),
          state.at("trained_tokens").as_int(), state.at("metrics_bytes").as_int()};
}

}  // namespace

void save_checkpoint(const std::string& directory,
                     const Progressed& progressed,
                     const std::vector<Parameter>& parameters,
                     AdamW& optimizer,
                     int64_t keep) {
  make_directories(directory);
  remove_unfinished(directory);
  const std::string name = step_name(progressed.step);
  const std::string target = join_path(directory, name);
  const std::string temporary = join_path(directory, ".tmp-" + name);
  make_directories(temporary);

  std::vector<at::Tensor> held;  // until the files are written
  const auto on_this_side = [&](const at::Tensor& tensor) {
    held.push_back(on_host(tensor));
    return held.back();
  };
  std::vector<TensorBytes> trained;
  std::vector<TensorBytes> moments;
  for (const Parameter& parameter : parameters) {
    trained.push_back(named(parameter.name, on_this_side(parameter.value)));
  }
  for (const AdamW::State& state : optimizer.state()) {
    moments.push_back(named(state.name, on_this_side(state.tensor)));
  }
  const Json state = Json::object({{"step", progressed.step},
                                   {"optimizer_step", optimizer.step_count()},
                                   {"skipped", progressed.skipped},
                                   {"trained_tokens", progressed.trained_tokens},
                                   {"metrics_bytes", progressed.metrics_bytes}});
  Json files = Json::object();
  const auto add = [&](const std::string& file, const std::string& digest) {
    files.set(file,
              Json::object({{"bytes", file_size(join_path(temporary, file))}, {"sha256", digest}}));
  };
  add("trained.safetensors",
      write_safetensors(join_path(temporary, "trained.safetensors"), std::move(trained)));
  add("optimizer.safetensors",
      write_safetensors(join_path(temporary, "optimizer.safetensors"), std::move(moments)));
  add("state.json", write_file_atomically(join_path(temporary, "state.json"),
                                          dump_json(state, {.indent = 2}) + "\n"));
  const Json manifest = Json::object({{"format", 1}, {"files", std::move(files)}});
  write_file_atomically(join_path(temporary, "MANIFEST.json"),
                        dump_json(manifest, {.indent = 2}) + "\n");
  if (directory_exists(target)) {  // the same step saved twice holds the same bytes
    remove_tree(target);
  }
  rename_path(temporary, target);

  const std::vector<std::string> names = checkpoint_names(directory);
  for (size_t i = static_cast<size_t>(keep); i < names.size(); ++i) {
    const std::string trash = join_path(directory, ".trash-" + names[i]);
    rename_path(join_path(directory, names[i]), trash);
    remove_tree(trash);
  }
}

std::optional<Progressed> load_newest_checkpoint(const std::string& directory,
                                                 std::vector<Parameter>& parameters,
                                                 AdamW& optimizer,
                                                 const std::function<void(std::string)>& report) {
  for (const std::string& name : checkpoint_names(directory)) {
    const std::string path = join_path(directory, name);
    try {
      verify(path);
    } catch (const Error& error) {
      const std::string bad = join_path(directory, "bad-" + name);
      remove_tree(bad);
      rename_path(path, bad);
      report("checkpoint " + name + " is damaged (" + error.text().what + " at " +
             error.text().where + "); kept as " + bad);
      continue;
    }
    const SafetensorsFile trained(join_path(path, "trained.safetensors"));
    const SafetensorsFile moments(join_path(path, "optimizer.safetensors"));
    for (const Parameter& parameter : parameters) {
      read_into(trained, parameter.name, parameter.value);
    }
    for (const AdamW::State& state : optimizer.state()) {
      read_into(moments, state.name, state.tensor);
    }
    const std::string state = join_path(path, "state.json");
    optimizer.set_step_count(read_json_file(state).at("optimizer_step").as_int());
    return read_state(state);
  }
  return std::nullopt;
}

}  // namespace graft::train
