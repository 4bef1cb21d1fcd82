// Narrow models: bfloat16 between the norms and the sums of the residual stream.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/hash.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "tests/train/roundings.h"
#include "tests/train/steps.h"
#include "train/engine/arrangement.h"
#include "train/engine/decoder.h"
#include "train/engine/narrow_linear.h"
#include "train/engine/planner.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"
#include "train/model/lora.h"
#include "train/model/new_tokens.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)
using test::check_same;
using test::distance;
using test::gradients_of;
using test::kUnit;
using test::random_values;
using test::rounded;
using test::share_of_bound;
using test::Step;
using test::sum_bound;

constexpr int64_t kRank = 8;

// The families of reference.h, with all that they have but biases.
constexpr test::TinyFamily kFamilies[] = {
    {"llama", R"("model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": {"rope_type":
        "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 16})"},
    {"mistral", R"("model_type": "mistral", "sliding_window": 5, "head_dim": 16)"},
    {"qwen3", R"("model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": true)"},
    {"gemma", R"("model_type": "gemma", "head_dim": 16)"},
    {"gemma2", R"("model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 12,
        "sliding_window": 5, "attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.2)"},
    {"gemma3", R"("model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 12,
        "sliding_window": 5, "sliding_window_pattern": 2)"},
    {"phi3", R"("model_type": "phi3", "sliding_window": 7, "partial_rotary_factor": 0.75)"},
    {"olmo2", R"("model_type": "olmo2")"},
    {"granite", R"("model_type": "granite", "embedding_multiplier": 6, "logits_scaling": 3,
        "residual_multiplier": 0.4, "attention_multiplier": 0.3, "tie_word_embeddings": true)"},
    {"smollm3", R"("model_type": "smollm3", "no_rope_layers": [1, 0, 1],
        "use_sliding_window": true, "sliding_window": 5)"},
};

LoraSettings pairs() {
  return {.rank = kRank, .alpha = 13, .targets = {"all-linear"}};
}

// Dense weights are not extended yet.
std::unique_ptr<Model> narrow_model(const test::RoughBase& base,
                                    Precision precision = Precision::kFull,
                                    const LoraSettings& settings = pairs()) {
  auto model = base.load(GRAFT_BF16, precision, settings.saved);
  add_lora(*model, settings, 5);
  test::spread_pairs(*model);
  REQUIRE(can_be_narrow(*model));
  model->narrow = true;
  return model;
}

// The documents' lengths of packed rows, longer and shorter than the tiles of sums (64).
const std::vector<std::vector<int64_t>> kRows = {{9, 4}, {1}, {70}, {3, 20}};

Batch rows_of(size_t begin, size_t end) {
  return test::packed_rows(
      kRows, begin, end, 100, {0.0F, 1.0F},
      [](const Philox& random, int64_t at) { return test::random_id(random, at, 37); },
      [](int64_t, int64_t place) { return place % 3 == 0 ? 0 : 1; });
}

Step run(Model& model, const Arrangement& how, size_t rows = kRows.size()) {
  return test::step_of(model, {.count = rows, .batch = rows_of, .scale = 0.01}, how);
}

std::vector<LayerPlan> all_layers(const Model& model, LayerMemory memory, bool resident = false) {
  return std::vector<LayerPlan>(model.layers.size(), LayerPlan{memory, resident});
}

// Losses and gradients of a whole batch.
double compute(Model& model, const Batch& batch, double scale) {
  for (Parameter& parameter : model.trained) parameter.grad.zero_();
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kForBackward));
  const float* residual = decoder.forward(batch, 0);
  const auto head = decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  return head.loss_sum * scale;
}

// The parts of an extended weight, in float64.
struct Parts {
  at::Tensor w, a, scaled_b;
};

Parts parts_of(const Linear& linear) {
  const at::Tensor all = linear.base.extended.to(at::kDouble);
  const int64_t rank = linear.lora.rank;
  return {all.narrow(0, 0, linear.out).narrow(1, 0, linear.in),
          all.narrow(0, linear.out, rank).narrow(1, 0, linear.in),
          all.narrow(0, 0, linear.out).narrow(1, linear.in, rank)};
}

