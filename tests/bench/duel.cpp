#include "tests/bench/duel.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>

#include <time.h>

#include "core/error.h"
#include "core/hash.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gemm_bf16.h"
#include "kernels/linear4.h"
#include "kernels/nf4.h"
#include "kernels/optimizer.h"
#include "kernels/simd/table.h"

#ifdef GRAFT_BENCH_DNNL
#include <dnnl.hpp>
#endif

namespace graft::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSamples = 5;
constexpr double kQuietProbe = 0.85;
constexpr double kQuietProcessor = 0.95;
// Long against the clock, short enough to fall between two bursts of other work.
constexpr double kSampleSeconds = 0.02;

constexpr int64_t kSize = 4096;
constexpr int64_t kCount = kSize * kSize;
constexpr int kBlock = 64;
constexpr int64_t kBlocks = kCount / kBlock;

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

struct Sample {
  Seconds seconds;  // of one call
  double probe;     // the lower of the two around it
};

void need(graft_status status) {
  if (status != GRAFT_OK) fail(ExitCode::kBug, graft_last_error());
}

template <class Value>
using Shared = std::shared_ptr<std::vector<Value>>;

template <class Value>
Shared<Value> array(int64_t count) {
  return std::make_shared<std::vector<Value>>(static_cast<size_t>(count));
}

Shared<float> random_values(int64_t count, uint64_t seed, float size) {
  const auto values = array<float>(count);
  const Philox random(seed, 1);
  for (int64_t i = 0; i < count; ++i) {
    (*values)[static_cast<size_t>(i)] =
        size * (2.0F * random.uniform(static_cast<uint64_t>(i)) - 1.0F);
  }
  return values;
}

Shared<uint16_t> as_bf16(const Shared<float>& values) {
  const auto result = array<uint16_t>(static_cast<int64_t>(values->size()));
  for (size_t i = 0; i < values->size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, values->data() + i, sizeof bits);
    (*result)[i] = static_cast<uint16_t>(bits >> 16);
  }
  return result;
}

DuelArm own(std::string name, double work, std::function<void()> call) {
  return {std::move(name), [call](int64_t calls) { return time_calls(call, calls); }, work};
}

// Adds the peer's arm, or the reason why it is missing.
void against(Duel& duel, Peer& peer, const std::string& arm, double work) {
  const std::string reason = peer.missing(arm);
  if (!reason.empty()) {
    duel.missing.push_back(reason);
    return;
  }
  duel.arms.push_back({arm, [&peer, arm](int64_t calls) { return peer.run(arm, calls); }, work});
}

struct Packed {
  Shared<float> weight = random_values(kCount, 1, 0.05F);
  Shared<uint8_t> packed = array<uint8_t>(kCount / 2);
  Shared<float> absmax = array<float>(kBlocks);
  graft_nf4_weight view{};
  Packed() {
    need(graft_nf4_quantize(weight->data(), kCount, kBlock, packed->data(), absmax->data(),
                            GRAFT_CPU, nullptr));
    view = {packed->data(), absmax->data(), nullptr, nullptr, 0.0F, kCount, kBlock};
  }
};

DuelArm copy_arm() {
  constexpr int64_t kBytes = int64_t{64} << 20;
  const auto from = random_values(kBytes / 4, 7, 1.0F), to = random_values(kBytes / 4, 8, 1.0F);
  return own("copy", 2.0 * kBytes, [from, to] { std::memcpy(to->data(), from->data(), kBytes); });
}

void add_quantize(std::vector<Duel>& duels, Peer& peer) {
  const auto data = std::make_shared<Packed>();
  Duel duel{"quantize nf4", Unit::kGigabytes, 120, {}, {}};
  const double bytes = 4.5 * kCount + 4.0 * kBlocks;
  duel.arms.push_back(own("graft", bytes, [data] {
    need(graft_nf4_quantize(data->weight->data(), kCount, kBlock, data->packed->data(),
                            data->absmax->data(), GRAFT_CPU, nullptr));
  }));
  against(duel, peer, "bitsandbytes quantize", bytes);
  duels.push_back(std::move(duel));
}

void add_decode(std::vector<Duel>& duels, Peer& peer) {
  const auto data = std::make_shared<Packed>();
  const auto out = array<uint16_t>(kCount);
  const double bytes = 2.5 * kCount + 4.0 * kBlocks;
  const DuelArm arm = own("graft", bytes, [data, out] {
    need(graft_nf4_decode_bf16(&data->view, out->data(), GRAFT_CPU, nullptr));
  });
  duels.push_back({"decode nf4 to bf16 / copy", Unit::kGigabytes, 0.80, {arm, copy_arm()}, {}});
  Duel duel{"decode nf4 to bf16", Unit::kGigabytes, 0, {arm}, {}};
  against(duel, peer, "bitsandbytes decode", bytes);
  duels.push_back(std::move(duel));
}

