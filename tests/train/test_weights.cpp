// Weights of a directory: every form that is read, and every fault that is refused with its place.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/tensor.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

struct Tensor {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

// A checkpoint in memory, to be damaged and written.
class Checkpoint {
 public:
  explicit Checkpoint(const char* family = "qwen2") {
    const std::string made = test::write_family_config(dir_.path(), test::tiny_family(family));
    save_model(*test::make_rough_model(made, 7), made, dir_.file("made"));
    const SafetensorsFile file(dir_.file("made/model.safetensors"));
    for (const TensorInfo& info : file.tensors()) {
      const auto bytes = file.bytes(info);
      tensors_.push_back({{info.name, info.dtype, info.shape}, {bytes.begin(), bytes.end()}});
    }
    make_directories(path());
    write_file_atomically(path() + "/config.json", read_file(dir_.file("config.json")));
  }
  std::string path() const { return dir_.file("model"); }
  std::vector<Tensor>& tensors() { return tensors_; }
  Tensor& at(const std::string& name) {
    for (Tensor& tensor : tensors_) {
      if (tensor.spec.name == name) return tensor;
    }
    FAIL("no tensor " << name);
    throw;
  }
  void write(const std::string& file, size_t begin, size_t end) const {
    std::vector<TensorBytes> part;
    for (size_t i = begin; i < end; ++i) part.push_back({tensors_[i].spec, tensors_[i].bytes});
    write_safetensors(path() + "/" + file, part);
  }
  void write() const { write("model.safetensors", 0, tensors_.size()); }

  // Two shards and their index.
  void write_shards() const {
    const size_t half = tensors_.size() / 2;
    write("model-00001-of-00002.safetensors", 0, half);
    write("model-00002-of-00002.safetensors", half, tensors_.size());
    Json map = Json::object();
    for (size_t i = 0; i < tensors_.size(); ++i) {
      map.set(tensors_[i].spec.name,
              i < half ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors");
    }
    write_index(map);
  }
  void write_index(const Json& map) const {
    write_file_atomically(path() + "/model.safetensors.index.json",
                          dump_json(Json::object({{"weight_map", map}})));
  }

 private:
  test::TempDir dir_;
  std::vector<Tensor> tensors_;
};

ErrorText failure_of(const Checkpoint& checkpoint, Precision precision = Precision::kFull) {
  try {
    load_model(checkpoint.path(), precision);
  } catch (const Error& error) {
    return error.text();
  }
  return {};
}

bool same_weights(Model& a, Model& b) {
  const std::vector<BaseTensor> left = base_tensors(a), right = base_tensors(b);
  for (size_t i = 0; i < left.size(); ++i) {
    const bool packed = left[i].linear != nullptr && left[i].linear->base.quantized();
    const at::Tensor& x = packed ? left[i].linear->base.packed : *left[i].value;
    const at::Tensor& y = packed ? right[i].linear->base.packed : *right[i].value;
    if (x.nbytes() != y.nbytes() || std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) != 0) {
      return false;
    }
    if (packed && left[i].linear->base.offset != right[i].linear->base.offset) return false;
  }
  return left.size() == right.size();
}

constexpr const char* kWeight = "model.layers.1.mlp.up_proj.weight";

}  // namespace