// [tokens, columns] with room behind each row, filled with NaN.
at::Tensor with_room(const at::Tensor& x) {
  const at::Tensor rows = at::full({x.size(0), x.size(1) + kRank}, NAN, at::kBFloat16);
  rows.narrow(1, 0, x.size(1)).copy_(x);
  return rows;
}

// A workspace of a linear alone.
struct Alone {
  Alone(const Linear& linear, int64_t tokens)
      : row(static_cast<size_t>(tokens), 0),
        du(at::full({tokens, linear.lora.rank}, NAN, at::kBFloat16)),
        low_rank(at::full({tokens, linear.lora.rank}, NAN, at::kFloat)) {
    workspace.clock = &clock;
    workspace.row = row.data();
    workspace.du = bf16(du);
    workspace.low_rank = f32(low_rank);
  }
  StepClock clock;
  std::vector<int32_t> row;
  at::Tensor du, low_rank;
  LinearWorkspace workspace;
};

// A value that is a sum in float32 and then rounded.
at::Tensor rounded_bound(const at::Tensor& exact, const at::Tensor& sum) {
  return exact.abs() * kUnit + sum * (1 + kUnit);
}

}  // namespace

TEST_CASE("narrow: an extended weight has W, A and scale B in their places",
          "[train][narrow][emu]") {
  const test::RoughBase base(kFamilies[6]);
  const auto model = narrow_model(base), quantized = narrow_model(base, Precision::kNf4);
  for (size_t i = 0; i < model->linears().size(); ++i) {
    const Linear& linear = *model->linears()[i];
    CAPTURE(linear.name);
    const at::Tensor dense = linear.base.dense;
    // Of a 4-bit weight: the decoded one, on the host and on the emulated GPU.
    Linear& other = *quantized->linears()[i];
    const at::Tensor decoded = at::empty({linear.out, linear.in}, at::kBFloat16);
    decode({}, other.base.nf4(), GRAFT_BF16, decoded.data_ptr());
    const auto check_parts = [](const Linear& one, const at::Tensor& extended,
                                const at::Tensor& weight) {
      const int64_t rank = one.lora.rank;
      CHECK(extended.sizes().vec() == std::vector<int64_t>{one.out + rank, one.in + rank});
      CHECK(extended.numel() == extended_count(one));
      CHECK(extended.narrow(0, 0, one.out).narrow(1, 0, one.in).equal(weight));
      CHECK(extended.narrow(0, one.out, rank)
                .narrow(1, 0, one.in)
                .equal(one.lora.a.to(at::kBFloat16)));
      CHECK(extended.narrow(0, 0, one.out)
                .narrow(1, one.in, rank)
                .equal((one.lora.b * one.lora.scale).to(at::kBFloat16)));
    };
    const at::Tensor extended = at::empty({linear.out + kRank, linear.in + kRank}, at::kBFloat16);
    decode_extended(other, {}, bf16(extended));
    check_parts(other, extended, decoded);
  }
  std::vector<at::Tensor> weights;
  for (const Linear* linear : model->linears()) weights.push_back(linear->base.dense);
  extend_weights(*model);
  for (Parameter& parameter : model->trained) parameter.value.mul_(1.25F);
  refresh_extended(*model);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Linear& linear = *model->linears()[i];
    CHECK_FALSE(linear.base.dense.defined());
    CHECK(parts_of(linear).w.equal(weights[i].to(at::kDouble)));
    CHECK(parts_of(linear).a.equal(rounded(linear.lora.a)));
    CHECK(parts_of(linear).scaled_b.equal(rounded(linear.lora.b * linear.lora.scale)));
  }
}