void add_forward(std::vector<Duel>& duels, Peer& peer, int64_t m, double target) {
  const auto data = std::make_shared<Packed>();
  const auto x = as_bf16(random_values(m * kSize, 2, 1.0F));
  const auto y = array<float>(m * kSize);
  const double flops = 2.0 * static_cast<double>(m) * kCount;
  const DuelArm arm = own("graft", flops, [data, x, y, m] {
    need(graft_linear4_forward(&data->view, kSize, kSize, m, x->data(), GRAFT_BF16, kSize, 0.0F,
                               y->data(), kSize));
  });
  const std::string rows = std::to_string(m);
  Duel duel{"forward nf4, M = " + rows, Unit::kGigaflops, target, {arm}, {}};
  against(duel, peer, "bitsandbytes forward " + rows, flops);
  duels.push_back(std::move(duel));
  if (m != 256) return;
  Duel linear{"forward nf4, M = 256 / dense bf16", Unit::kGigaflops, 1 / 1.15, {arm}, {}};
  against(linear, peer, "at::linear 256", flops);
  duels.push_back(std::move(linear));
}

constexpr int64_t kDenseRows = 256;

// Adds oneDNN's product of a [kDenseRows, kSize] and the transpose of b [kSize, kSize], its weights
// packed beforehand as it likes them, or the reason why it is missing.
template <class Value>
void against_onednn(Duel& duel, const Shared<Value>& a, const Shared<Value>& b, double flops) {
#ifdef GRAFT_BENCH_DNNL
  using dnnl::memory;
  constexpr memory::data_type kType =
      sizeof(Value) == sizeof(float) ? memory::data_type::f32 : memory::data_type::bf16;
  const auto c = array<float>(kDenseRows * kSize);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto stream = std::make_shared<dnnl::stream>(engine);
  const memory::desc a_desc({kDenseRows, kSize}, kType, memory::format_tag::ab);
  const memory::desc b_any({kSize, kSize}, kType, memory::format_tag::any);
  const memory::desc c_desc({kDenseRows, kSize}, memory::data_type::f32, memory::format_tag::ab);
  try {
    const dnnl::matmul::primitive_desc choice(dnnl::matmul::desc(a_desc, b_any, c_desc), engine);
    memory b_plain(memory::desc({kSize, kSize}, kType, memory::format_tag::ba), engine, b->data());
    const memory b_packed(choice.weights_desc(), engine);
    memory to = b_packed;
    dnnl::reorder(b_plain, to).execute(*stream, b_plain, to);
    stream->wait();
    const auto product = std::make_shared<dnnl::matmul>(choice);
    const memory a_memory(a_desc, engine, a->data()), c_memory(c_desc, engine, c->data());
    duel.arms.push_back(own("oneDNN", flops, [=] {
      static_cast<void>(a), static_cast<void>(c);  // kept alive
      product->execute(
          *stream,
          {{DNNL_ARG_SRC, a_memory}, {DNNL_ARG_WEIGHTS, b_packed}, {DNNL_ARG_DST, c_memory}});
      stream->wait();
    }));
  } catch (const dnnl::error&) {
    duel.missing.emplace_back("oneDNN has no such product on this processor");
  }
#else
  static_cast<void>(a), static_cast<void>(b), static_cast<void>(flops);
  duel.missing.emplace_back("no oneDNN: libdnnl-dev was not there when graft-bench was built");
#endif
}

// The choice of graft's own products over oneDNN's rests on these rows.
void add_dense(std::vector<Duel>& duels, const std::function<bool(const std::string&)>& wanted) {
  const double flops = 2.0 * kDenseRows * kCount;
  const auto a = random_values(kDenseRows * kSize, 2, 1.0F), b = random_values(kCount, 3, 0.05F);
  const auto c = array<float>(kDenseRows * kSize);
  Duel full{"gemm float32, M = 256", Unit::kGigaflops, 0, {}, {}};
  if (wanted(full.name)) {
    full.arms.push_back(own("graft", flops, [a, b, c] {
      need(graft_gemm_f32(GRAFT_N, GRAFT_T, kDenseRows, kSize, kSize, 1.0F, a->data(), kSize,
                          b->data(), kSize, 0.0F, c->data(), kSize));
    }));
    against_onednn(full, a, b, flops);
    duels.push_back(std::move(full));
  }
  Duel half{"gemm bf16 prepacked, M = 256", Unit::kGigaflops, 0, {}, {}};
  if (!wanted(half.name)) return;
  const auto a_half = as_bf16(a), b_half = as_bf16(b);
  const auto packed = array<uint16_t>(graft_bf16_packed_values(kSize, kSize));
  need(graft_bf16_pack(GRAFT_T, kSize, kSize, b_half->data(), kSize, packed->data()));
  half.arms.push_back(own("graft", flops, [a_half, packed, c] {
    need(graft_gemm_bf16_packed(kDenseRows, kSize, kSize, a_half->data(), GRAFT_BF16, kSize,
                                packed->data(), 0.0F, c->data(), kSize));
  }));
  against_onednn(half, a_half, b_half, flops);
  duels.push_back(std::move(half));
}