TEST_CASE("weights: shards, 16-bit types and one file give the same model", "[train][weights]") {
  Checkpoint checkpoint;
  // Values that all three types hold.
  for (Tensor& tensor : checkpoint.tensors()) {
    for (size_t i = 0; i < tensor.bytes.size(); i += 4) {
      float value = 0;
      std::memcpy(&value, tensor.bytes.data() + i, 4);
      value = std::round(value * 64.0F) / 64.0F;
      std::memcpy(tensor.bytes.data() + i, &value, 4);
    }
  }
  checkpoint.write();
  const auto whole = load_model(checkpoint.path(), Precision::kFull);
  const DType dtype = GENERATE(DType::kF32, DType::kBF16, DType::kF16);
  for (Tensor& tensor : checkpoint.tensors()) {
    if (dtype == DType::kF32) continue;
    std::vector<std::byte> narrow;
    for (size_t i = 0; i < tensor.bytes.size(); i += 4) {
      float value = 0;
      std::memcpy(&value, tensor.bytes.data() + i, 4);
      const uint16_t half = dtype == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value);
      const auto* bytes = reinterpret_cast<const std::byte*>(&half);
      narrow.insert(narrow.end(), bytes, bytes + 2);
    }
    tensor.bytes = narrow;
    tensor.spec.dtype = dtype;
  }
  remove_file(checkpoint.path() + "/model.safetensors");
  checkpoint.write_shards();
  CHECK(same_weights(*whole, *load_model(checkpoint.path(), Precision::kFull)));
}

TEST_CASE("weights: quantized while loading equals the 4-bit checkpoint of `graft quantize`",
          "[train][weights][families]") {
  const char* family = GENERATE("phi3", "mixtral", "gemma2");
  const Checkpoint checkpoint(family);
  checkpoint.write();
  const std::string packed = checkpoint.path() + "-4bit";
  adapters::quantize_directory(checkpoint.path(), packed, {});
  const auto stored = load_model(packed, Precision::kFull);
  const auto quantized = load_model(checkpoint.path(), Precision::kNf4);
  CHECK(stored->quantized());
  CHECK(same_weights(*stored, *quantized));
  // A fused weight is one weight: its blocks run across the parts.
  const std::vector<Linear*> linears = quantized->linears();
  for (const Linear* linear : linears) {
    if (linear->base.quantized()) CHECK(linear->base.count == linear->in * linear->out);
  }
}

TEST_CASE("weights: what does not fit the config is refused with file and tensor",
          "[train][weights]") {
  Checkpoint checkpoint;
  const auto refuses = [&](const std::string& what, const std::string& where) {
    for (const Precision precision : {Precision::kFull, Precision::kNf4}) {
      const ErrorText error = failure_of(checkpoint, precision);
      CHECK_THAT(error.what, Catch::Contains(what));
      CHECK_THAT(error.where, Catch::Contains(where));
    }
  };
  SECTION("a missing tensor") {
    checkpoint.at(kWeight).spec.name = "model.embed_tokens.other";
    checkpoint.write();
    refuses("no tensor \"" + std::string(kWeight) + "\"", checkpoint.path());
  }
  SECTION("a tensor too many") {
    checkpoint.at(kWeight).spec.name = "model.layers.1.mlp.extra_proj.weight";
    checkpoint.write();
    refuses("no such tensor", "model.safetensors: model.layers.1.mlp.extra_proj.weight");
  }
  SECTION("another shape") {
    Tensor& tensor = checkpoint.at(kWeight);
    std::swap(tensor.spec.shape[0], tensor.spec.shape[1]);
    checkpoint.write();
    refuses("expected shape [56, 32] (from config.json), got [32, 56]",
            "model.safetensors: " + std::string(kWeight));
  }
  SECTION("another dtype") {
    checkpoint.at(kWeight).spec.dtype = DType::kI32;
    checkpoint.write();
    refuses("I32", kWeight);
  }
  SECTION("NaN and infinity") {
    const float bad = GENERATE(NAN, INFINITY);
    std::memcpy(checkpoint.at(kWeight).bytes.data() + 40, &bad, 4);
    checkpoint.write();
    refuses("finite", kWeight);
  }
  SECTION("NaN in a norm") {
    const float bad = NAN;
    std::memcpy(checkpoint.at("model.norm.weight").bytes.data(), &bad, 4);
    checkpoint.write();
    refuses("1 of 32 weights: NaN or infinite", "model.norm.weight");
  }
}