TEST_CASE("narrow: a linear of several parts multiplies what is rounded, and sums in float32",
          "[train][narrow]") {
  const auto model = narrow_model(test::RoughBase(kFamilies[6]));  // phi3's qkv_proj
  extend_weights(*model);
  const Linear& linear = model->layers[0].qkv[0];
  REQUIRE(linear.parts.size() == 3);
  const int64_t tokens = 21, in = linear.in, out = linear.out;
  const double scale = static_cast<double>(linear.lora.scale);
  const Parts part = parts_of(linear);
  const at::Tensor x = rounded(random_values({tokens, in}, 1)), rows = with_room(x);
  const at::Tensor kept = at::full({tokens, kRank}, NAN, at::kBFloat16);
  Alone alone(linear, tokens);
  std::vector<at::Tensor> y, dy;
  std::vector<void*> y_planes;
  std::vector<uint16_t*> dy_planes;
  for (size_t i = 0; i < 3; ++i) {
    y.push_back(at::full({tokens, linear.parts[i]}, NAN, at::kBFloat16));
    dy.push_back(random_values({tokens, linear.parts[i]}, 2 + i).to(at::kBFloat16));
    y_planes.push_back(y[i].data_ptr());
    dy_planes.push_back(bf16(dy[i]));
  }
  narrow_forward(linear, alone.workspace, {bf16(rows), in + kRank}, tokens, y_planes, GRAFT_BF16, 0,
                 bf16(kept));
  const at::Tensor u = kept.to(at::kDouble), u_exact = x.matmul(part.a.t());
  CHECK(share_of_bound(u, u_exact,
                       rounded_bound(u_exact, sum_bound(in, x.abs().matmul(part.a.abs().t())))) <=
        1);
  CHECK(share_of_bound(u, u_exact, sum_bound(in, x.abs().matmul(part.a.abs().t()))) > 10);
  const at::Tensor y_exact = x.matmul(part.w.t()) + u.matmul(part.scaled_b.t());
  const at::Tensor y_size =
      x.abs().matmul(part.w.abs().t()) + u.abs().matmul(part.scaled_b.abs().t());
  CHECK(share_of_bound(at::cat(y, 1), y_exact,
                       rounded_bound(y_exact, sum_bound(in + kRank, y_size))) <= 1);

  const at::Tensor grad_a = linear.lora.grad_a, grad_b = linear.lora.grad_b;
  grad_a.fill_(1);
  grad_b.fill_(-1);
  const at::Tensor d = at::cat(dy, 1).to(at::kDouble);
  const at::Tensor dx = at::full({tokens, in}, 0.5F, at::kFloat);
  // What lies behind the rows of x is not u any more.
  rows.narrow(1, in, kRank).fill_(NAN);
  narrow_backward(linear, alone.workspace, {bf16(rows), in + kRank}, bf16(kept), tokens,
                  {dy_planes, nullptr, 0}, {dx.data_ptr(), GRAFT_F32, in, InputGrad::kAdd});
  const at::Tensor du = alone.du.to(at::kDouble), du_exact = d.matmul(part.scaled_b);
  CHECK(share_of_bound(
            du, du_exact,
            rounded_bound(du_exact, sum_bound(out, d.abs().matmul(part.scaled_b.abs())))) <= 1);
  CHECK(share_of_bound(grad_a, du.t().matmul(x) + 1,
                       sum_bound(tokens + 1, du.abs().t().matmul(x.abs()) + 1)) <= 1);
  CHECK(share_of_bound(grad_b, d.t().matmul(u) * scale - 1,
                       sum_bound(tokens + 2, d.abs().t().matmul(u.abs()) * scale + 1)) <= 1);
  CHECK(share_of_bound(dx, d.matmul(part.w) + du.matmul(part.a) + 0.5,
                       sum_bound(out + kRank + 1, d.abs().matmul(part.w.abs()) +
                                                      du.abs().matmul(part.a.abs()) + 0.5)) <= 1);
}

