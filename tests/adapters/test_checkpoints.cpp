// Merging, quantizing and decoding directories, against PEFT's and bitsandbytes' own.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include <catch2/catch.hpp>

#include "adapters/merge.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/peft.h"
#include "adapters/pieces.h"
#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/support/support.h"

using namespace graft;
using namespace graft::adapters;
using graft::test::source_path;
using graft::test::TempDir;

namespace {

const std::string kGolden = source_path("tests/golden/adapters/");

struct Refusal {
  ExitCode code = ExitCode::kOk;
  std::string text;
};

Refusal refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

std::vector<float> floats(const SafetensorsDirectory& directory, const std::string& name) {
  const auto entry = directory.at(name);
  std::vector<float> values(static_cast<size_t>(entry.info->count()));
  convert_to_f32(entry.info->dtype, entry.bytes(), values.data(), entry.info->count());
  return values;
}

bool same_bytes(const SafetensorsDirectory& a,
                const SafetensorsDirectory& b,
                const std::string& name) {
  const auto x = a.at(name).bytes(), y = b.at(name).bytes();
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size()) == 0;
}

constexpr const char* kNested = ".weight.nested_absmax";

std::vector<double> restored_absmax(const Nf4Tensor& weight) {
  const graft_nf4_weight& view = weight.view();
  std::vector<double> result;
  for (int64_t i = 0; i < graft_nf4_block_count(view.count, view.block_size); ++i) {
    const float product = graft_dynamic_map_signed()[view.absmax8[i]] * view.nested_absmax[i / 256];
    result.push_back(static_cast<double>(product + view.offset));
  }
  return result;
}

// A tensor file by hand, for checkpoints that are damaged.
struct Tensors {
  std::map<std::string, TensorSpec> specs;
  std::map<std::string, std::vector<std::byte>> bytes;
  explicit Tensors(const std::string& path) {
    const SafetensorsFile file(path);
    for (const TensorInfo& t : file.tensors()) {
      specs[t.name] = {t.name, t.dtype, t.shape};
      bytes[t.name] = {file.bytes(t).begin(), file.bytes(t).end()};
    }
  }
  void write(const std::string& path) const {
    std::vector<TensorBytes> list;
    for (const auto& [name, spec] : specs) list.push_back({spec, bytes.at(name)});
    write_safetensors(path, std::move(list));
  }
  void set_text(const std::string& name, const std::string& text) {
    const auto* data = reinterpret_cast<const std::byte*>(text.data());
    bytes[name] = {data, data + text.size()};
    specs[name] = {name, DType::kU8, {static_cast<int64_t>(text.size())}};
  }
};

void copy_directory(const std::string& from, const std::string& to) {
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
}

}  // namespace

TEST_CASE("merge: a bfloat16 base equals the exact sum rounded once", "[adapters][merge]") {
  const TempDir directory;
  MergeOptions options;
  options.model = kGolden + "base";
  options.adapter = kGolden + "adapter";
  options.out = directory.file("merged");
  const MergeReport report = merge_adapter(options);
  CHECK(report.base == MergeBase::kW16);
  CHECK(report.merged_tensors == 6);
  const SafetensorsDirectory base(options.model), merged(options.out), peft(kGolden + "merged");
  CHECK(merged.names() == base.names());
  const Adapter adapter = read_peft(options.adapter);
  int64_t changed = 0;
  for (const std::string& name : base.names()) {
    CHECK(merged.at(name).info->dtype == DType::kBF16);
    const std::string module = name.substr(0, name.size() - 7);
    const bool adapted = std::any_of(adapter.modules.begin(), adapter.modules.end(),
                                     [&](const AdapterModule& m) { return m.name == module; });
    if (!adapted) {
      CHECK(same_bytes(base, merged, name));
      continue;
    }
    // PEFT's sum is float32 on the widened base. Ours is its rounding to bfloat16: within half a
    // unit of 8 bits, and the float32 roundings of two sums of four products.
    const std::vector<float> ours = floats(merged, name), exact = floats(peft, name);
    const std::vector<float> before = floats(base, name);
    for (size_t i = 0; i < ours.size(); ++i) {
      const double value = static_cast<double>(exact[i]);
      const double bound = std::fabs(value) * 0x1p-8 + 0x1p-20 * 0.5;
      INFO(name << " " << i);
      REQUIRE(std::fabs(static_cast<double>(ours[i]) - value) <= bound);
      changed += ours[i] != before[i];
    }
  }
  CHECK(changed > 100);
  CHECK(read_file(directory.file("merged/generation_config.json")) ==
        read_file(kGolden + "base/generation_config.json"));
  CHECK(report.relative_change > 0.1);
  CHECK(report.rounding_share < 0.01);
}

