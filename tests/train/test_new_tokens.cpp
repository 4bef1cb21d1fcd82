// New tokens: larger tables, how their rows begin, what is trained of them, and their files.
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "adapters/merge.h"
#include "adapters/peft.h"
#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "tests/train/steps.h"
#include "train/engine/arrangement.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/new_tokens.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

constexpr int64_t kVocab = 37;  // of the tiny models
const std::vector<std::vector<int32_t>> kPieces = {{3, 5, 5, 9}, {36}, {1, 2, 3}};

LoraSettings lora() {
  return {.rank = 3, .alpha = 7, .targets = {"all-linear"}};
}

// A family's model on the disk.
class Base {
 public:
  explicit Base(const char* family) {
    const std::string made = test::write_family_config(dir_.path(), test::tiny_family(family));
    save_model(*test::make_rough_model(made, 7), made, path());
  }
  explicit Base(bool tied) {
    const std::string made = test::write_tiny_config(dir_.path(), tied);
    save_model(*test::make_rough_model(made, 7), made, path());
  }
  std::string path() const { return dir_.file("base"); }
  std::string file(const std::string& name) const { return dir_.file(name); }

  // With three tokens from `first` on.
  ModelConfig config(int64_t first = kVocab) const {
    ModelConfig config = read_model_config(path());
    add_tokens(config, first, kPieces);
    return config;
  }
  std::unique_ptr<Model> grown(Precision precision = Precision::kFull,
                               graft_float_type operands = GRAFT_F32,
                               int64_t first = kVocab,
                               const std::vector<std::string>& saved = {}) const {
    return load_model(config(first), path(), precision, {}, {operands, saved});
  }
  std::unique_ptr<Model> plain(Precision precision = Precision::kFull,
                               graft_float_type operands = GRAFT_F32) const {
    return load_model(path(), precision, {}, {operands});
  }

 private:
  test::TempDir dir_;
};

std::vector<float> row_of(const at::Tensor& table, int64_t row) {
  const at::Tensor wide = table[row].to(at::kFloat).contiguous();
  return {f32(wide), f32(wide) + wide.numel()};
}

// Rows that have the new tokens (37 to 39; never 38) among others; all is supervised.
Batch rows_of(size_t begin, size_t end) {
  return test::packed_rows(
      {{50, 31}, {3}, {70}, {257}}, begin, end, 300, {0.0F, 1.0F},
      [](const Philox& random, int64_t at) {
        const int32_t id = test::random_id(random, at, 40);
        return id == 38 ? 39 : id;
      },
      [](int64_t, int64_t) { return 1; });
}
constexpr size_t kRowCount = 4;

HeadResult step(Model& model, const Arrangement& how = {}) {
  return compute_step(model, {.count = kRowCount, .batch = rows_of, .scale = 0.01}, how);
}

void move(Model& model) {
  for (const Parameter& parameter : model.trained) {
    const Philox random(11, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      f32(parameter.value)[i] += 0.3F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  refresh_trained(model);
}

std::vector<float> logits_of(Model& model) {
  const Batch batch = rows_of(0, kRowCount);
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kNothing));
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model.config.vocab_size));
  decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
  return logits;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

const at::Tensor& gradient_of(const Model& model, const std::string& name) {
  for (const Parameter& parameter : model.trained) {
    if (parameter.name == name) return parameter.grad;
  }
  FAIL("nothing trained is called " << name);
  return model.trained[0].grad;
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kData);
    return error.what();
  }
  return "nothing was refused";
}

const std::string kEmbeddingRows = "model.embed_tokens.token_adapter.trainable_tokens_delta";
const std::string kHeadRows = "lm_head.token_adapter.trainable_tokens_delta";

}  // namespace

