// compute: bf16: the frozen products take operands rounded to bfloat16, everything else is float32.
//
// A product of two rounded operands is x w (1 + d)(1 + d') with |d| <= u (roundings.h), so that a
// sum of them is off by at most (2 u + u^2) sum |x w|, and float32 adds gamma = k eps / (1 - k eps)
// of it for k terms.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/safetensors.h"
#include "kernels/gemm_bf16.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/golden.h"
#include "tests/train/reference.h"
#include "tests/train/roundings.h"
#include "train/engine/decoder.h"
#include "train/engine/linear.h"
#include "train/engine/tensor.h"
#include "train/job/config.h"
#include "train/job/memory.h"
#include "train/model/lora.h"
#include "train/model/saved.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

using test::distance;
using test::flip_share;
using test::gradients_of;
using test::kUnit;
using test::random_values;
using test::rounded;
using test::share_of_bound;
using test::sum_bound;

using Base = test::RoughBase;

void add_rough_lora(Model& model, bool dora = false, double dropout = 0) {
  add_lora(model,
           {.rank = 3, .alpha = 7, .dropout = dropout, .targets = {"all-linear"}, .dora = dora}, 5);
  test::spread_pairs(model);
}

double run(Model& model, const Batch& batch, double scale, uint64_t dropout_seed = 0) {
  for (Parameter& parameter : model.trained) parameter.grad.zero_();
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kForBackward));
  const float* residual = decoder.forward(batch, dropout_seed);
  const auto head = decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  return head.loss_sum * scale;
}

ErrorText error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.text();
  }
  return {};
}

// A batch and what the oracles make of it with and without roundings.
struct RoundedStep {
  Batch batch;
  double scale;
  test::ReferenceResult same, other;
};

// How far the last chosen expert is above the first that is not, anywhere; and how far the
// roundings move a probability.
std::pair<double, double> margin_and_move(const RoundedStep& step, int64_t experts_per_token) {
  double margin = 1, move = 0;
  for (size_t i = 0; i < step.same.router_probabilities.size(); ++i) {
    const at::Tensor& p = step.same.router_probabilities[i];
    const at::Tensor sorted = std::get<0>(p.sort(-1, true));
    const at::Tensor gaps =
        sorted.select(1, experts_per_token - 1) - sorted.select(1, experts_per_token);
    margin = std::min(margin, gaps.min().item<double>());
    move = std::max(move, (p - step.other.router_probabilities[i]).abs().max().item<double>());
  }
  return {margin, move};
}

// The choice of experts is not smooth: the tokens of `seed` are such that none of it hangs on a
// rounding, so that the engine, which is nearer to the oracle than all roundings together, chooses
// the same.
RoundedStep settled_step(const Model& model, const Model& plain, uint64_t seed) {
  RoundedStep step;
  step.batch = test::tiny_batch(model.config.vocab_size, {4, 1, 3}, seed);
  step.scale = 1 / step.batch.weight_sum;
  step.same = test::reference(model, step.batch, step.scale, at::kDouble);
  step.other = test::reference(plain, step.batch, step.scale, at::kDouble);
  const auto [margin, move] = margin_and_move(step, model.config.experts_per_token);
  REQUIRE(margin > 2 * move);
  return step;
}

}  // namespace