TEST_CASE("merge: a float32 base equals PEFT's merge to the last roundings", "[adapters][merge]") {
  const TempDir directory;
  // The decoded golden is float32; here the bfloat16 base is widened to be one.
  Tensors tensors(kGolden + "base/model.safetensors");
  const SafetensorsDirectory base(kGolden + "base");
  for (auto& [name, spec] : tensors.specs) {
    const std::vector<float> values = floats(base, name);
    const auto bytes = std::as_bytes(std::span<const float>(values));
    spec.dtype = DType::kF32;
    tensors.bytes[name] = {bytes.begin(), bytes.end()};
  }
  make_directories(directory.file("base"));
  tensors.write(directory.file("base/model.safetensors"));
  write_file_atomically(directory.file("base/config.json"),
                        read_file(kGolden + "base/config.json"));
  merge_adapter(
      {directory.file("base"), kGolden + "adapter", directory.file("merged"), MergeBase::kAuto});
  const SafetensorsDirectory merged(directory.file("merged")), peft(kGolden + "merged");
  for (const std::string& name : peft.names()) {
    const std::vector<float> ours = floats(merged, name), theirs = floats(peft, name);
    REQUIRE(ours.size() == theirs.size());
    for (size_t i = 0; i < ours.size(); ++i) {
      // Values below 0.5 and sums of four products: a few units of 2^-24.
      REQUIRE(std::fabs(ours[i] - theirs[i]) <= 4 * 0x1p-25f);
    }
  }
}

TEST_CASE("merge: the decoded base is used for 4-bit directories and QLoRA adapters",
          "[adapters][merge]") {
  const TempDir directory;
  const std::string out = directory.file("merged");
  SECTION("a 4-bit directory") {
    const MergeReport report =
        merge_adapter({kGolden + "nf4", kGolden + "adapter", out, MergeBase::kAuto});
    CHECK(report.base == MergeBase::kDequant);
    const SafetensorsDirectory merged(out), decoded(kGolden + "decoded");
    // An adapted weight is near the decoded base plus the adapter; an untouched one is decoded.
    const std::string name = "model.layers.0.mlp.up_proj.weight";
    CHECK(merged.at(name).info->dtype == DType::kBF16);
    const std::vector<float> ours = floats(merged, name), exact = floats(decoded, name);
    for (size_t i = 0; i < ours.size(); ++i) {
      REQUIRE(ours[i] == bf16_to_f32(f32_to_bf16(exact[i])));
    }
    for (const std::string& tensor : merged.names()) CHECK_FALSE(is_quantization_tensor(tensor));
    CHECK(read_json_file(out + "/config.json").find("quantization_config") == nullptr);
  }
  SECTION("an adapter that says so, on a 16-bit directory") {
    const Adapter adapter = read_peft(kGolden + "adapter");
    std::vector<AdapterTensors> modules;
    for (const AdapterModule& m : adapter.modules) {
      modules.push_back({m.name, m.in, m.out, m.rank, m.a.data(), m.b.data()});
    }
    write_peft(directory.file("adapter"), adapter.spec, modules, {{"base_quantization", "nf4"}});
    const MergeReport report =
        merge_adapter({kGolden + "base", directory.file("adapter"), out, MergeBase::kAuto});
    CHECK(report.base == MergeBase::kDequant);
    const SafetensorsDirectory merged(out), base(kGolden + "base");
    CHECK_FALSE(same_bytes(merged, base, "model.layers.0.mlp.up_proj.weight"));
    CHECK(same_bytes(merged, base, "lm_head.weight"));
  }
  SECTION("w16 of a 4-bit directory is refused") {
    const Refusal refused = refusal([&] {
      merge_adapter({kGolden + "nf4", kGolden + "adapter", out, MergeBase::kW16});
    });
    CHECK(refused.code == ExitCode::kUsage);
    CHECK_FALSE(directory_exists(out));
  }
}