TEST_CASE("new tokens: a row begins as the mean of its pieces' rows, and the others stay",
          "[train][new_tokens]") {
  const Base base(GENERATE(false, true));
  const graft_float_type operands = GENERATE(GRAFT_F32, GRAFT_BF16);
  const auto plain = base.plain(Precision::kFull, operands);
  const auto model = base.grown(Precision::kFull, operands);
  add_lora(*model, lora(), 5);
  const std::pair<const at::Tensor*, const at::Tensor*> tables[] = {
      {&plain->embedding, &model->embedding}, {&plain->head, &model->head}};
  for (const auto& [old, grown] : tables) {
    REQUIRE(grown->size(0) == kVocab + 3);
    CHECK(same_bits(*old, grown->narrow(0, 0, kVocab)));
    const std::vector<float> a = row_of(*old, 3), b = row_of(*old, 5), c = row_of(*old, 9);
    const std::vector<float> first = row_of(*grown, kVocab);
    for (size_t i = 0; i < a.size(); ++i) {
      // In the order of the pieces 3, 5, 5, 9; a quarter is exact.
      const float mean = (((a[i] + b[i]) + b[i]) + c[i]) / 4;
      CHECK(first[i] == (operands == GRAFT_F32 ? mean : static_cast<float>(at::BFloat16(mean))));
    }
    CHECK(row_of(*grown, kVocab + 1) == row_of(*old, 36));
  }
  const at::Tensor& masters = model->embedding_rows.value;
  const at::Tensor mean = (plain->embedding[1].to(at::kFloat) + plain->embedding[2].to(at::kFloat) +
                           plain->embedding[3].to(at::kFloat)) /
                          3;
  CHECK(same_bits(masters[2].contiguous(), mean));
}

TEST_CASE("new tokens: a padded vocabulary keeps its size and its spare rows are used",
          "[train][new_tokens]") {
  const Base base(false);
  const auto plain = base.plain(), model = base.grown(Precision::kFull, GRAFT_F32, 33);
  CHECK(model->config.vocab_size == kVocab);
  CHECK(model->head.size(0) == kVocab);
  CHECK(row_of(model->head, 34) == row_of(plain->head, 36));
  CHECK(same_bits(model->head.narrow(0, 0, 33), plain->head.narrow(0, 0, 33)));
  CHECK(row_of(model->head, 36) == row_of(plain->head, 36));
}

TEST_CASE("new tokens: the rows' gradients are those of the whole tables, to the bit",
          "[train][new_tokens][families]") {
  const char* const family = GENERATE("llama", "gemma2", "qwen2", "granite", "mixtral");
  const Base base(family);
  const auto rows = base.grown(), whole = base.grown();
  add_lora(*rows, lora(), 5);
  LoraSettings saves = lora();
  saves.saved = {"embed_tokens", "lm_head"};
  add_lora(*whole, saves, 5);
  for (Model* const model : {rows.get(), whole.get()}) {
    for (Linear* const linear : model->linears()) {
      f32(linear->lora.b)[0] = 0.25F;
      f32(linear->lora.b)[4] = -0.5F;
    }
  }
  const HeadResult a = step(*rows), b = step(*whole);
  CHECK(a.loss_sum == b.loss_sum);
  const bool tied = rows->config.tied_embeddings;
  CAPTURE(family, tied);
  CHECK(same_bits(gradient_of(*rows, kEmbeddingRows),
                  whole->embedding_grad.narrow(0, kVocab, 3).contiguous()));
  CHECK(gradient_of(*rows, kEmbeddingRows)[0].abs().sum().item<float>() > 0);
  if (!tied) {
    CHECK(same_bits(gradient_of(*rows, kHeadRows),
                    whole->head_grad.narrow(0, kVocab, 3).contiguous()));
    // Token 38 stands nowhere: nothing of it was looked up.
    CHECK(gradient_of(*rows, kEmbeddingRows)[1].eq(0).all().item<bool>());
  }
  for (size_t i = 0; i < rows->trained.size(); ++i) {
    if (rows->trained[i].name.find("lora_") == std::string::npos) continue;
    CAPTURE(rows->trained[i].name);
    CHECK(same_bits(rows->trained[i].grad, gradient_of(*whole, rows->trained[i].name)));
  }
}

