// Narrow models: bfloat16 between the norms and the sums of the residual stream.
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
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
#include "train/model/placed.h"
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
// Linears of one input with different ranks, and some with none.
LoraSettings uneven_pairs() {
  LoraSettings settings = pairs();
  settings.targets = {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"};
  settings.rank_pattern = {{"v_proj", 16}, {"gate_proj", 24}};
  return settings;
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

// The parts of a group's extended weight.
struct Parts {
  at::Tensor w, a, scaled_b;  // [N, K], [R, K], [N, R]
};

Parts parts_of(const at::Tensor& extended, LinearGroup group) {
  const GroupShape shape = shape_of(group);
  const at::Tensor rows = extended.view({shape.out + shape.rank, shape.in + shape.rank});
  return {rows.narrow(0, 0, shape.out).narrow(1, 0, shape.in),
          rows.narrow(0, shape.out, shape.rank).narrow(1, 0, shape.in),
          rows.narrow(0, 0, shape.out).narrow(1, shape.in, shape.rank)};
}

// The same put together from the linears' own, with `weights` for W of each.
Parts parts_of(LinearGroup group, const std::vector<at::Tensor>& weights) {
  const GroupShape shape = shape_of(group);
  std::vector<at::Tensor> a = {at::empty({0, shape.in}, at::kBFloat16)};
  const at::Tensor scaled_b = at::zeros({shape.out, shape.rank}, at::kBFloat16);
  int64_t row = 0, column = 0;
  for (const Linear& linear : group) {
    const Lora& lora = linear.lora;
    if (lora.rank > 0) {
      a.push_back(lora.a.to(at::kBFloat16));
      scaled_b.narrow(0, row, linear.out)
          .narrow(1, column, lora.rank)
          .copy_((lora.b * lora.scale).to(at::kBFloat16));
    }
    row += linear.out;
    column += lora.rank;
  }
  return {at::cat(weights, 0), at::cat(a, 0), scaled_b};
}

void check_parts(const Parts& got, const Parts& expected) {
  CHECK(got.w.equal(expected.w));
  CHECK(got.a.equal(expected.a));
  CHECK(got.scaled_b.equal(expected.scaled_b));
}

// W of a linear, as its products take it.
at::Tensor dense_of(const Linear& linear) {
  if (!linear.base.quantized()) return linear.base.dense;
  at::Tensor decoded = at::empty({linear.out, linear.in}, at::kBFloat16);
  decode({}, linear.base.nf4(), GRAFT_BF16, decoded.data_ptr());
  return decoded;
}

std::vector<at::Tensor> dense_of(LinearGroup group) {
  std::vector<at::Tensor> all;
  for (const Linear& linear : group) all.push_back(dense_of(linear));
  return all;
}

// Lets a linear hold in full what it holds in 4 bits, as a checkpoint may that leaves some so.
void unpack(Linear& linear) {
  const at::Tensor dense = dense_of(linear);
  linear.base = BaseWeight();
  linear.base.dense = dense;
}

// [tokens, columns] with room behind each row, filled with NaN.
at::Tensor with_room(const at::Tensor& x, int64_t room) {
  const at::Tensor rows = at::full({x.size(0), x.size(1) + room}, NAN, at::kBFloat16);
  rows.narrow(1, 0, x.size(1)).copy_(x);
  return rows;
}

// A group's gradients, one behind the other.
at::Tensor grad_a_of(LinearGroup group) {
  std::vector<at::Tensor> all;
  for (const Linear& linear : group) {
    if (linear.lora.rank > 0) all.push_back(linear.lora.grad_a);
  }
  return at::cat(all, 0);
}

// A value that is a sum in float32 and then rounded.
at::Tensor rounded_bound(const at::Tensor& exact, const at::Tensor& sum) {
  return exact.abs() * kUnit + sum * (1 + kUnit);
}

}  // namespace

TEST_CASE("narrow: an extended weight has W, A and scale B in their places, and zeros",
          "[train][narrow]") {
  const size_t family = GENERATE(0, 6);  // llama, phi3
  const test::RoughBase base(kFamilies[family]);
  const LoraSettings settings = family == 0 ? uneven_pairs() : pairs();
  const auto model = narrow_model(base, Precision::kFull, settings);
  const auto quantized = narrow_model(base, Precision::kNf4, settings);
  const auto check_made = [](LinearGroup group) {
    const GroupShape shape = shape_of(group);
    const at::Tensor made = at::full({extended_count(group)}, NAN, at::kBFloat16);
    make_extended(group, {}, bf16(made));
    check_parts(parts_of(made, group), parts_of(group, dense_of(group)));
    CHECK(extended_count(group) == (shape.out + shape.rank) * (shape.in + shape.rank));
  };
  for (const LinearGroup group : std::as_const(quantized->layers[1]).groups()) check_made(group);
  // One of several that is not in 4 bits.
  unpack(quantized->layers[1].qkv.back());
  check_made(quantized->layers[1].qkv);

  std::vector<std::vector<at::Tensor>> weights;
  for (const LinearGroup group : std::as_const(model->layers[1]).groups()) {
    weights.push_back(dense_of(group));
  }
  extend_weights(*model);
  for (Parameter& parameter : model->trained) parameter.value.mul_(1.25F);
  refresh_extended(*model);
  const std::vector<LinearGroup> groups = std::as_const(model->layers[1]).groups();
  for (size_t i = 0; i < groups.size(); ++i) {
    for (const Linear& linear : groups[i]) CHECK_FALSE(linear.base.dense.defined());
    check_parts(parts_of(groups[i][0].base.extended, groups[i]), parts_of(groups[i], weights[i]));
  }
}

TEST_CASE("narrow: the linears of one input multiply what is rounded, and sum in float32",
          "[train][narrow]") {
  // llama's q, k, v and gate, up and down; phi3's qkv_proj.
  const int which = GENERATE(0, 1, 2, 3);
  const bool fused = which == 3;
  const auto model = narrow_model(test::RoughBase(kFamilies[fused ? 6 : 0]), Precision::kFull,
                                  fused ? pairs() : uneven_pairs());
  extend_weights(*model);
  const Layer& layer = model->layers[0];
  const LinearGroup groups[] = {layer.qkv, layer.mlps[0].in, {&layer.mlps[0].down, 1}, layer.qkv};
  const LinearGroup group = groups[which];
  const bool wide = which == 2;  // float32 joins the residual stream
  const GroupShape shape = shape_of(group);
  const int64_t tokens = 21, in = shape.in, out = shape.out, rank = shape.rank;
  const Parts parts = parts_of(group[0].base.extended.to(at::kDouble), group);
  const at::Tensor x = rounded(random_values({tokens, in}, 1)), rows = with_room(x, rank);
  StepClock clock;
  const std::vector<int32_t> row(tokens, 0);
  LinearWorkspace workspace;
  workspace.clock = &clock;
  workspace.row = row.data();
  // Rows with a gap behind them.
  const at::Tensor y_rows =
      at::full({tokens, out + rank + 3}, NAN, wide ? at::kFloat : at::kBFloat16);
  narrow_forward(group, workspace, {bf16(rows), in + rank}, tokens,
                 {y_rows.data_ptr(), wide ? GRAFT_F32 : GRAFT_BF16, out + rank + 3});
  CHECK(y_rows.narrow(1, out, rank + 3).isnan().all().item<bool>());
  CHECK(rows.narrow(1, 0, in).to(at::kDouble).equal(x));
  const at::Tensor u = rows.narrow(1, in, rank).to(at::kDouble);
  const at::Tensor u_exact = x.matmul(parts.a.t());
  const at::Tensor u_sum = sum_bound(in, x.abs().matmul(parts.a.abs().t()));
  CHECK(share_of_bound(u, u_exact, rounded_bound(u_exact, u_sum)) <= 1);
  CHECK(share_of_bound(u, u_exact, u_sum) > 10);
  const at::Tensor y = y_rows.narrow(1, 0, out);
  const at::Tensor y_exact = x.matmul(parts.w.t()) + u.matmul(parts.scaled_b.t());
  const at::Tensor y_sum = sum_bound(
      in + rank, x.abs().matmul(parts.w.abs().t()) + u.abs().matmul(parts.scaled_b.abs().t()));
  CHECK(share_of_bound(y, y_exact, wide ? y_sum : rounded_bound(y_exact, y_sum)) <= 1);
  if (wide) {
    const at::Tensor stream = random_values({tokens, out}, 3).to(at::kFloat);
    const at::Tensor sum = at::full({tokens, out}, NAN, at::kFloat);
    narrow_forward(group, workspace, {bf16(rows), in + rank}, tokens,
                   {sum.data_ptr(), GRAFT_F32, out}, {f32(stream), 0.5F});
    CHECK(share_of_bound(sum, stream.to(at::kDouble) + 0.5 * y_exact,
                         sum_bound(2, stream.abs()) + 0.5 * y_sum) <= 1);
  }

  for (const Linear& linear : group) {
    if (linear.lora.rank == 0) continue;
    linear.lora.grad_a.fill_(1);
    linear.lora.grad_b.fill_(-1);
  }
  const at::Tensor d = rounded(random_values({tokens, out}, 2)), d_rows = with_room(d, rank);
  const at::Tensor dx = at::full({tokens, in}, NAN, wide ? at::kBFloat16 : at::kFloat);
  narrow_backward(group, workspace, {bf16(rows), in + rank}, tokens, {bf16(d_rows), out + rank},
                  {dx.data_ptr(), wide ? GRAFT_BF16 : GRAFT_F32, in});
  const at::Tensor du = d_rows.narrow(1, out, rank).to(at::kDouble);
  const at::Tensor du_exact = d.matmul(parts.scaled_b);
  CHECK(share_of_bound(
            du, du_exact,
            rounded_bound(du_exact, sum_bound(out, d.abs().matmul(parts.scaled_b.abs())))) <= 1);
  CHECK(share_of_bound(grad_a_of(group), du.t().matmul(x) + 1,
                       sum_bound(tokens + 1, du.abs().t().matmul(x.abs()) + 1)) <= 1);
  int64_t column = 0, low = 0;
  for (const Linear& linear : group) {
    const Lora& lora = linear.lora;
    const at::Tensor d_own = d.narrow(1, column, linear.out), u_own = u.narrow(1, low, lora.rank);
    column += linear.out;
    low += lora.rank;
    if (lora.rank == 0) continue;
    const auto scale = static_cast<double>(lora.scale);
    CHECK(share_of_bound(lora.grad_b, d_own.t().matmul(u_own) * scale - 1,
                         sum_bound(tokens + 2, d_own.abs().t().matmul(u_own.abs()) * scale + 1)) <=
          1);
  }
  const at::Tensor dx_exact = d.matmul(parts.w) + du.matmul(parts.a);
  const at::Tensor dx_sum =
      sum_bound(out + rank, d.abs().matmul(parts.w.abs()) + du.abs().matmul(parts.a.abs()));
  CHECK(share_of_bound(dx, dx_exact, wide ? rounded_bound(dx_exact, dx_sum) : dx_sum) <= 1);
}

TEST_CASE(
    "narrow: the gradients of a group's A lie one behind the other, where the model is placed",
    "[train][narrow][emu]") {
  const auto model =
      narrow_model(test::RoughBase(kFamilies[0], 1), Precision::kFull, uneven_pairs());
  const Layer& layer = model->layers[0];
  const auto check_together = [&] {
    const Lora &q = layer.qkv[0].lora, &v = layer.qkv[2].lora;
    CHECK(f32(v.grad_a) == f32(q.grad_a) + q.grad_a.numel());
    const Lora &gate = layer.mlps[0].in[0].lora, &up = layer.mlps[0].in[1].lora;
    CHECK(f32(up.grad_a) == f32(gate.grad_a) + gate.grad_a.numel());
  };
  check_together();
  PlacedModel placed(*model, {GRAFT_EMU});
  check_together();
  placed.take_back();
  placed.place();
  check_together();
}

TEST_CASE("narrow: a linear that is not in 4 bits beside others that are gives the same bits",
          "[train][narrow][emu]") {
  const test::RoughBase base(kFamilies[0], 2);
  const auto packed = narrow_model(base, Precision::kNf4),
             mixed = narrow_model(base, Precision::kNf4);
  unpack(mixed->layers[0].qkv[1]);
  unpack(mixed->layers[1].mlps[0].in[0]);
  const Step expected = run(*packed, {}, 2);
  check_same(*packed, run(*mixed, {}, 2), expected);
  check_same(*packed, run(*mixed, {.device = {GRAFT_EMU}}, 2), expected);
  const Arrangement resident = {.layers = all_layers(*mixed, LayerMemory::kKeep, true),
                                .device = {GRAFT_EMU}};
  check_same(*packed, run(*mixed, resident, 2), expected);
  check_same(*packed, run(*mixed, resident, 2), expected);
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
  LoraSettings some = pairs(), uneven = uneven_pairs(), late = pairs(), saves = pairs();
  some.targets = {"q_proj", "v_proj", "down_proj"};
  late.layers = {1};
  saves.saved = {"lm_head", "embed_tokens", "input_layernorm"};
  const LoraSettings settings = GENERATE_COPY(some, uneven, late, saves);
  CAPTURE(settings.targets, settings.layers, settings.saved);
  const bool alone = settings.layers.empty();
  const test::RoughBase base(kFamilies[1], alone ? 1 : 2);
  const auto model = narrow_model(base, Precision::kFull, settings);
  const Step emulated = run(*model, {.device = {GRAFT_EMU}}, 2);
  const Batch batch = rows_of(0, 2);
  const auto same = test::reference(*model, batch, 0.01, at::kDouble);
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
  choose_width(*model);
  CHECK(model->narrow);
  model->layers[0].o.lora.dropout = 0.1F;
  choose_width(*model);
  CHECK_FALSE(model->narrow);
}