TEST_CASE("compute: a frozen linear multiplies rounded operands and sums them in float32",
          "[train][compute]") {
  const Base base("phi3");  // qkv_proj has three parts
  const auto model = base.load(GRAFT_BF16);
  const Linear& linear = model->layers[0].qkv[0];
  REQUIRE(linear.base.dense.scalar_type() == at::kBFloat16);
  const int64_t tokens = 21, in = linear.in;
  const at::Tensor x = random_values({tokens, in}, 1);
  const at::Tensor half = at::empty({tokens, linear.out}, at::kBFloat16);
  const std::vector<int32_t> row(static_cast<size_t>(tokens), 0);
  StepClock clock;
  LinearWorkspace workspace;
  workspace.clock = &clock;
  workspace.rounded = bf16(half);
  workspace.row = row.data();
  std::vector<at::Tensor> y, dy;
  std::vector<float*> y_planes;
  std::vector<const float*> dy_planes;
  for (size_t part = 0; part < linear.parts.size(); ++part) {
    y.push_back(at::empty({tokens, linear.parts[part]}, at::kFloat));
    dy.push_back(random_values({tokens, linear.parts[part]}, 2 + part));
    y_planes.push_back(f32(y[part]));
    dy_planes.push_back(f32(dy[part]));
  }
  linear_forward(linear, workspace, round_input({&linear, 1}, workspace, f32(x), tokens), tokens,
                 y_planes, nullptr);
  const at::Tensor weight = linear.base.dense.to(at::kDouble);
  const at::Tensor exact = rounded(x).matmul(weight.t());
  const at::Tensor magnitude = rounded(x).abs().matmul(weight.abs().t());
  CHECK(share_of_bound(at::cat(y, 1), exact, sum_bound(in, magnitude)) <= 1);
  // What is not rounded is far away, and within the bound of the rounding.
  const at::Tensor unrounded = x.to(at::kDouble).matmul(weight.t());
  CHECK(share_of_bound(at::cat(y, 1), unrounded, sum_bound(in, magnitude)) > 10);
  const at::Tensor x_bound = x.to(at::kDouble).abs().matmul(weight.abs().t()) * kUnit;
  CHECK(share_of_bound(at::cat(y, 1), unrounded, x_bound + sum_bound(in, magnitude)) <= 1);

  const at::Tensor dx = at::empty({tokens, in}, at::kFloat);
  linear_backward(linear, workspace, f32(x), nullptr, tokens, dy_planes, f32(dx),
                  InputGrad::kOverwrite);
  const at::Tensor d = at::cat(dy, 1);
  CHECK(share_of_bound(dx, rounded(d).matmul(weight),
                       sum_bound(linear.out, rounded(d).abs().matmul(weight.abs()))) <= 1);
}

TEST_CASE("compute: gradients in bf16 are those of autograd with the same roundings",
          "[train][compute]") {
  // The oracle of the float32 model lacks the roundings and is as far away as they reach.
  struct Kind {
    const char* name;
    bool dora;
    double dropout;
    std::vector<std::string> saved;
  };
  const Kind kind = GENERATE(Kind{"lora", false, 0, {}}, Kind{"dora with dropout", true, 0.2, {}},
                             Kind{"trained head", false, 0, {"lm_head"}});
  const Batch batch = test::tiny_batch(37, {9, 1, 5}, 3);
  const double scale = 1 / batch.weight_sum;
  for (const char* family : {"llama", "gemma2", "phi3", "granite"}) {
    CAPTURE(family, kind.name);
    const Base base(family);
    const uint64_t seed = kind.dropout > 0 ? 77 : 0;
    const auto model = base.load(GRAFT_BF16, Precision::kFull, kind.saved);
    const auto plain = base.load(GRAFT_F32);
    for (Model* one : {model.get(), plain.get()}) {
      add_rough_lora(*one, kind.dora, kind.dropout);
      train_modules(*one, kind.saved);
    }
    const double loss = run(*model, batch, scale, seed);
    const auto same = test::reference(*model, batch, scale, at::kDouble, seed);
    const auto other = test::reference(*plain, batch, scale, at::kDouble, seed);
    const double rounding = distance(gradients_of(same), gradients_of(other));
    const double left = distance(gradients_of(*model), gradients_of(same));
    CAPTURE(rounding, left, loss - same.loss, other.loss - same.loss);
    CHECK(rounding > 1e-3);
    CHECK(left <= flip_share(*model) * rounding);
  }
}