TEST_CASE("merge: nothing is left behind when it fails, nothing is overwritten",
          "[adapters][merge]") {
  const TempDir directory;
  SECTION("an existing output") {
    make_directories(directory.file("merged"));
    const Refusal refused = refusal([&] {
      merge_adapter(
          {kGolden + "base", kGolden + "adapter", directory.file("merged"), MergeBase::kAuto});
    });
    CHECK(refused.code == ExitCode::kUsage);
    CHECK(refused.text.find("exists already") != std::string::npos);
  }
  SECTION("a base value that is not finite") {
    copy_directory(kGolden + "base", directory.file("base"));
    Tensors tensors(directory.file("base/model.safetensors"));
    auto& bytes = tensors.bytes.at("model.layers.1.self_attn.q_proj.weight");
    bytes[10] = std::byte{0x80};
    bytes[11] = std::byte{0x7f};  // bfloat16 infinity
    tensors.write(directory.file("base/model.safetensors"));
    const Refusal refused = refusal([&] {
      merge_adapter({directory.file("base"), kGolden + "adapter", directory.file("merged"),
                     MergeBase::kAuto});
    });
    CHECK(refused.code == ExitCode::kData);
    CHECK(refused.text.find("layers.1.self_attn.q_proj") != std::string::npos);
    CHECK(list_directory(directory.path()) == std::vector<std::string>{"base"});
  }
}

TEST_CASE("merge: a sum that float16 cannot hold is refused", "[adapters][merge]") {
  const TempDir directory;
  // 60000 + 1 * 100 * a: 65504 is the largest float16, 65520 rounds to infinity.
  const float a_value = GENERATE(55.0f, 55.25f);
  const std::vector<uint16_t> weight(2, f32_to_f16(60000.0f));
  make_directories(directory.file("base"));
  write_safetensors(
      directory.file("base/model.safetensors"),
      {{{"q.weight", DType::kF16, {1, 2}}, std::as_bytes(std::span<const uint16_t>(weight))}});
  write_file_atomically(directory.file("base/config.json"), "{}");
  AdapterSpec spec;
  spec.r = 1;
  spec.lora_alpha = 1;
  spec.target_modules = {"q"};
  const std::vector<float> a = {0.0f, a_value}, b = {100.0f};
  const std::vector<AdapterTensors> modules = {{"q", 2, 1, 1, a.data(), b.data()}};
  write_peft(directory.file("adapter"), spec, modules);
  const Refusal refused = refusal([&] {
    merge_adapter({directory.file("base"), directory.file("adapter"), directory.file("merged"),
                   MergeBase::kAuto});
  });
  if (a_value == 55.0f) {  // 65500: near 65504
    CHECK(refused.code == ExitCode::kOk);
    CHECK(floats(SafetensorsDirectory(directory.file("merged")), "q.weight")[1] == 65504.0f);
  } else {  // 65525
    CHECK(refused.code == ExitCode::kData);
    CHECK(refused.text.find("value 1 is not finite as F16") != std::string::npos);
    CHECK_FALSE(directory_exists(directory.file("merged")));
  }
}