TEST_CASE("narrow: a linear whose gradient has room takes one product, with the same sums",
          "[train][narrow]") {
  const auto model = narrow_model(test::RoughBase(kFamilies[0]));
  extend_weights(*model);
  const Linear& linear = model->layers[0].mlps[0].down;
  const int64_t tokens = 21, in = linear.in, out = linear.out;
  const double scale = static_cast<double>(linear.lora.scale);
  const Parts part = parts_of(linear);
  const at::Tensor x = rounded(random_values({tokens, in}, 1)), rows = with_room(x);
  const at::Tensor kept = at::full({tokens, kRank}, NAN, at::kBFloat16);
  Alone alone(linear, tokens);
  // Rows with a gap behind them.
  const at::Tensor y_rows = at::full({tokens, out + 3}, NAN, at::kFloat);
  void* const planes[] = {y_rows.data_ptr()};
  narrow_forward(linear, alone.workspace, {bf16(rows), in + kRank}, tokens, planes, GRAFT_F32,
                 out + 3, bf16(kept));
  CHECK(y_rows.narrow(1, out, 3).isnan().all().item<bool>());
  const at::Tensor y = y_rows.narrow(1, 0, out);
  const at::Tensor u = kept.to(at::kDouble);
  const at::Tensor y_size =
      x.abs().matmul(part.w.abs().t()) + u.abs().matmul(part.scaled_b.abs().t());
  CHECK(share_of_bound(y, x.matmul(part.w.t()) + u.matmul(part.scaled_b.t()),
                       sum_bound(in + kRank, y_size)) <= 1);

  linear.lora.grad_a.zero_();
  linear.lora.grad_b.zero_();
  const at::Tensor d = rounded(random_values({tokens, out}, 2)), d_rows = with_room(d);
  const at::Tensor dx = at::full({tokens, in}, NAN, at::kBFloat16);
  narrow_backward(linear, alone.workspace, {bf16(rows), in + kRank}, bf16(kept), tokens,
                  {{}, bf16(d_rows), out + kRank},
                  {dx.data_ptr(), GRAFT_BF16, in, InputGrad::kOverwrite});
  const at::Tensor du = d_rows.narrow(1, out, kRank).to(at::kDouble);
  const at::Tensor du_exact = d.matmul(part.scaled_b);
  CHECK(share_of_bound(
            du, du_exact,
            rounded_bound(du_exact, sum_bound(out, d.abs().matmul(part.scaled_b.abs())))) <= 1);
  CHECK(share_of_bound(linear.lora.grad_a, du.t().matmul(x),
                       sum_bound(tokens, du.abs().t().matmul(x.abs()))) <= 1);
  CHECK(share_of_bound(linear.lora.grad_b, d.t().matmul(u) * scale,
                       sum_bound(tokens + 1, d.abs().t().matmul(u.abs()) * scale)) <= 1);
  const at::Tensor dx_exact = d.matmul(part.w) + du.matmul(part.a);
  const at::Tensor dx_size = d.abs().matmul(part.w.abs()) + du.abs().matmul(part.a.abs());
  CHECK(share_of_bound(dx, dx_exact, rounded_bound(dx_exact, sum_bound(out + kRank, dx_size))) <=
        1);
}

TEST_CASE("narrow: gradients are those of autograd with the same roundings",
          "[train][narrow][families]") {
  const Batch batch = test::tiny_batch(37, {9, 1, 5}, 3);
  const double scale = 1 / batch.weight_sum;
  // Of one block: what goes the other way in it moves all that the next one rounds.
  for (const test::TinyFamily& family : kFamilies) {
    CAPTURE(family.name);
    const test::RoughBase base(family, 1);
    const auto model = narrow_model(base);
    const auto same = test::reference(*model, batch, scale, at::kDouble);
    model->narrow = false;
    for (Linear* linear : model->linears()) linear->operands = GRAFT_F32;
    model->head_operands = GRAFT_F32;
    const auto other = test::reference(*model, batch, scale, at::kDouble);
    const auto engine = narrow_model(base);
    extend_weights(*engine);
    const double loss = compute(*engine, batch, scale);
    const double rounding = distance(gradients_of(same), gradients_of(other));
    const double left = distance(gradients_of(*engine), gradients_of(same));
    CAPTURE(rounding, left, left / rounding, test::flip_share(*engine), loss - same.loss,
            other.loss - same.loss);
    CHECK(rounding > 1e-3);
    CHECK(left <= test::flip_share(*engine) * rounding);
    // To first order a loss changes by at most the sum of what each rounded value changes it by.
    CHECK(std::fabs(loss - other.loss) <= kUnit * other.narrow_sensitivity);
    CHECK(loss != other.loss);
  }
}