TEST_CASE("compute: gradients of experts in bf16 are those of autograd with the same roundings",
          "[train][compute][moe]") {
  int64_t unused = 0;
  const auto check_model = [&](const std::string& directory, uint64_t seed) {
    CAPTURE(directory);
    const auto model = load_model(directory, Precision::kFull, {}, {GRAFT_BF16});
    const auto plain = load_model(directory, Precision::kFull);
    for (Model* one : {model.get(), plain.get()}) add_rough_lora(*one);
    const RoundedStep step = settled_step(*model, *plain, seed);
    run(*model, step.batch, step.scale);
    const double rounding = distance(gradients_of(step.same), gradients_of(step.other));
    const double left = distance(gradients_of(*model), gradients_of(step.same));
    CAPTURE(rounding, left, flip_share(*model));
    CHECK(rounding > 1e-3);
    CHECK(left <= flip_share(*model) * rounding);
    // The pairs of experts that no token chose.
    for (size_t i = 0; i < model->trained.size(); ++i) {
      const at::Tensor& expected = step.same.gradients[i].second;
      if (expected.count_nonzero().item<int64_t>() > 0) continue;
      CAPTURE(model->trained[i].name);
      CHECK(model->trained[i].grad.count_nonzero().item<int64_t>() == 0);
      ++unused;
    }
  };
  check_model(Base("mixtral").path(), 19);
  check_model(Base("qwen3_moe").path(), 1);
  CHECK(unused > 0);
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  check_model(shared + "/data/models/tiny/mixtral", 4);
  check_model(shared + "/data/models/tiny/qwen3_moe", 2);
}

TEST_CASE("compute: the loss in bf16 is within the bound of its roundings of transformers'",
          "[train][compute][golden]") {
  // To first order a loss changes by at most sum |dL/dy| |x| |W|^T (2 u + u^2) over the products,
  // and sum |dL/de| |e| u for the embeddings, which are held in bfloat16. Without experts: their
  // choice is not smooth.
  for (const char* family : {"qwen2", "gemma2", "gemma3", "phi3", "olmo2", "granite", "smollm3"}) {
    CAPTURE(family);
    const std::string directory = test::source_path("tests/golden/families/" + std::string(family));
    const auto [batch, golden] = test::golden_batch(directory + "/golden.safetensors");
    const double scale = 1 / batch.weight_sum;
    const auto model = load_model(directory, Precision::kFull, {}, {GRAFT_BF16});
    const double loss = run(*model, batch, scale);
    const auto plain = load_model(directory, Precision::kFull);
    train_everything(*plain);
    const auto exact = test::reference(*plain, batch, scale, at::kDouble);
    CHECK(exact.loss == Approx(golden).epsilon(1e-6));
    const double bound = exact.product_sensitivity * (2 * kUnit + kUnit * kUnit) +
                         exact.embedding_sensitivity * kUnit;
    CAPTURE(loss - golden, bound, golden);
    CHECK(std::fabs(loss - golden) <= bound);
    CHECK(loss != golden);
  }
}

TEST_CASE("compute: frozen matrices are held in bfloat16, all that is trained in float32",
          "[train][compute][weights]") {
  const auto to_half = [](const at::Tensor& x) { return x.to(at::kBFloat16); };
  for (const char* family : {"llama", "qwen2", "mixtral"}) {  // qwen2 is tied
    CAPTURE(family);
    const Base base(family);
    const auto plain = base.load(GRAFT_F32);
    const auto half = base.load(GRAFT_BF16);
    const std::vector<BaseTensor> from = base_tensors(*plain), to = base_tensors(*half);
    for (size_t i = 0; i < from.size(); ++i) {
      CAPTURE(from[i].name);
      const bool router = from[i].linear != nullptr && !from[i].linear->quantizes;
      if (from[i].shape.size() == 1 || router) {
        CHECK(to[i].value->equal(*from[i].value));
      } else {
        CHECK(to[i].value->equal(to_half(*from[i].value)));
      }
      CHECK(to[i].bytes() == static_cast<int64_t>(to[i].value->nbytes()));
    }
    CHECK(half->head.scalar_type() == at::kBFloat16);
    const bool tied = half->config.tied_embeddings;
    const auto trained = base.load(GRAFT_BF16, Precision::kFull, {"lm_head", "o_proj"});
    CHECK(trained->head.scalar_type() == at::kFloat);
    CHECK(trained->layers[1].o.base.dense.equal(plain->layers[1].o.base.dense));
    CHECK(trained->embedding.scalar_type() == (tied ? at::kFloat : at::kBFloat16));
  }
  // A checkpoint in bfloat16 loses nothing: written back, it has the same bytes.
  const Base base("llama");
  const test::TempDir dir;
  save_model(*base.load(GRAFT_BF16), base.path(), dir.file("half"));
  const auto again = load_model(dir.file("half"), Precision::kFull, {}, {GRAFT_BF16});
  save_model(*again, dir.file("half"), dir.file("again"));
  CHECK(read_file(dir.file("half") + "/model.safetensors") ==
        read_file(dir.file("again") + "/model.safetensors"));
}