TEST_CASE("weights: the first blocks are read without the others", "[train][weights]") {
  Checkpoint checkpoint;
  checkpoint.write();
  ModelConfig config = read_model_config(checkpoint.path());
  config.layers.resize(1);
  const Precision precision = GENERATE(Precision::kFull, Precision::kNf4);
  const auto whole = load_model(checkpoint.path(), precision);
  const float bad = NAN;  // in block 1
  std::memcpy(checkpoint.at(kWeight).bytes.data(), &bad, 4);
  checkpoint.write();
  const auto first = load_first_layers(config, checkpoint.path(), precision);
  whole->layers.resize(1);
  CHECK(same_weights(*whole, *first));
  CHECK_THROWS_WITH(
      load_first_layers(read_model_config(checkpoint.path()), checkpoint.path(), precision),
      Catch::Contains("finite"));
}

TEST_CASE("weights: headers are checked without the values", "[train][weights]") {
  Checkpoint checkpoint;
  const ModelConfig config = read_model_config(checkpoint.path());
  const float bad = NAN;
  std::memcpy(checkpoint.at(kWeight).bytes.data(), &bad, 4);
  checkpoint.write();
  CHECK_NOTHROW(check_weight_files(config, checkpoint.path()));
  const std::string packed = checkpoint.path() + "-4bit";
  SECTION("another type") {
    checkpoint.at(kWeight).spec.dtype = DType::kI32;
    checkpoint.write();
    CHECK_THROWS_WITH(check_weight_files(config, checkpoint.path()), Catch::Contains("I32"));
  }
  SECTION("another shape") {
    Tensor& tensor = checkpoint.at(kWeight);
    std::swap(tensor.spec.shape[0], tensor.spec.shape[1]);
    checkpoint.write();
    CHECK_THROWS_WITH(check_weight_files(config, checkpoint.path()), Catch::Contains("[32, 56]"));
  }
  SECTION("in 4 bits") {
    std::memset(checkpoint.at(kWeight).bytes.data(), 0, 4);
    checkpoint.write();
    adapters::quantize_directory(checkpoint.path(), packed, {});
    CHECK_NOTHROW(check_weight_files(config, packed));
    ModelConfig other = config;
    other.layers[1].intermediate_size = 64;
    CHECK_THROWS_WITH(check_weight_files(other, packed), Catch::Contains("expected shape"));
  }
}

TEST_CASE("weights: damaged directories are refused with the file", "[train][weights]") {
  const Checkpoint checkpoint;
  SECTION("nothing there") {
    CHECK_THAT(failure_of(checkpoint).what, Catch::Contains("no model.safetensors"));
  }
  SECTION("a pickle") {
    write_file_atomically(checkpoint.path() + "/pytorch_model.bin", "x");
    const ErrorText error = failure_of(checkpoint);
    CHECK_THAT(error.what, Catch::Contains("pickle"));
    CHECK_THAT(error.where, Catch::Contains("pytorch_model.bin"));
  }
  SECTION("a missing shard") {
    checkpoint.write_shards();
    remove_file(checkpoint.path() + "/model-00002-of-00002.safetensors");
    const ErrorText error = failure_of(checkpoint);
    CHECK_THAT(error.what, Catch::Contains("shard is missing"));
    CHECK_THAT(error.where, Catch::Contains("model-00002-of-00002.safetensors"));
  }
  SECTION("an index that leaves the directory") {
    checkpoint.write();
    for (const char* place : {"../model.safetensors", "/etc/passwd", "a/b.safetensors", ""}) {
      checkpoint.write_index(Json::object({{"model.norm.weight", place}}));
      CHECK_THAT(failure_of(checkpoint).what, Catch::Contains("leaves the directory"));
    }
  }
  SECTION("a tensor in another shard than the index says") {
    checkpoint.write_shards();
    Json map = Json::object();
    map.set("model.norm.weight", "model-00001-of-00002.safetensors");
    map.set("model.layers.0.mlp.up_proj.weight", "model-00002-of-00002.safetensors");
    checkpoint.write_index(map);
    CHECK_THAT(failure_of(checkpoint).what, Catch::Contains("is not in model-0000"));
  }
  SECTION("cut short") {
    checkpoint.write();
    const std::string file = checkpoint.path() + "/model.safetensors";
    std::filesystem::resize_file(file, static_cast<uintmax_t>(file_size(file) - 100));
    CHECK_THAT(failure_of(checkpoint).where, Catch::Contains("model.safetensors"));
  }
}