TEST_CASE("quantize: the checkpoint has bitsandbytes' tensors and bytes", "[adapters][quantize]") {
  const TempDir directory;
  const std::string out = directory.file("nf4");
  const QuantizeReport report = quantize_directory(kGolden + "base", out, {});
  CHECK(report.quantized_tensors == 14);
  CHECK((report.relative_error > 0.05 && report.relative_error < 0.12));
  const SafetensorsDirectory ours(out), theirs(kGolden + "nf4");
  CHECK(ours.names() == theirs.names());
  int64_t same_states = 0;
  for (const std::string& name : theirs.names()) {
    INFO(name);
    CHECK(ours.at(name).info->dtype == theirs.at(name).info->dtype);
    const bool state = name.find("quant_state") != std::string::npos;
    if (state) {
      // torch adds the mean in another order, so an offset may be one unit off; see nf4_HOW.md.
      same_states += same_bytes(ours, theirs, name);
    } else if (name.find(".weight.absmax") != std::string::npos) {
      // Codes may be one off (bitsandbytes' CPU search), where neighbours are at most 0.0141 apart.
      const std::string module = name.substr(0, name.find(".weight"));
      const auto a = restored_absmax(*find_nf4(ours, module));
      const auto b = restored_absmax(*find_nf4(theirs, module));
      const double step = 0.0142 * static_cast<double>(floats(theirs, module + kNested)[0]);
      for (size_t i = 0; i < a.size(); ++i) CHECK(std::fabs(a[i] - b[i]) <= step + 1e-8);
    } else if (name.find("nested_absmax") != std::string::npos) {
      CHECK(floats(ours, name)[0] == Approx(floats(theirs, name)[0]).epsilon(1e-5).margin(1e-8));
    } else {
      CHECK(same_bytes(ours, theirs, name));
      CHECK(ours.at(name).info->shape == theirs.at(name).info->shape);
    }
  }
  CHECK(same_states >= 10);
  const Json config = read_json_file(out + "/config.json");
  CHECK(dump_json(config, {.sort_keys = true}) ==
        dump_json(read_json_file(kGolden + "nf4/config.json"), {.sort_keys = true}));
}

TEST_CASE("nf4 checkpoint: bitsandbytes' file decodes to the bit", "[adapters][quantize]") {
  const SafetensorsDirectory packed(kGolden + "nf4"), decoded(kGolden + "decoded");
  for (const std::string& name : decoded.names()) {
    const std::string module = name.substr(0, name.size() - 7);
    const auto weight = find_nf4(packed, module);
    INFO(name);
    REQUIRE(weight.has_value());
    CHECK(weight->nested());
    CHECK(weight->dtype() == DType::kBF16);
    CHECK(weight->shape() == decoded.at(name).info->shape);
    std::vector<float> values;
    decode_range(weight->view(), 0, weight->count(), values);
    const std::vector<float> expected = floats(decoded, name);
    CHECK(std::memcmp(values.data(), expected.data(), values.size() * 4) == 0);
    std::vector<float> part;
    decode_range(weight->view(), 37, weight->count() - 5, part);
    CHECK(std::vector<float>(values.begin() + 37, values.end() - 5) == part);
  }
  CHECK_FALSE(find_nf4(packed, "lm_head").has_value());
}

TEST_CASE("nf4 checkpoint: quantize then decode gives the decoded weights",
          "[adapters][quantize]") {
  const TempDir directory;
  const bool double_quant = GENERATE(true, false);
  const int block_size = GENERATE(32, 64, 4096);
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  quantize_directory(kGolden + "base", directory.file("nf4"), {block_size, double_quant, type});
  decode_directory(directory.file("nf4"), directory.file("plain"));
  const SafetensorsDirectory packed(directory.file("nf4")), plain(directory.file("plain"));
  CHECK(plain.names() == SafetensorsDirectory(kGolden + "base").names());
  const auto weight = find_nf4(packed, "model.layers.1.mlp.down_proj");
  REQUIRE(weight.has_value());
  CHECK(weight->nested() == double_quant);
  CHECK(weight->view().block_size == block_size);
  CHECK(weight->view().type == type);
  const std::string state = "model.layers.1.mlp.down_proj.weight.quant_state.bitsandbytes__";
  CHECK(packed.find(state + "nf4").has_value() == (type == GRAFT_NF4));
  CHECK(packed.find(state + "fp4").has_value() == (type == GRAFT_FP4));
  const Json config = read_json_file(directory.file("nf4/config.json"));
  CHECK(config.at("quantization_config").at("bnb_4bit_quant_type").as_string() ==
        quant_type_name(type));
  std::vector<float> values;
  decode_range(weight->view(), 0, weight->count(), values);
  const std::vector<float> written = floats(plain, "model.layers.1.mlp.down_proj.weight");
  for (size_t i = 0; i < values.size(); ++i) {
    REQUIRE(written[i] == bf16_to_f32(f32_to_bf16(values[i])));
  }
  const Refusal again =
      refusal([&] { quantize_directory(directory.file("nf4"), directory.file("twice"), {}); });
  CHECK(again.text.find("quantized already") != std::string::npos);
  const Refusal plain_again =
      refusal([&] { decode_directory(directory.file("plain"), directory.file("twice")); });
  CHECK(plain_again.text.find("nothing in the model is quantized") != std::string::npos);
}

