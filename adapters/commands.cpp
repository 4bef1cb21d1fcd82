#include "adapters/commands.h"

#include <cmath>
#include <cstdio>
#include <string>

#include "adapters/fit.h"
#include "adapters/merge.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/peft.h"
#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "kernels/gemm.h"

namespace graft::adapters {
namespace {

void print(const Json& value) {
  std::printf("%s\n", dump_json(value).c_str());
}

// |scale * B * A| in the Frobenius norm through the r x r products: trace((B^T B)(A A^T)).
double delta_norm(const AdapterModule& module) {
  const int64_t r = module.rank;
  std::vector<float> bb(static_cast<size_t>(r * r)), aa(static_cast<size_t>(r * r));
  const graft_status b_status =
      graft_gemm_f32(GRAFT_T, GRAFT_N, r, r, module.out, 1.0f, module.b.data(), r, module.b.data(),
                     r, 0.0f, bb.data(), r);
  const graft_status a_status =
      graft_gemm_f32(GRAFT_N, GRAFT_T, r, r, module.in, 1.0f, module.a.data(), module.in,
                     module.a.data(), module.in, 0.0f, aa.data(), r);
  if (b_status != GRAFT_OK || a_status != GRAFT_OK) {
    fail(ExitCode::kBug, graft_last_error(), module.name);
  }
  double trace = 0;
  for (size_t i = 0; i < bb.size(); ++i) {
    trace += static_cast<double>(bb[i]) * static_cast<double>(aa[i]);  // both are symmetric
  }
  return std::fabs(module.scale) * std::sqrt(std::max(trace, 0.0));
}

Json module_json(const AdapterModule& module) {
  return Json::object({{"name", module.name},
                       {"rank", module.rank},
                       {"in", module.in},
                       {"out", module.out},
                       {"scale", module.scale},
                       {"delta_norm", module.all_experts ? Json() : Json(delta_norm(module))}});
}

int64_t parameters_of(const AdapterModule& module) {
  return module.rank * (module.in + module.out) + static_cast<int64_t>(module.magnitude.size());
}

Json inspect_json(const Adapter& adapter) {
  Json modules = Json::array();
  int64_t parameters = 0;
  for (const AdapterModule& module : adapter.modules) {
    modules.push_back(module_json(module));
    parameters += parameters_of(module);
  }
  Json saved = Json::array();
  for (const SavedTensor& tensor : adapter.saved) {
    Json shape = Json::array();
    for (const int64_t size : tensor.shape) shape.push_back(size);
    saved.push_back(Json::object({{"name", tensor.name}, {"shape", shape}}));
    parameters += static_cast<int64_t>(tensor.values.size());
  }
  Json token_rows = Json::array();
  for (const TokenRows& rows : adapter.rows) {
    Json ids = Json::array();
    for (const int64_t id : rows.ids) ids.push_back(id);
    token_rows.push_back(
        Json::object({{"name", rows.name}, {"width", rows.width}, {"ids", std::move(ids)}}));
    parameters += static_cast<int64_t>(rows.values.size());
  }
  Json targets = Json::array();
  for (const std::string& name : adapter.spec.target_modules) targets.push_back(name);
  Json metadata = Json::object();
  for (const auto& [key, value] : adapter.metadata) metadata.set(key, value);
  return Json::object({{"r", adapter.spec.r},
                       {"lora_alpha", adapter.spec.lora_alpha},
                       {"use_rslora", adapter.spec.use_rslora},
                       {"use_dora", adapter.spec.use_dora},
                       {"target_modules", targets},
                       {"base_model_name_or_path", adapter.spec.base_model_name_or_path},
                       {"parameters", parameters},
                       {"sha256", adapter.sha256},
                       {"metadata", metadata},
                       {"modules", modules},
                       {"saved", saved},
                       {"rows", token_rows}});
}

void print_adapter(const Adapter& adapter) {
  std::vector<std::vector<std::string>> rows = {
      {"module", "rank", "in", "out", "scale", "|scale B A|"}};
  int64_t parameters = 0;
  for (const AdapterModule& module : adapter.modules) {
    parameters += parameters_of(module);
    rows.push_back({module.name, std::to_string(module.rank), std::to_string(module.in),
                    std::to_string(module.out), format_fixed(module.scale, 4),
                    // Those of all experts at once are told apart only beside their model.
                    module.all_experts ? "--model DIR" : format_fixed(delta_norm(module), 4)});
  }
  for (const SavedTensor& tensor : adapter.saved) {
    parameters += static_cast<int64_t>(tensor.values.size());
    rows.push_back({tensor.name, "whole", shape_text(tensor.shape), "", "", ""});
  }
  for (const TokenRows& table : adapter.rows) {
    parameters += static_cast<int64_t>(table.values.size());
    rows.push_back(
        {table.name, "rows",
         shape_text(std::vector<int64_t>{static_cast<int64_t>(table.ids.size()), table.width}), "",
         "", ""});
  }
  std::printf("%s adapter: r %lld, alpha %s%s, %s parameters in %zu modules\n",
              adapter.spec.use_dora ? "DoRA" : "LoRA", static_cast<long long>(adapter.spec.r),
              format_fixed(adapter.spec.lora_alpha, 2).c_str(),
              adapter.spec.use_rslora ? " (rslora: alpha / sqrt(r))" : "",
              format_count(parameters).c_str(),
              adapter.modules.size() + adapter.saved.size() + adapter.rows.size());
  std::printf("base    %s\nsha256  %s\n\n%s", adapter.spec.base_model_name_or_path.c_str(),
              adapter.sha256.c_str(), format_table("<>>>>>", rows).c_str());
}

int run_inspect(const Args& args) {
  std::string directory = args.positionals().at(0);
  if (!directory_exists(directory)) directory = directory_name(directory);
  Adapter adapter = read_peft(directory);
  if (args.has("--model")) {
    adapter = fit_adapter(std::move(adapter), SafetensorsDirectory(args.text("--model")));
  }
  if (args.json()) {
    print(inspect_json(adapter));
  } else {
    print_adapter(adapter);
  }
  return 0;
}

int run_merge(const Args& args) {
  MergeOptions options;
  options.model = args.need("--model");
  options.adapter = args.need("--adapter");
  options.out = args.need("--out");
  options.base = parse_merge_base(args.text("--merge-base"));
  const MergeReport report = merge_adapter(options);
  if (args.json()) {
    print(Json::object({{"out", options.out},
                        {"merge_base", merge_base_name(report.base)},
                        {"merged_tensors", report.merged_tensors},
                        {"saved_tensors", report.saved_tensors},
                        {"token_rows", report.token_rows},
                        {"new_rows", report.new_rows},
                        {"own_tokenizer", report.own_tokenizer},
                        {"copied_tensors", report.copied_tensors},
                        {"bytes", report.bytes},
                        {"relative_change", report.relative_change},
                        {"most_changed", report.most_changed},
                        {"most_changed_value", report.most_changed_value},
                        {"trained_base_distance", report.trained_base_distance},
                        {"rounding_share", report.rounding_share}}));
    return 0;
  }
  std::printf("merged %lld weights onto the %s base, copied %lld tensors: %s in %s\n",
              static_cast<long long>(report.merged_tensors),
              std::string(merge_base_name(report.base)).c_str(),
              static_cast<long long>(report.copied_tensors), format_bytes(report.bytes).c_str(),
              options.out.c_str());
  if (report.token_rows > 0 || report.new_rows > 0) {
    std::printf("%lld rows of tokens are the adapter's; the vocabulary grew by %lld\n",
                static_cast<long long>(report.token_rows), static_cast<long long>(report.new_rows));
  }
  if (report.own_tokenizer || report.new_rows > 0) {
    std::printf("the tokenizer is the %s\n", report.own_tokenizer
                                                 ? "adapter's"
                                                 : "model's: the adapter's directory has none, and "
                                                   "the text of new tokens is not read as them");
  }
  std::printf("the merged weights moved by %.3g of their size (most: %s, %.3g);\n",
              report.relative_change, report.most_changed.c_str(), report.most_changed_value);
  std::printf("rounding to the base's type changed the adapter's part by %.3g of its size\n",
              report.rounding_share);
  if (report.trained_base_distance > 0) {
    std::printf(
        "not equal to the 4-bit model that the adapter was trained on: these base weights are "
        "%.3g of their size away from it (--merge-base dequant merges onto that one)\n",
        report.trained_base_distance);
  }
  return 0;
}

int run_quantize(const Args& args) {
  const std::string model = args.positionals().at(0), out = args.need("--out");
  if (args.flag("--decode")) {
    decode_directory(model, out);
    if (args.json()) print(Json::object({{"out", out}}));
    return 0;
  }
  Nf4Options options;
  const std::string type = args.text("--quant-type");
  constexpr std::string_view kTypes[] = {"nf4", "fp4"};
  const auto known = quant_type_of(type);
  if (!known) fail(ExitCode::kUsage, unknown_name("quant type", type, kTypes), "--quant-type");
  options.type = *known;
  options.block_size = static_cast<int>(args.integer("--blocksize", 32, 4096));
  if ((options.block_size & (options.block_size - 1)) != 0) {
    fail(
        ExitCode::kUsage,
        "--blocksize must be a power of two in 32..4096, got " + std::to_string(options.block_size),
        "--blocksize", "use 64, the default of bitsandbytes");
  }
  options.double_quant = !args.flag("--no-double-quant");
  const QuantizeReport report = quantize_directory(model, out, options);
  if (args.json()) {
    print(Json::object({{"out", out},
                        {"quantized_tensors", report.quantized_tensors},
                        {"copied_tensors", report.copied_tensors},
                        {"weights", report.weights},
                        {"bytes_before", report.bytes_before},
                        {"bytes_after", report.bytes_after},
                        {"relative_error", report.relative_error}}));
    return 0;
  }
  std::printf("%lld matrices (%s weights) to %s, %lld tensors copied: %s -> %s in %s\n",
              static_cast<long long>(report.quantized_tensors),
              format_count(report.weights).c_str(), type == "fp4" ? "FP4" : "NF4",
              static_cast<long long>(report.copied_tensors),
              format_bytes(report.bytes_before).c_str(), format_bytes(report.bytes_after).c_str(),
              out.c_str());
  std::printf("the decoded weights differ from the originals by %.4f of their size\n",
              report.relative_error);
  return 0;
}

}  // namespace

std::vector<Command> adapter_commands() {
  return {
      {"inspect",
       "DIR|FILE",
       1,
       1,
       "rank, scale and size of every module of an adapter",
       {{"--model", "DIR", "", "also check that the adapter fits this model"}},
       {"graft adapter inspect out/adapter --model models/base"},
       run_inspect},
      {"merge",
       "",
       0,
       0,
       "fold an adapter into its base: a plain Hugging Face directory",
       {{"--model", "DIR", "", "the base: 16-bit, 32-bit or bitsandbytes 4-bit"},
        {"--adapter", "DIR", "", "the PEFT directory"},
        {"--out", "DIR", "", "the new directory"},
        {"--merge-base", "w16|dequant|auto", "auto",
         "onto the 16-bit weights, or the decoded 4-bit ones that QLoRA trained on"}},
       {"graft adapter merge --model models/base --adapter out/adapter --out merged"},
       run_merge},
  };
}

std::vector<Command> quantize_commands() {
  return {
      {"quantize",
       "DIR",
       1,
       1,
       "a 4-bit checkpoint that bitsandbytes loads",
       {{"--out", "DIR", "", "the new directory"},
        {"--quant-type", "nf4|fp4", "nf4", "the 4-bit type; nf4 loses less"},
        {"--blocksize", "N", "64", "weights that share a scale: a power of two in 32..4096"},
        {"--no-double-quant", "", "", "keep float32 scales: 0.37 bit more per weight"},
        {"--decode", "", "", "the other way: a 4-bit checkpoint to plain 16-bit weights"}},
       {"graft quantize models/base --out models/base-nf4"},
       run_quantize},
  };
}

}  // namespace graft::adapters