void add_adamw(std::vector<Duel>& duels, Peer& peer) {
  constexpr graft_adamw kOptions{1e-4F, 0.9F, 0.999F, 1e-8F, 0.01F, 10, 1.0F};
  const auto param = random_values(kCount, 4, 0.05F), grad = random_values(kCount, 5, 1e-3F);
  const auto m8 = array<uint8_t>(kCount), v8 = array<uint8_t>(kCount);
  const auto m_absmax = array<float>(kCount / GRAFT_ADAMW8_BLOCK);
  const auto v_absmax = array<float>(kCount / GRAFT_ADAMW8_BLOCK);
  std::fill(m8->begin(), m8->end(), uint8_t{127});
  Duel eight{"adamw, 8-bit state", Unit::kGigabytes, 30, {}, {}};
  eight.arms.push_back(own("graft", 16.0 * kCount, [=] {
    const graft_adamw_tensor tensor{param->data(), grad->data(),     kCount,
                                    nullptr,       nullptr,          m8->data(),
                                    v8->data(),    m_absmax->data(), v_absmax->data()};
    need(graft_adamw_step_all(&tensor, 1, &kOptions, GRAFT_MAP_LOG2));
  }));
  against(eight, peer, "bitsandbytes AdamW8bit", 16.0 * kCount);
  duels.push_back(std::move(eight));
  const auto m = array<float>(kCount), v = array<float>(kCount);
  Duel full{"adamw, float32 state", Unit::kGigabytes, 1, {}, {}};
  full.arms.push_back(own("graft", 28.0 * kCount, [=] {
    need(graft_adamw_step(param->data(), grad->data(), m->data(), v->data(), kCount, &kOptions));
  }));
  against(full, peer, "torch AdamW fused", 28.0 * kCount);
  duels.push_back(std::move(full));
}

void add_attention_pair(std::vector<Duel>& duels, Peer& peer) {
  constexpr int64_t kDocuments = 4, kLength = 256, kHeads = 12, kHeadDim = 64;
  constexpr int64_t kRow = kHeads * kHeadDim, kTokens = kDocuments * kLength;
  static constexpr int32_t kEnds[kDocuments + 1] = {0, 256, 512, 768, 1024};
  graft_attention_shape shape{};
  shape.documents = kDocuments;
  shape.cu_seqlens = kEnds;
  shape.heads = shape.kv_heads = kHeads;
  shape.head_dim = kHeadDim;
  shape.q_stride = shape.k_stride = shape.v_stride = shape.out_stride = kRow;
  shape.scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
  std::vector<Shared<float>> parts;  // q, k, v, dout, out, dq, dk, dv
  for (uint64_t seed = 0; seed < 8; ++seed) {
    parts.push_back(random_values(kTokens * kRow, 20 + seed, 1.0F));
  }
  const auto lse = array<float>(kTokens * kHeads);
  const size_t bytes = graft_attention_workspace_bytes(&shape);
  const auto workspace = array<std::byte>(static_cast<int64_t>(bytes) + 64);
  // Causal: half of length^2, two products forward and five backward.
  const double flops = 7 * 2.0 * kRow * 0.5 * kDocuments * kLength * kLength;
  Duel duel{"attention forward + backward, 4 x 256", Unit::kGigaflops, 2, {}, {}};
  duel.arms.push_back(own("graft", flops, [=] {
    const auto at = [&](size_t part) { return parts[part]->data(); };
    need(graft_attention_forward(&shape, at(0), at(1), at(2), at(4), lse->data()));
    void* aligned = workspace->data();
    size_t room = workspace->size();
    std::align(64, bytes, aligned, room);
    need(graft_attention_backward(&shape, at(0), at(1), at(2), at(4), lse->data(), at(3), at(5),
                                  at(6), at(7), aligned, bytes));
  }));
  against(duel, peer, "ATen flash", flops);
  duels.push_back(std::move(duel));
}

}  // namespace