TEST_CASE("nf4 checkpoint: damaged files are refused with the tensor's name",
          "[adapters][quantize]") {
  const TempDir directory;
  copy_directory(kGolden + "nf4", directory.file("nf4"));
  Tensors tensors(directory.file("nf4/model.safetensors"));
  const std::string module = "model.layers.0.mlp.up_proj", weight = module + ".weight";
  const std::string state = weight + ".quant_state.bitsandbytes__nf4";
  const auto rejects = [&](const std::string& words) {
    tensors.write(directory.file("nf4/model.safetensors"));
    const SafetensorsDirectory damaged(directory.file("nf4"));
    const Refusal refused = refusal([&] { find_nf4(damaged, module); });
    INFO(refused.text);
    CHECK(refused.code == ExitCode::kData);
    CHECK(refused.text.find(words) != std::string::npos);
    CHECK(refused.text.find(module) != std::string::npos);
  };
  const auto set_state = [&](const std::string& text) { tensors.set_text(state, text); };
  SECTION("a shape that the bytes do not have") {
    set_state(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [24, 18], )"
              R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05})");
    rejects("expected U8 with");
  }
  SECTION("a shape that overflows") {
    set_state(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16",)"
              R"( "shape": [4294967296, 4294967296, 16]})");
    rejects("not a matrix that can exist");
  }
  SECTION("an unknown key") {
    set_state(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [24, 16],)"
              R"( "surprise": 1})");
    rejects("surprise");
  }
  SECTION("a block size of 48") {
    set_state(R"({"quant_type": "nf4", "blocksize": 48, "dtype": "bfloat16", "shape": [24, 16]})");
    rejects("power of two");
  }
  SECTION("plain keys with nested tables") {
    set_state(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [24, 16]})");
    rejects("absmax");
  }
  SECTION("another table") {
    tensors.bytes.at(weight + ".quant_map")[3] = std::byte{0};
    rejects("table of values");
  }
  SECTION("a missing nested table") {
    tensors.specs.erase(weight + ".nested_absmax");
    rejects("nested tables are missing");
  }
  SECTION("a scale that is not finite") {
    auto& bytes = tensors.bytes.at(weight + ".nested_absmax");
    bytes[2] = std::byte{0xc0};
    bytes[3] = std::byte{0x7f};
    rejects("not finite");
  }
  SECTION("a state under another type's name") {
    const std::vector<std::byte> text = tensors.bytes.at(state);
    tensors.specs.erase(state);
    const std::string type = GENERATE("fp4", "int8");
    const std::string name = weight + ".quant_state.bitsandbytes__" + type;
    tensors.specs[name] = {name, DType::kU8, {static_cast<int64_t>(text.size())}};
    tensors.bytes[name] = text;
    rejects(type == "fp4" ? "quant_type is not the fp4 of its name" : "graft reads nf4 and fp4");
  }
  SECTION("two states") {
    const std::string name = weight + ".quant_state.bitsandbytes__fp4";
    tensors.specs[name] = {name, DType::kU8, tensors.specs.at(state).shape};
    tensors.bytes[name] = tensors.bytes.at(state);
    rejects("second quant_state");
  }
}

TEST_CASE("nf4 checkpoint: packed bytes stored as another type read the same",
          "[adapters][quantize]") {
  // bitsandbytes' quant_storage: the same bytes, viewed as bfloat16 of half as many values.
  const TempDir directory;
  copy_directory(kGolden + "nf4", directory.file("nf4"));
  Tensors tensors(directory.file("nf4/model.safetensors"));
  const std::string module = "model.layers.0.mlp.up_proj", weight = module + ".weight";
  TensorSpec& spec = tensors.specs.at(weight);
  spec.dtype = DType::kBF16;
  spec.shape[0] /= 2;
  tensors.write(directory.file("nf4/model.safetensors"));
  const SafetensorsDirectory stored(directory.file("nf4")), plain(kGolden + "nf4");
  std::vector<float> ours, expected;
  const auto first = find_nf4(stored, module), second = find_nf4(plain, module);
  decode_range(first->view(), 0, first->count(), ours);
  decode_range(second->view(), 0, second->count(), expected);
  CHECK(ours == expected);
}