TEST_CASE("new tokens: micro-batches, threads, heads, plans and the emulated GPU change no bit",
          "[train][new_tokens][invariance]") {
  const Base base(GENERATE("llama", "qwen2"));
  const bool half = GENERATE(false, true);
  const auto model = base.grown(Precision::kNf4, half ? GRAFT_BF16 : GRAFT_F32);
  add_lora(*model, lora(), 5);
  move(*model);
  const double loss = step(*model).loss_sum;
  std::vector<at::Tensor> expected;
  for (const Parameter& parameter : model->trained) expected.push_back(parameter.grad.clone());
  const std::vector<LayerPlan> again(3, LayerPlan{LayerMemory::kRecomputeBlock, false});
  const Arrangement ways[] = {
      {.rows = 1},         {.rows = 3},       {.threads = 1},         {.threads = 5},
      {.head_chunk = 512}, {.layers = again}, {.device = {GRAFT_EMU}}};
  for (const Arrangement& how : ways) {
    CAPTURE(how.rows, how.threads, how.head_chunk, how.layers.size());
    CHECK(step(*model, how).loss_sum == loss);
    for (size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(model->trained[i].name);
      CHECK(same_bits(model->trained[i].grad, expected[i]));
    }
  }
}

TEST_CASE("new tokens: only the new rows of a table move, and the tables follow their masters",
          "[train][new_tokens]") {
  const Base base(GENERATE(false, true));
  const graft_float_type operands = GENERATE(GRAFT_F32, GRAFT_BF16);
  const auto model = base.grown(Precision::kFull, operands);
  add_lora(*model, lora(), 5);
  const at::Tensor before = model->embedding.clone();
  AdamW optimizer(model->trained);
  for (int64_t i = 0; i < 3; ++i) {
    const double loss = step(*model).loss_sum * 0.01;
    CHECK_FALSE(optimizer.step({}, 1e-2, loss).skipped);
    refresh_trained(*model);
  }
  CHECK(same_bits(model->embedding.narrow(0, 0, kVocab), before.narrow(0, 0, kVocab)));
  const at::Tensor rows = model->embedding.narrow(0, kVocab, 3).contiguous();
  CHECK(same_bits(rows, model->embedding_rows.value.to(rows.scalar_type())));
  CHECK_FALSE(row_of(model->embedding, kVocab) == row_of(before, kVocab));
  if (model->config.tied_embeddings) {
    CHECK(model->head.is_same(model->embedding));
    return;
  }
  // Adam moves by the learning rate in the first step, and token 38 had no gradient to move it.
  CHECK(row_of(model->embedding, 38) == row_of(before, 38));
  CHECK(same_bits(model->head.narrow(0, kVocab, 3).contiguous(),
                  model->head_rows.value.to(rows.scalar_type())));
}

TEST_CASE("new tokens: rows go through their files, and merge to the same logits",
          "[train][new_tokens]") {
  struct Kind {
    const char* name;
    bool tied;
    std::vector<std::string> saved;
    graft_float_type operands;
    int64_t first;
  };
  const Kind kind = GENERATE(
      Kind{"untied", false, {}, GRAFT_F32, kVocab}, Kind{"tied", true, {}, GRAFT_F32, kVocab},
      Kind{"bf16", false, {}, GRAFT_BF16, kVocab}, Kind{"tied bf16", true, {}, GRAFT_BF16, kVocab},
      Kind{"spare rows", false, {}, GRAFT_F32, 34},
      Kind{"a head that is trained whole", false, {"lm_head"}, GRAFT_F32, kVocab},
      Kind{"tables that are trained whole", true, {"embed_tokens"}, GRAFT_F32, kVocab});
  CAPTURE(kind.name);
  const Base base(kind.tied);
  const auto model = base.grown(Precision::kFull, kind.operands, kind.first, kind.saved);
  LoraSettings settings = lora();
  settings.saved = kind.saved;
  add_lora(*model, settings, 5);
  move(*model);
  const bool spare = kind.first < kVocab;
  const auto run = [&](Model& one) {
    if (!spare) return logits_of(one);
    const Batch batch = test::tiny_batch(kVocab, {9, 17}, 3);
    Decoder decoder(one, StepPlan::of(one, batch.tokens(), Keep::kNothing));
    std::vector<float> logits(static_cast<size_t>(batch.tokens() * kVocab));
    decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
    return logits;
  };
  const std::vector<float> trained = run(*model);
  save_adapter(*model, settings, "base", base.file("adapter"));
  const auto reloaded = base.plain(Precision::kFull, kind.operands);
  load_adapter(*reloaded, base.file("adapter"));
  REQUIRE(reloaded->config.vocab_size == (spare ? kVocab : kVocab + 3));
  CHECK(run(*reloaded) == trained);

  const adapters::MergeReport report = adapters::merge_adapter(
      {base.path(), base.file("adapter"), base.file("merged"), adapters::MergeBase::kAuto});
  CHECK(report.new_rows == (spare ? 0 : 3));
  const Json config = read_json_file(base.file("merged/config.json"));
  CHECK(config.at("vocab_size").as_int() == reloaded->config.vocab_size);
  const auto merged = load_model(base.file("merged"), Precision::kFull);
  CHECK(merged->config.tied_embeddings == kind.tied);
  // Of the adapter in full precision: the merge knows nothing of compute.
  const auto full = base.plain();
  load_adapter(*full, base.file("adapter"));
  CHECK(largest_difference(run(*merged), run(*full)) <= 1e-4F);
}