Seconds time_calls(const std::function<void()>& call, int64_t calls) {
  const double processor = processor_seconds();
  const auto start = Clock::now();
  for (int64_t i = 0; i < calls; ++i) call();
  const double wall = std::chrono::duration<double>(Clock::now() - start).count();
  return {wall, processor_seconds() - processor};
}

DuelResult fight(const Duel& duel, Bench& bench, double most_seconds) {
  std::vector<int64_t> calls;
  for (const DuelArm& arm : duel.arms) {
    arm.run(1);  // first touch of memory, choice of code path
    const double once = std::max(arm.run(1).cpu, 1e-6);
    calls.push_back(std::max<int64_t>(1, static_cast<int64_t>(kSampleSeconds / once)));
  }
  std::vector<std::vector<Sample>> samples(duel.arms.size());
  const auto good = [&](const Sample& one) {
    return one.probe >= kQuietProbe * bench.best_probe_gflops() &&
           one.seconds.cpu >= kQuietProcessor * one.seconds.wall;
  };
  const auto enough = [&] {
    return std::all_of(samples.begin(), samples.end(), [&](const auto& of_arm) {
      return std::count_if(of_arm.begin(), of_arm.end(), good) >= kSamples;
    });
  };
  const auto start = Clock::now();
  const auto late = [&] {
    return samples[0].size() >= kSamples &&
           std::chrono::duration<double>(Clock::now() - start).count() > most_seconds;
  };
  while (!enough() && !late()) {
    for (size_t at = 0; at < duel.arms.size(); ++at) {
      const double before = bench.probe();
      const Seconds all = duel.arms[at].run(calls[at]);
      const double count = static_cast<double>(calls[at]);
      samples[at].push_back({{all.wall / count, all.cpu / count}, std::min(before, bench.probe())});
    }
  }
  DuelResult result;
  result.quiet = enough();
  result.least_probe = 1e30;
  for (size_t at = 0; at < duel.arms.size(); ++at) {
    std::vector<double> seconds;
    DuelFigure figure;
    figure.arm = duel.arms[at].name;
    for (const Sample& one : samples[at]) {
      figure.samples += good(one);
      if (result.quiet && !good(one)) continue;
      seconds.push_back(result.quiet ? one.seconds.wall : one.seconds.cpu);
      result.least_probe = std::min(result.least_probe, one.probe);
      result.most_probe = std::max(result.most_probe, one.probe);
    }
    figure.discarded = static_cast<int>(samples[at].size()) - figure.samples;
    const double middle = median(seconds);
    figure.milliseconds = 1e3 * middle;
    figure.rate = duel.arms[at].work / middle / 1e9;
    result.figures.push_back(std::move(figure));
  }
  if (result.figures.size() > 1) result.ratio = result.figures[0].rate / result.figures[1].rate;
  return result;
}

double bf16_tile_peak() {
  using kernels::kBf16Depth, kernels::kBf16PanelColumns;
  constexpr int64_t kHeight = 12, kCalls = 2000;
  const std::vector<uint16_t> a(kHeight * kBf16Depth, 0x3c00),
      b(kBf16PanelColumns * kBf16Depth, 0x3c00);
  std::vector<float> c(kHeight * kBf16PanelColumns);
  const kernels::Bf16Block block{
      a.data(),   kBf16Depth, b.data(),          kHeight, kBf16PanelColumns,
      kBf16Depth, c.data(),   kBf16PanelColumns, 1.0F,    0.0F};
  const kernels::WeightTable& isa = *kernels::table().weights;
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const Seconds seconds = time_calls([&] { isa.bf16_block(block); }, kCalls);
    best = std::max(best, 2.0 * kHeight * kBf16Depth * kBf16PanelColumns * kCalls / seconds.cpu);
  }
  return best / 1e9;
}

std::vector<Duel> kernel_duels(Peer& peer, const std::string& filter) {
  std::vector<Duel> duels;
  const auto wanted = [&](const std::string& words) {
    return words.find(filter) != std::string::npos;
  };
  if (wanted("quantize nf4")) add_quantize(duels, peer);
  if (wanted("decode nf4 to bf16")) add_decode(duels, peer);
  if (wanted("forward nf4")) {
    add_forward(duels, peer, 1, 60);
    add_forward(duels, peer, 16, 6);
    add_forward(duels, peer, 256, 1.85);
  }
  add_dense(duels, wanted);
  if (wanted("adamw")) add_adamw(duels, peer);
  if (wanted("attention forward + backward")) add_attention_pair(duels, peer);
  return duels;
}

}  // namespace graft::bench