TEST_CASE("checkpoints: shards stay shards, with an index", "[adapters][quantize]") {
  const TempDir directory;
  const std::string model = directory.file("model");
  copy_directory(kGolden + "base", model);
  const Tensors tensors(kGolden + "base/model.safetensors");
  Tensors first = tensors, second = tensors;
  Json map = Json::object();
  size_t i = 0;
  for (const auto& [name, spec] : tensors.specs) {
    const bool in_first = i++ % 2 == 0;
    (in_first ? second : first).specs.erase(name);
    map.set(name,
            in_first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors");
  }
  first.write(model + "/model-00001-of-00002.safetensors");
  second.write(model + "/model-00002-of-00002.safetensors");
  remove_file(model + "/model.safetensors");
  write_file_atomically(
      model + "/model.safetensors.index.json",
      dump_json(Json::object({{"metadata", Json::object()}, {"weight_map", map}})));
  merge_adapter({model, kGolden + "adapter", directory.file("a"), MergeBase::kAuto});
  merge_adapter({kGolden + "base", kGolden + "adapter", directory.file("b"), MergeBase::kAuto});
  quantize_directory(model, directory.file("q"), {});
  const SafetensorsDirectory sharded(directory.file("a")), whole(directory.file("b"));
  CHECK(sharded.files().size() == 2);
  CHECK(sharded.names() == whole.names());
  for (const std::string& name : whole.names()) CHECK(same_bytes(sharded, whole, name));
  CHECK(SafetensorsDirectory(directory.file("q")).names() ==
        SafetensorsDirectory(kGolden + "nf4").names());
}

TEST_CASE("graft-adapter: the commands print JSON and use the exit codes", "[adapters][cli]") {
  const TempDir directory;
  using graft::test::run;
  const auto inspect = run({"graft-adapter", "inspect", kGolden + "adapter", "--json"});
  REQUIRE(inspect.exit_code == 0);
  const Json adapter = parse_json(inspect.out, "stdout");
  CHECK(adapter.at("modules").size() == 6);
  CHECK(adapter.at("parameters").as_int() == 2 * (2 * (24 + 16) + 4 * 32 + 4 * 32));
  const auto merged = run({"graft-adapter", "merge", "--model", kGolden + "base", "--adapter",
                           kGolden + "adapter", "--out", directory.file("m"), "--json"});
  REQUIRE(merged.exit_code == 0);
  CHECK(parse_json(merged.out, "stdout").at("merged_tensors").as_int() == 6);
  const auto quantized =
      run({"graft-adapter", "quantize", kGolden + "base", "--out", directory.file("q"), "--json"});
  REQUIRE(quantized.exit_code == 0);
  CHECK(parse_json(quantized.out, "stdout").at("quantized_tensors").as_int() == 14);
  const auto wrong =
      run({"graft-adapter", "merge", "--model", kGolden + "base", "--adapter", kGolden + "adapter",
           "--out", directory.file("m2"), "--merge-base", "w61"});
  CHECK(wrong.exit_code == 2);
  CHECK(wrong.err.find("did you mean \"w16\"") != std::string::npos);
  const auto missing = run({"graft-adapter", "inspect", directory.file("none")});
  CHECK(missing.exit_code == 74);
}

TEST_CASE("checkpoint: of several pieces that fail, the first one's error is raised",
          "[adapters]") {
  const auto fails_from = [](int64_t first) {
    try {
      graft::adapters::for_each_piece(5 * graft::adapters::kPieceValues + 1,
                                      [&](int64_t piece, int64_t, int64_t) {
                                        if (piece >= first)
                                          throw std::runtime_error(std::to_string(piece));
                                      });
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  CHECK(fails_from(0) == "0");
  CHECK(fails_from(2) == "2");
  CHECK(fails_from(6) == "none");
}