TEST_CASE("narrow: the emulated GPU gives the processor's gradients to the bit",
          "[train][narrow][families][emu][slow]") {
  for (const test::TinyFamily& family : kFamilies) {
    CAPTURE(family.name);
    const test::RoughBase base(family, 1);
    const auto dense = narrow_model(base), quantized = narrow_model(base, Precision::kNf4);
    const Step emulated = run(*dense, {.device = {GRAFT_EMU}}, 2);
    // The host's dense weights are there again.
    CHECK_FALSE(dense->layers[0].o.base.extended.defined());
    extend_weights(*dense);
    check_same(*dense, emulated, run(*dense, {}, 2));
    const Step decoded = run(*quantized, {.device = {GRAFT_EMU}}, 2);
    check_same(*quantized, decoded, run(*quantized, {}, 2));
    check_same(
        *quantized, decoded,
        run(*quantized,
            {.layers = all_layers(*quantized, LayerMemory::kKeep, true), .device = {GRAFT_EMU}},
            2));
  }
}

TEST_CASE("narrow: neither threads, micro-batches, heads nor plans change a bit",
          "[train][narrow][invariance][slow]") {
  const Precision precision = GENERATE(Precision::kFull, Precision::kNf4);
  const bool decodes = precision == Precision::kNf4;
  for (const test::TinyFamily& family : {kFamilies[5], kFamilies[6]}) {  // gemma3, phi3
    CAPTURE(family.name, decodes);
    const auto model = narrow_model(test::RoughBase(family), precision);
    extend_weights(*model);
    const Step expected = run(*model, {});
    const std::vector<LayerPlan> mixed = {{LayerMemory::kOffloadInput, false},
                                          {LayerMemory::kRecomputeBlock, decodes},
                                          {LayerMemory::kRecomputeMlp, decodes}};
    const std::vector<LayerPlan> behind = {{LayerMemory::kOffloadInput, false},
                                           {LayerMemory::kRecomputeInput, decodes},
                                           {LayerMemory::kRecomputeInput, false}};
    const Arrangement ways[] = {{.rows = 1},
                                {.rows = 2},
                                {.threads = 1},
                                {.threads = 5},
                                {.head_chunk = 512},
                                {.layers = all_layers(*model, LayerMemory::kRecomputeMlp)},
                                {.layers = all_layers(*model, LayerMemory::kRecomputeBlock)},
                                {.layers = all_layers(*model, LayerMemory::kRecomputeInput)},
                                {.layers = all_layers(*model, LayerMemory::kOffloadInput)},
                                {.rows = 2, .layers = mixed},
                                {.rows = 2, .layers = behind}};
    for (const Arrangement& how : ways) {
      CAPTURE(how.rows, how.threads, how.head_chunk, how.layers.size());
      check_same(*model, run(*model, how), expected);
    }
  }
}

TEST_CASE("narrow: on the emulated GPU neither dropped inputs nor an embedding on the host do",
          "[train][narrow][invariance][emu]") {
  const Precision precision = GENERATE(Precision::kFull, Precision::kNf4);
  for (const test::TinyFamily& family : {kFamilies[0], kFamilies[7]}) {  // llama, olmo2
    CAPTURE(family.name);
    const auto model = narrow_model(test::RoughBase(family), precision);
    REQUIRE(model->can_embed_on_host());
    const Step expected = run(*model, {.device = {GRAFT_EMU}}, 2);
    model->embeds_on_host = true;
    const std::vector<LayerPlan> behind = {{LayerMemory::kOffloadInput, false},
                                           {LayerMemory::kRecomputeInput, false},
                                           {LayerMemory::kRecomputeInput, false}};
    check_same(*model, run(*model, {.layers = behind, .device = {GRAFT_EMU}}, 2), expected);
    const auto dropped = all_layers(*model, LayerMemory::kRecomputeInput);
    check_same(*model, run(*model, {.layers = dropped, .device = {GRAFT_EMU}}, 2), expected);
  }
}