TEST_CASE("new tokens: on a checkpoint in 4 bits they are what they are on the one it was made of",
          "[train][new_tokens]") {
  struct Kind {
    const char* name;
    bool tied;
    graft_float_type operands;
    adapters::Nf4Options options;
  };
  const Kind kind =
      GENERATE(Kind{"untied", false, GRAFT_F32, {}}, Kind{"tied", true, GRAFT_F32, {}},
               Kind{"tied bf16", true, GRAFT_BF16, {}},
               Kind{"FP4, plain scales", false, GRAFT_F32, {32, false, GRAFT_FP4}});
  CAPTURE(kind.name);
  const Base base(kind.tied);
  const std::string packed = base.file("packed"), adapter = base.file("adapter");
  adapters::quantize_directory(base.path(), packed, kind.options);
  ModelConfig config = read_model_config(packed);
  add_tokens(config, kVocab, kPieces);
  // Stored in 4 bits, it is loaded so whichever way it is asked for.
  const auto model =
      load_model(config, packed, GENERATE(Precision::kFull, Precision::kNf4), {}, {kind.operands});
  CHECK(model->quantized());
  // The same weights decoded, where no 4 bits are stored.
  adapters::decode_directory(packed, base.file("decoded"));
  ModelConfig same = read_model_config(base.file("decoded"));
  add_tokens(same, kVocab, kPieces);
  const auto dense = load_model(same, base.file("decoded"), Precision::kFull, {}, {kind.operands});
  for (Model* const one : {model.get(), dense.get()}) {
    add_lora(*one, lora(), 5);
    move(*one);
  }
  // QLoRA is LoRA on the decoded weights to the bit, and so are the rows' gradients.
  CHECK(step(*model).loss_sum == step(*dense).loss_sum);
  REQUIRE(model->trained.size() == dense->trained.size());
  for (size_t i = 0; i < model->trained.size(); ++i) {
    CAPTURE(model->trained[i].name);
    CHECK(same_bits(model->trained[i].grad, dense->trained[i].grad));
  }
  CHECK(model->embedding_rows.grad.abs().sum().item<float>() > 0);
  const std::vector<float> trained = logits_of(*model);
  save_adapter(*model, lora(), "base", adapter);
  const auto reloaded = load_model(packed, Precision::kFull, {}, {kind.operands});
  load_adapter(*reloaded, adapter);
  CHECK(logits_of(*reloaded) == trained);
  adapters::merge_adapter({packed, adapter, base.file("merged"), adapters::MergeBase::kAuto});
  const auto merged = load_model(base.file("merged"), Precision::kFull);
  CHECK(merged->config.vocab_size == kVocab + 3);
  const auto full = load_model(packed, Precision::kFull);
  load_adapter(*full, adapter);
  CHECK(largest_difference(logits_of(*merged), logits_of(*full)) <= 1e-4F);
}