TEST_CASE("compute: what bfloat16 cannot hold is refused", "[train][compute]") {
  const Base base("llama");
  const auto plain = base.load(GRAFT_F32);
  SECTION("a weight that would become infinite") {
    // Half way between the largest bfloat16 and 2^128; what is below rounds down.
    f32(plain->layers[1].o.base.dense)[3] = GENERATE(0x1.ffp127F, -0x1.ffp127F);
    save_model(*plain, base.path(), base.path());
    const ErrorText error = error_of([&] { base.load(GRAFT_BF16); });
    CHECK(error.what.find("too large for bfloat16") != std::string::npos);
    CHECK(error.where.find("model.layers.1.self_attn.o_proj.weight") != std::string::npos);
    CHECK_NOTHROW(base.load(GRAFT_F32));
  }
  SECTION("the largest one that does not") {
    f32(plain->layers[1].o.base.dense)[3] = std::nextafter(0x1.ffp127F, 0.0F);
    save_model(*plain, base.path(), base.path());
    const at::Tensor weight = base.load(GRAFT_BF16)->layers[1].o.base.dense;
    CHECK(static_cast<float>(weight.data_ptr<at::BFloat16>()[3]) == 0x1.fep127F);
  }
  SECTION("NaN") {
    f32(plain->embedding)[0] = NAN;
    save_model(*plain, base.path(), base.path());
    CHECK(error_of([&] { base.load(GRAFT_BF16); }).what.find("NaN") != std::string::npos);
  }
  SECTION("full parameters") {
    const auto half = base.load(GRAFT_BF16);
    CHECK(error_of([&] { train_everything(*half); }).where == "compute: bf16");
  }
  SECTION("weights that an initialisation changes") {
    const auto half = base.load(GRAFT_BF16);
    const ErrorText error = error_of(
        [&] { add_lora(*half, {.rank = 3, .targets = {"all-linear"}, .init = "pissa"}, 1); });
    CHECK(error.where == "compute");
  }
}

TEST_CASE("compute: auto follows the processor, and gives way where weights change",
          "[train][compute]") {
  const test::TempDir dir;
  const auto operands = [&](const std::string& lines) {
    write_file_atomically(dir.file("run.yaml"),
                          "base_model: base\ndatasets: [a.jsonl]\noutput_dir: out\n" + lines);
    return read_train_config(dir.file("run.yaml"), {}).operands;
  };
  const graft_float_type native = graft_gemm_bf16_native() != 0 ? GRAFT_BF16 : GRAFT_F32;
  CHECK(operands("") == native);
  CHECK(operands("compute: auto\n") == native);
  CHECK(operands("compute: fp32\n") == GRAFT_F32);
  CHECK(operands("compute: bf16\n") == GRAFT_BF16);
  CHECK(operands("adapter: none\n") == GRAFT_F32);
  CHECK(operands("adapter: lora\ninit_lora_weights: pissa\n") == GRAFT_F32);
  CHECK(operands("adapter: qlora\ninit_lora_weights: pissa\n") == native);
  for (const char* lines : {"adapter: none\ncompute: bf16\n",
                            "adapter: lora\ninit_lora_weights: pissa\ncompute: bf16\n"}) {
    const ErrorText error = error_of([&] { operands(lines); });
    CHECK(error.what.find("expected fp32") != std::string::npos);
    CHECK(error.where.find("compute") != std::string::npos);
  }
  CHECK(error_of([&] { operands("compute: half\n"); }).where.find("compute") != std::string::npos);
  // A resumed run must not change its products on another machine.
  write_file_atomically(dir.file("run.yaml"),
                        "base_model: base\ndatasets: [a.jsonl]\noutput_dir: out\n");
  const auto digest = [&](const char* override_text) {
    return config_digest(read_train_config(dir.file("run.yaml"), {override_text}));
  };
  CHECK(digest("compute=fp32") != digest("compute=bf16"));
  CHECK(digest("compute=auto") == digest(native == GRAFT_BF16 ? "compute=bf16" : "compute=fp32"));
}