TEST_CASE("narrow: adapters in some places, and trained tables", "[train][narrow][emu]") {
  LoraSettings some = pairs(), late = pairs(), saves = pairs();
  some.targets = {"q_proj", "v_proj", "down_proj"};
  late.layers = {1};
  saves.saved = {"lm_head", "embed_tokens", "input_layernorm"};
  const LoraSettings settings = GENERATE_COPY(some, late, saves);
  CAPTURE(settings.targets, settings.layers, settings.saved);
  const bool alone = settings.layers.empty();
  const test::RoughBase base(kFamilies[1], alone ? 1 : 2);
  const auto model = narrow_model(base, Precision::kFull, settings);
  const Step emulated = run(*model, {.device = {GRAFT_EMU}}, 2);
  const Batch batch = rows_of(0, 2);
  const auto same = test::reference(*model, batch, 0.01, at::kDouble);
  extend_weights(*model);
  check_same(*model, emulated, run(*model, {}, 2));
  if (!alone) return;
  const auto plain = base.load(GRAFT_F32, Precision::kFull);
  add_lora(*plain, settings, 5);
  test::spread_pairs(*plain);
  const double rounding =
      distance(gradients_of(same), gradients_of(test::reference(*plain, batch, 0.01, at::kDouble)));
  CHECK(rounding > 1e-3);
  CHECK(distance(gradients_of(*model), gradients_of(same)) <= test::flip_share(*model) * rounding);
}

TEST_CASE("narrow: rows of new tokens are trained as on the processor", "[train][narrow][emu]") {
  const test::RoughBase base(kFamilies[GENERATE(1, 2)]);  // the second is tied
  ModelConfig config = read_model_config(base.path());
  add_tokens(config, config.vocab_size, {{3, 5, 7}, {9}});
  const auto model = load_model(config, base.path(), Precision::kNf4, {}, {GRAFT_BF16, {}});
  add_lora(*model, pairs(), 5);
  test::spread_pairs(*model);
  model->narrow = true;
  const Step emulated = run(*model, {.device = {GRAFT_EMU}}, 2);
  check_same(*model, emulated, run(*model, {}, 2));
}

TEST_CASE("narrow: each of its conditions is asked for", "[train][narrow]") {
  const auto can = [](const test::TinyFamily& family, const LoraSettings& settings,
                      graft_float_type operands = GRAFT_BF16) {
    const auto model = test::RoughBase(family, 1).load(operands, Precision::kFull, settings.saved);
    add_lora(*model, settings, 5);
    return can_be_narrow(*model);
  };
  LoraSettings settings = pairs();
  CHECK(can(kFamilies[0], settings));
  CHECK_FALSE(can(kFamilies[0], settings, GRAFT_F32));
  CHECK_FALSE(can(test::tiny_family("llama"), settings));    // biases
  CHECK_FALSE(can(test::tiny_family("mixtral"), settings));  // experts
  settings.rank = 12;
  CHECK_FALSE(can(kFamilies[0], settings));
  settings = pairs();
  settings.dropout = 0.1;
  CHECK_FALSE(can(kFamilies[0], settings));
  settings = pairs();
  settings.dora = true;
  CHECK_FALSE(can(kFamilies[0], settings));
  settings = pairs();
  settings.targets = {"q_proj"};
  settings.saved = {"o_proj"};
  CHECK_FALSE(can(kFamilies[0], settings));
  // Norms of heads that are trained.
  const auto model = narrow_model(test::RoughBase(kFamilies[2], 1));
  for (Norm* const norm : {&model->layers[0].q_norm, &model->layers[0].k_norm}) {
    norm->grad = zeros_f32({norm->size});
    CHECK_FALSE(can_be_narrow(*model));
    norm->grad = at::Tensor();
  }
  CHECK(can_be_narrow(*model));
  model->layers[0].mlps[0].down.in -= 4;
  CHECK_FALSE(can_be_narrow(*model));
  model->layers[0].mlps[0].down.in += 4;
  // Chosen for every device but the processor.
  choose_width(*model, {});
  CHECK_FALSE(model->narrow);
  choose_width(*model, {GRAFT_EMU});
  CHECK(model->narrow);
  model->layers[0].o.lora.dropout = 0.1F;
  choose_width(*model, {GRAFT_EMU});
  CHECK_FALSE(model->narrow);
}