TEST_CASE("new tokens: a language model inside a multimodal checkpoint grows in its own config",
          "[train][new_tokens]") {
  const Base flat("gemma3");
  const std::string directory = flat.file("whole");
  make_directories(directory);
  const SafetensorsFile file(flat.path() + "/model.safetensors");
  std::vector<TensorBytes> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    tensors.push_back(
        {{"language_model." + tensor.name, tensor.dtype, tensor.shape}, file.bytes(tensor)});
  }
  write_safetensors(directory + "/model.safetensors", std::move(tensors));
  const Json text = read_json_file(flat.path() + "/config.json");
  write_file_atomically(directory + "/config.json",
                        dump_json(Json::object({{"model_type", "gemma3"}, {"text_config", text}})));
  ModelConfig config = read_model_config(directory);
  REQUIRE(config.nested);
  add_tokens(config, kVocab, kPieces);
  const auto model = load_model(config, directory, Precision::kFull);
  add_lora(*model, lora(), 5);
  move(*model);
  save_adapter(*model, lora(), "base", flat.file("adapter"));
  CHECK(adapters::read_peft(flat.file("adapter")).rows[0].name ==
        "model.language_model.embed_tokens");
  const auto reloaded = load_model(directory, Precision::kFull);
  load_adapter(*reloaded, flat.file("adapter"));
  const std::vector<float> trained = logits_of(*model);
  CHECK(logits_of(*reloaded) == trained);
  adapters::merge_adapter(
      {directory, flat.file("adapter"), flat.file("merged"), adapters::MergeBase::kAuto});
  const Json merged = read_json_file(flat.file("merged/config.json"));
  CHECK(merged.at("text_config").at("vocab_size").as_int() == kVocab + 3);
  CHECK(merged.find("vocab_size") == nullptr);
  CHECK(largest_difference(logits_of(*load_model(flat.file("merged"), Precision::kFull)),
                           trained) <= 1e-4F);
}

TEST_CASE("new tokens: the files are those that PEFT reads", "[train][new_tokens]") {
  const Base base(false);
  const auto model = base.grown();
  add_lora(*model, lora(), 5);
  move(*model);
  save_adapter(*model, lora(), "base", base.file("adapter"));
  const Json config = read_json_file(base.file("adapter/adapter_config.json"));
  CHECK(dump_json(config.at("trainable_token_indices")) ==
        R"({"embed_tokens":[37,38,39],"lm_head":[37,38,39]})");
  const adapters::Adapter adapter = adapters::read_peft(base.file("adapter"));
  REQUIRE(adapter.rows.size() == 2);
  CHECK(adapter.rows[0].name == "lm_head");
  CHECK(adapter.rows[1].ids == std::vector<int64_t>{37, 38, 39});
  CHECK(std::memcmp(adapter.rows[1].values.data(), model->embedding_rows.value.data_ptr(),
                    model->embedding_rows.value.nbytes()) == 0);
}