TEST_CASE("weights: SHA256SUMS is believed over the files", "[train][weights]") {
  const Checkpoint checkpoint;
  checkpoint.write();
  const std::string file = checkpoint.path() + "/model.safetensors";
  const std::string sums = checkpoint.path() + "/SHA256SUMS";
  const std::string digest = sha256_file(file);
  write_file_atomically(
      sums, std::string(64, '0') + "  tokenizer.model\n" + digest + " *model.safetensors\n");
  CHECK(failure_of(checkpoint).what == "");
  write_file_atomically(sums, std::string(64, '0') + "  model.safetensors\n");
  CHECK_THAT(failure_of(checkpoint).what, Catch::Contains("SHA-256 is " + digest));
  CHECK_THAT(failure_of(checkpoint).where, Catch::Contains(file));
}

TEST_CASE("weights: the second start maps the 4-bit weights of the first", "[train][weights]") {
  Checkpoint checkpoint("mixtral");
  checkpoint.write();
  const test::TempDir dir;
  QuantizedCache cache{dir.file("cache"), 0};
  const auto entries = [&] {
    std::vector<std::string> names;
    if (!directory_exists(cache.directory)) return names;
    for (const std::string& name : list_directory(cache.directory)) {
      if (name.rfind("nf4-", 0) == 0) names.push_back(cache.directory + "/" + name);
    }
    return names;
  };
  const auto is_mapped = [&] {
    return read_file("/proc/self/maps").find(cache.directory) != std::string::npos;
  };
  const auto load = [&] { return load_model(checkpoint.path(), Precision::kNf4, cache); };
  const auto plain = load_model(checkpoint.path(), Precision::kNf4);
  CHECK(entries().empty());
  const auto first = load();
  REQUIRE(entries().size() == 1);
  CHECK(same_weights(*plain, *first));
  CHECK_FALSE(is_mapped());
  SECTION("as it is") {
    const auto second = load();
    CHECK(is_mapped());
    CHECK(same_weights(*plain, *second));
    CHECK(entries().size() == 1);
  }
  SECTION("not for small models, and not when it is off") {
    cache.least_weights = int64_t{1} << 40;
    const auto second = load();
    cache = {};
    const auto third = load();
    CHECK(same_weights(*plain, *second));
    CHECK(same_weights(*plain, *third));
  }
  SECTION("a damaged entry is made again") {
    const std::string entry = entries()[0];
    std::string bytes = read_file(entry);
    const size_t place = GENERATE(size_t{3}, size_t{2000}, size_t{0});
    if (place == 0) {
      bytes.resize(bytes.size() / 2);
    } else {
      bytes[bytes.size() - place] = static_cast<char>(bytes[bytes.size() - place] ^ 4);
    }
    write_file_atomically(entry, bytes);
    const auto second = load();
    CHECK_FALSE(is_mapped());
    CHECK(same_weights(*plain, *second));
    const auto third = load();
    CHECK(is_mapped());
    CHECK(same_weights(*plain, *third));
  }
  SECTION("changed weights have an entry of their own") {
    const float other = 0.5F;
    std::memcpy(checkpoint.at("model.layers.0.self_attn.q_proj.weight").bytes.data(), &other, 4);
    checkpoint.write();
    const auto changed = load();
    CHECK(entries().size() == 2);
    CHECK_FALSE(same_weights(*plain, *changed));
    CHECK(same_weights(*load_model(checkpoint.path(), Precision::kNf4), *changed));
  }
  SECTION("a place that cannot be written costs a line, not the run") {
    write_file_atomically(dir.file("file"), "");
    cache.directory = dir.file("file") + "/cache";
    CHECK(same_weights(*plain, *load()));
  }
}