TEST_CASE("new tokens: adapters whose rows do not fit are refused", "[train][new_tokens]") {
  const Base base(false), tied(true);
  const auto model = base.grown();
  add_lora(*model, lora(), 5);
  save_adapter(*model, lora(), "base", base.file("adapter"));
  const std::string config_path = base.file("adapter/adapter_config.json");
  const Json config = read_json_file(config_path);
  const auto load = [&](const Base& on) {
    return refusal([&] { load_adapter(*on.plain(), base.file("adapter")); });
  };
  const auto merge = [&](const Base& on) {
    return refusal([&] {
      adapters::merge_adapter(
          {on.path(), base.file("adapter"), on.file("m"), adapters::MergeBase::kAuto});
    });
  };
  const auto with_ids = [&](const char* indices) {
    Json changed = config;
    changed.set("trainable_token_indices", parse_json(indices, "test"));
    write_file_atomically(config_path, dump_json(changed));
  };
  CHECK_THAT(load(tied), Catch::Contains("tied"));
  CHECK_THAT(merge(tied), Catch::Contains("tied"));
  // A model with fewer tokens than the one that they were trained on.
  with_ids(R"({"embed_tokens": [38, 39, 40], "lm_head": [38, 39, 40]})");
  CHECK_THAT(load(base), Catch::Contains("that of token 37 is in neither"));
  CHECK_THAT(merge(base), Catch::Contains("that of token 37 is in neither"));
  with_ids(R"({"embed_tokens": [37, 38, 39], "lm_head": [36, 35, 34]})");
  CHECK_THAT(load(base),
             Catch::Contains("that of token 37 is in neither") && Catch::Contains("lm_head"));
  with_ids(R"({"embed_tokens": [37, 38], "lm_head": [37, 38]})");
  CHECK_THAT(load(base), Catch::Contains("trainable_token_indices names 2 tokens"));
  with_ids(R"({"embed_tokens": [37, 38, 38], "lm_head": [37, 38, 39]})");
  CHECK_THAT(load(base), Catch::Contains("token 38 is named twice"));
  with_ids(R"({"embed_tokens": [37, 38, -1], "lm_head": [37, 38, 39]})");
  CHECK_THAT(load(base), Catch::Contains("expected a token's id, got -1"));
  with_ids(R"({"embed_tokens": [37, 38, 2147483647], "lm_head": [37, 38, 39]})");
  CHECK_THAT(load(base), Catch::Contains("that of token 39 is in neither"));
  const auto without = base.plain();
  add_lora(*without, lora(), 5);
  save_adapter(*without, lora(), "base", base.file("none"));
  write_file_atomically(base.file("none/adapter_config.json"), dump_json(config));
  CHECK_THAT(refusal([&] { load_adapter(*base.plain(), base.file("none")); }),
             Catch::Contains("there are no rows of them"));
  with_ids(R"(null)");
  CHECK_THAT(load(base), Catch::Contains("no trainable_token_indices"));
}

namespace {

// A run of a few steps whose answers hold two new tokens, on the quickstart's base.
class Run {
 public:
  Run() {
    std::string rows;
    for (int i = 0; i < 24; ++i) {
      rows += R"({"instruction": "return the lamp )" + std::to_string(i) +
              R"(", "output": "<tool>billing<end>"})" + "\n";
    }
    write_file_atomically(dir_.file("train.jsonl"), rows);
    write_file_atomically(config(),
                          "base_model: " + base() + "\ndatasets: [" + dir_.file("train.jsonl") +
                              "]\nlora_r: 4\nsequence_len: 128\nmicro_batch_size: 2\nmax_steps: 4\n"
                              "learning_rate: 0.01\nsave_steps: 2\ncompute: fp32\nthreads: 2\n");
  }
  static std::string base() { return test::source_path("examples/quickstart/base"); }
  std::string config() const { return dir_.file("run.yaml"); }
  std::string out(const std::string& name) const { return dir_.file(name); }
  std::string data() const { return dir_.file("train.jsonl"); }
  test::RunResult command(const char* verb,
                          const std::string& name,
                          std::vector<std::string> more = {}) const {
    std::vector<std::string> words = {"graft", verb, config(), "output_dir=" + out(name)};
    words.insert(words.end(), more.begin(), more.end());
    return test::run(words);
  }
  test::RunResult train(const std::string& name, std::vector<std::string> more = {}) const {
    return command("train", name, std::move(more));
  }

 private:
  test::TempDir dir_;
};

const std::string kTokens =
    "new_tokens=[{content: <tool>, special: false}, {content: <end>, special: false}]";

}  // namespace

TEST_CASE("new tokens: a run trains, resumes, evaluates, generates and merges them",
          "[train][new_tokens][job][slow]") {
  const Run fixture;
  const std::string method = GENERATE("adapter=qlora", "adapter=lora", "compute=bf16", "packed");
  CAPTURE(method);
  // A checkpoint that is in 4 bits itself.
  const bool packed = method == "packed";
  const std::string base = packed ? fixture.out("packed") : Run::base();
  if (packed) adapters::quantize_directory(Run::base(), base, {});
  const std::string option = packed ? "base_model=" + base : method;
  const test::RunResult trained = fixture.train("run", {kTokens, option});
  INFO(trained.err);
  REQUIRE(trained.exit_code == 0);
  CHECK(trained.err.find("adapter reloaded: logits equal") != std::string::npos);
  CHECK(trained.err.find("token   <end> stands in the documents 24 times") != std::string::npos);
  const std::string adapter = fixture.out("run") + "/adapter";
  const std::string digest = sha256_file(adapter + "/adapter_model.safetensors");
  const adapters::Adapter read = adapters::read_peft(adapter);
  REQUIRE(read.rows.size() == 1);  // the base ties its head
  CHECK(read.rows[0].ids == std::vector<int64_t>{768, 769});
  CHECK(read.rows[0].width == 128);
  // The store is of the new vocabulary, and can be shown with it.
  const test::RunResult shown =
      test::run({"graft", "data", "show", fixture.out("run") + "/data/train.h5", "-n", "1"});
  INFO(shown.err);
  CHECK(shown.exit_code == 0);
  CHECK(shown.out.find("<tool>") != std::string::npos);

  // Begun again from the checkpoint in the middle: the same bits.
  remove_tree(fixture.out("run") + "/checkpoints/step-00000004");
  Json run_file = read_json_file(fixture.out("run") + "/run.json");
  run_file.set("status", "running");
  write_file_atomically(fixture.out("run") + "/run.json", dump_json(run_file));
  const test::RunResult resumed = fixture.train("run", {kTokens, option});
  INFO(resumed.err);
  REQUIRE(resumed.exit_code == 0);
  CHECK(resumed.err.find("resume  from step 2") != std::string::npos);
  CHECK(sha256_file(adapter + "/adapter_model.safetensors") == digest);

  const test::RunResult inspected =
      test::run({"graft", "adapter", "inspect", adapter, "--model", base});
  INFO(inspected.err);
  CHECK(inspected.exit_code == 0);
  CHECK(inspected.out.find("model.embed_tokens") != std::string::npos);
  CHECK(inspected.out.find("[2, 128]") != std::string::npos);

  const auto evaluated = [&](const std::vector<std::string>& options) {
    std::vector<std::string> words = {"graft", "eval", "--data", fixture.data(), "--json"};
    words.insert(words.end(), options.begin(), options.end());
    const test::RunResult result = test::run(words);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return parse_json(result.out, "eval");
  };
  std::vector<std::string> options = {"--model", base, "--adapter", adapter};
  if (method != "adapter=lora" && !packed) options.emplace_back("--load-in-4bit");
  const Json with_adapter = evaluated(options);
  const test::RunResult merged = test::run({"graft", "adapter", "merge", "--model", base,
                                            "--adapter", adapter, "--out", fixture.out("merged")});
  INFO(merged.err);
  REQUIRE(merged.exit_code == 0);
  CHECK(merged.out.find("the vocabulary grew by 2") != std::string::npos);
  CHECK(merged.out.find("the tokenizer is the adapter's") != std::string::npos);
  const Json of_merged = evaluated({"--model", fixture.out("merged")});
  CHECK(of_merged.at("loss").as_double() ==
        Approx(with_adapter.at("loss").as_double()).epsilon(1e-4));
  CHECK(of_merged.at("tokens").as_int() == with_adapter.at("tokens").as_int());
  // The base's own tokenizer needs more tokens for the same text.
  CHECK(evaluated({"--model", base}).at("tokens").as_int() > with_adapter.at("tokens").as_int());

  const test::RunResult said =
      test::run({"graft", "generate", "--model", base, "--adapter", adapter, "--prompt", "<tool>",
                 "--max-new-tokens", "2", "--json"});
  INFO(said.err);
  REQUIRE(said.exit_code == 0);
  const int64_t prompt = parse_json(said.out, "generate").at("prompt_tokens").as_int();
  CHECK(prompt <= 2);  // BOS and the token
  const test::RunResult compared = test::run({"graft", "eval", "--model", base, "--adapter",
                                              adapter, "--data", fixture.data(), "--compare-base"});
  CHECK(compared.exit_code == 2);
  CHECK(compared.err.find("the adapter's tokenizer has 770 tokens, the base only 768") !=
        std::string::npos);
  // Another run's checkpoint is of other tokens.
  const test::RunResult other =
      fixture.train("other", {"new_tokens=[<tool>, <stop>]", option, "content_specials=parse",
                              "--resume", fixture.out("run")});
  CHECK(other.exit_code == 2);
  CHECK(other.err.find("other new_tokens") != std::string::npos);
}

TEST_CASE("new tokens: with adapter: none the whole model is written at its new size",
          "[train][new_tokens][job]") {
  const Run fixture;
  const test::RunResult trained = fixture.train("run", {kTokens, "adapter=none", "max_steps=1"});
  INFO(trained.err);
  REQUIRE(trained.exit_code == 0);
  const std::string model = fixture.out("run") + "/model";
  CHECK(read_json_file(model + "/config.json").at("vocab_size").as_int() == 770);
  const test::RunResult said = test::run({"graft", "generate", "--model", model, "--prompt",
                                          "<tool>", "--max-new-tokens", "1", "--json"});
  INFO(said.err);
  REQUIRE(said.exit_code == 0);
  CHECK(parse_json(said.out, "generate").at("prompt_tokens").as_int() <= 2);
}

TEST_CASE("new tokens: what is wrong with them is said by key, in training and in graft check",
          "[train][new_tokens][job][check]") {
  const Run fixture;
  const auto refused = [&](const std::string& tokens, int code) {
    const test::RunResult trained = fixture.train("bad", {tokens});
    CHECK(trained.exit_code == code);
    const test::RunResult checked = fixture.command("check", "bad", {tokens});
    INFO(checked.out);
    CHECK(checked.exit_code == 1);
    CHECK(checked.out.find("new_tokens") != std::string::npos);
    CHECK(checked.out.find("error: ") == checked.out.rfind("error: "));  // said once
    return trained.err;
  };
  CHECK_THAT(refused("new_tokens=[<a>, \"\"]", 2),
             Catch::Contains("a token without text (new_tokens[1])"));
  CHECK_THAT(refused("new_tokens=[<a>, {content: <a>}]", 2),
             Catch::Contains("\"<a>\" is given twice (new_tokens[1])"));
  CHECK_THAT(
      refused("new_tokens=[<a>, </s>]", 2),
      Catch::Contains("has \"</s>\" already, as token 2") && Catch::Contains("new_tokens[1]"));
  CHECK_THAT(refused("new_tokens=[{content: <a>, specials: true}]", 2),
             Catch::Contains("specials") && Catch::Contains("did you mean \"special\""));
  CHECK_THAT(refused("new_tokens={a: b}", 2), Catch::Contains("expected a list of tokens"));
  CHECK_THAT(refused("new_tokens=[3]", 2), Catch::Contains("expected texts or mappings, got 3"));
  const test::RunResult good = fixture.command("check", "good", {kTokens});
  INFO(good.out);
  CHECK(good.exit_code == 0);
  CHECK(good.out.find("stands in no document") == std::string::npos);
  const test::RunResult unused =
      fixture.command("check", "good", {"new_tokens=[{content: <tool>, special: false}, <never>]"});
  CHECK(unused.exit_code == 0);
  CHECK(unused.out.find("\"<never>\" stands in no document: it is not learnt") !=
        std::string::npos);
  CHECK(unused.out.find("new_tokens[1]") != std::string::npos);
  const test::RunResult plan = fixture.command("plan", "good", {kTokens, "--json"});
  const test::RunResult without = fixture.command("plan", "good", {"--json"});
  REQUIRE(plan.exit_code == 0);
  const Json with = parse_json(plan.out, "plan"), base = parse_json(without.out, "plan");
  // Two rows of 128: in the table, as masters, and in gradients twice as the head is tied.
  const auto bytes = [](const Json& json, const char* name) {
    return json.at("bytes").at(name).as_int();
  };
  CHECK(bytes(with, "base weights") - bytes(base, "base weights") == 2 * 128 * 4);
  CHECK(bytes(with, "adapters") - bytes(base, "adapters") == 2 * 128 * 4);
  CHECK(bytes(with, "gradients") - bytes(base, "gradients") == 2 * 2 * 128 * 4);
  CHECK(bytes(with, "moments of AdamW") - bytes(base, "moments of AdamW") == 2 * 2 * 128 * 4);
}
