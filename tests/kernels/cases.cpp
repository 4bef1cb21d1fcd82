#include "tests/kernels/cases.h"

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "kernels/adamw_parts.h"
#include "kernels/attention.h"
#include "kernels/bias.h"
#include "kernels/cross_entropy.h"
#include "kernels/decode_rows.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/moe.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/support.h"

namespace graft::kernels::test {
namespace {

void need(graft_status status) {
  if (status != GRAFT_OK) throw std::runtime_error(graft_last_error());
}

// An array in a device's memory between guard bytes, one element past an aligned place where
// `shifted`, so that both the 128-bit and the plain path of a kernel are met.
template <class T>
class Buffer {
 public:
  Buffer(graft_device device, const std::vector<T>& values, bool shifted = false)
      : device_(device), count_(values.size()), first_(kGuard + (shifted ? sizeof(T) : 0)) {
    std::vector<unsigned char> bytes(first_ + count_ * sizeof(T) + kGuard, kPattern);
    if (count_ > 0) std::memcpy(bytes.data() + first_, values.data(), count_ * sizeof(T));
    size_ = bytes.size();
    need(graft_device_allocate(size_, device_, &memory_));
    need(graft_device_copy(memory_, bytes.data(), size_, device_, nullptr));
    need(graft_device_synchronize(device_, nullptr));
  }
  ~Buffer() { static_cast<void>(graft_device_release(memory_, device_)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + first_); }
  // What the device left, after a look at the guard bytes.
  std::vector<T> values() {
    std::vector<unsigned char> bytes(size_);
    need(graft_device_copy(bytes.data(), memory_, size_, device_, nullptr));
    need(graft_device_synchronize(device_, nullptr));
    for (size_t i = 0; i < size_; ++i) {
      const bool inside = i >= first_ && i < first_ + count_ * sizeof(T);
      if (!inside && bytes[i] != kPattern) throw std::runtime_error("a guard byte was written");
    }
    std::vector<T> result(count_);
    if (count_ > 0) std::memcpy(result.data(), bytes.data() + first_, count_ * sizeof(T));
    return result;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kPattern = 0xC3;
  graft_device device_;
  size_t count_, first_, size_ = 0;
  void* memory_ = nullptr;
};

std::vector<float> values_of(Input input, int64_t count, uint32_t seed) {
  std::vector<float> x = random_floats(count, seed);
  if (input == Input::kZero) x.assign(x.size(), 0.0f);
  if (input == Input::kConstant) x.assign(x.size(), 0.75f);
  for (float& value : x) {
    if (input == Input::kDenormal) value *= 1e-40f;
    if (input == Input::kLarge) value *= 1e4f;
  }
  if (input == Input::kOutlier && !x.empty()) x[x.size() / 2] = 3e4f;
  return x;
}

std::vector<float> zeros(int64_t count) {
  return std::vector<float>(static_cast<size_t>(count));
}

const std::vector<Input> kAll(std::begin(kInputs), std::end(kInputs));

// ---- rows: a = rows, b = dim, c = 1 for the other kind, d = 1 for unaligned arrays

std::vector<float> run_norm_forward(const Run& run) {
  const Problem& p = run.problem;
  const bool shifted = p.d == 1;
  const auto kind = p.c == 1 ? GRAFT_RMSNORM_ONE_PLUS_WEIGHT : GRAFT_RMSNORM_WEIGHT;
  Buffer<float> x(run.device, values_of(p.input, p.a * p.b, 1), shifted);
  Buffer<float> y(run.device, random_floats(p.a * p.b, 2), shifted);
  Buffer<float> weight(run.device, random_floats(p.b, 3), shifted);
  Buffer<float> out(run.device, zeros(p.a * p.b), shifted), inverse(run.device, zeros(p.a));
  Buffer<float> out2(run.device, zeros(p.a * p.b), shifted), inverse2(run.device, zeros(p.a));
  need(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, p.a, p.b, out.data(), inverse.data(),
                             kind, run.device));
  need(graft_add_rmsnorm_forward(x.data(), y.data(), weight.data(), 1e-6f, p.a, p.b, out2.data(),
                                 inverse2.data(), kind, run.device));
  return joined({out.values(), inverse.values(), x.values(), out2.values(), inverse2.values()});
}

std::vector<float> run_norm_backward(const Run& run) {
  const Problem& p = run.problem;
  const bool shifted = p.d == 1;
  const auto kind = p.c == 1 ? GRAFT_RMSNORM_ONE_PLUS_WEIGHT : GRAFT_RMSNORM_WEIGHT;
  Buffer<float> x(run.device, values_of(p.input, p.a * p.b, 1), shifted);
  Buffer<float> dout(run.device, random_floats(p.a * p.b, 2), shifted);
  Buffer<float> weight(run.device, random_floats(p.b, 3), shifted);
  std::vector<float> roots = random_floats(p.a, 4);
  for (float& root : roots) root = std::fabs(root) + 0.5f;
  Buffer<float> inverse(run.device, roots);
  Buffer<float> dx(run.device, random_floats(p.a * p.b, 5), shifted);
  Buffer<float> dweight(run.device, random_floats(p.b, 6), shifted);
  need(graft_rmsnorm_backward(dout.data(), x.data(), weight.data(), inverse.data(), p.a, p.b,
                              dx.data(), dweight.data(), kind, run.device));
  return joined({dx.values(), dweight.values()});
}

// a = tokens, b = heads, c = head_dim, d = rotary_dim
std::vector<float> run_rope(const Run& run) {
  const Problem& p = run.problem;
  const int64_t stride = p.b * p.c + 4;
  Buffer<float> x(run.device, values_of(p.input, p.a * stride, 1));
  std::vector<float> cos = random_floats(p.a * p.d / 2, 2), sin(cos.size());
  for (size_t i = 0; i < cos.size(); ++i) {
    sin[i] = std::sin(cos[i]);
    cos[i] = std::cos(cos[i]);
  }
  Buffer<float> c(run.device, cos), s(run.device, sin);
  need(graft_rope_apply(x.data(), p.a, p.b, p.c, stride, c.data(), s.data(), GRAFT_ROPE_FORWARD,
                        p.d, run.device));
  std::vector<float> once = x.values();
  need(graft_rope_apply(x.data(), p.a, p.b, p.c, stride, c.data(), s.data(), GRAFT_ROPE_INVERSE,
                        p.d, run.device));
  return joined({once, x.values()});
}

// a = count, d = 1 for unaligned arrays
std::vector<float> run_gate(const Run& run) {
  const Problem& p = run.problem;
  const bool shifted = p.d == 1;
  Buffer<float> gate(run.device, values_of(p.input, p.a, 1), shifted);
  Buffer<float> up(run.device, random_floats(p.a, 2), shifted);
  Buffer<float> dout(run.device, random_floats(p.a, 3), shifted);
  std::vector<float> all;
  for (const bool gelu : {false, true}) {
    Buffer<float> out(run.device, zeros(p.a), shifted), dgate(run.device, zeros(p.a), shifted);
    Buffer<float> dup(run.device, zeros(p.a), shifted);
    const auto forward = gelu ? graft_geglu_forward : graft_swiglu_forward;
    const auto backward = gelu ? graft_geglu_backward : graft_swiglu_backward;
    need(forward(gate.data(), up.data(), p.a, out.data(), run.device, nullptr));
    need(backward(dout.data(), gate.data(), up.data(), p.a, dgate.data(), dup.data(), run.device,
                  nullptr));
    all = joined({all, out.values(), dgate.values(), dup.values()});
  }
  return all;
}

std::vector<float> run_elementwise(const Run& run) {
  const Problem& p = run.problem;
  Buffer<float> x(run.device, values_of(p.input, p.a, 1), p.d == 1);
  Buffer<float> y(run.device, random_floats(p.a, 2), p.d == 1);
  Buffer<float> dx(run.device, random_floats(p.a, 3), p.d == 1);
  need(graft_add(x.data(), y.data(), p.a, run.device));
  need(graft_scale(x.data(), 0.3f, p.a, run.device));
  need(graft_softcap_forward(x.data(), 30.0f, p.a, run.device));
  need(graft_softcap_backward(x.data(), 30.0f, p.a, dx.data(), run.device));
  return joined({x.values(), dx.values()});
}

// a = rows, b = dim
std::vector<float> run_dropout(const Run& run) {
  const Problem& p = run.problem;
  std::vector<int64_t> index(static_cast<size_t>(p.a));
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<int64_t>(i) * 7 + (int64_t{3} << 33);
  }
  Buffer<int64_t> rows(run.device, index);
  Buffer<float> x(run.device, values_of(p.input, p.a * p.b, 1), p.d == 1);
  need(graft_dropout_mask_apply(x.data(), p.a, p.b, rows.data(), 0x123456789abcdefu, 0xfedcba98765u,
                                0.25f, run.device));
  return x.values();
}

// a = tokens, b = dim, c = vocabulary
std::vector<float> run_embedding(const Run& run) {
  const Problem& p = run.problem;
  std::vector<int32_t> ids(static_cast<size_t>(p.a));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>((i * i * 31 + i / 3) % static_cast<size_t>(p.c));
  }
  Buffer<int32_t> id(run.device, ids);
  Buffer<float> table(run.device, values_of(p.input, p.c * p.b, 1));
  Buffer<float> out(run.device, zeros(p.a * p.b)), dout(run.device, random_floats(p.a * p.b, 2));
  Buffer<float> dtable(run.device, random_floats(p.c * p.b, 3));
  need(graft_embedding_forward(id.data(), p.a, table.data(), p.c, p.b, out.data(), run.device));
  need(graft_embedding_backward(dout.data(), id.data(), p.a, p.c, p.b, dtable.data(), run.device));
  return joined({out.values(), dtable.values()});
}

// a = rows, b = dim
std::vector<float> run_bias(const Run& run) {
  const Problem& p = run.problem;
  Buffer<float> y(run.device, values_of(p.input, p.a * p.b, 1), p.d == 1);
  Buffer<float> bias(run.device, random_floats(p.b, 2), p.d == 1);
  Buffer<float> dbias(run.device, random_floats(p.b, 3), p.d == 1);
  need(graft_bias_backward(y.data(), p.a, p.b, dbias.data(), run.device));
  need(graft_bias_add(y.data(), bias.data(), p.a, p.b, run.device));
  return joined({y.values(), dbias.values()});
}

// a = tokens, b = experts, c = top, d = dim
std::vector<float> run_moe(const Run& run) {
  const Problem& p = run.problem;
  const graft_moe_shape shape{p.a, p.b, p.c, static_cast<int>(p.d % 2)};
  const int64_t pairs = p.a * p.c;
  const auto ids = [&](int64_t count) { return std::vector<int32_t>(static_cast<size_t>(count)); };
  Buffer<float> logits(run.device, values_of(p.input, p.a * p.b, 1));
  Buffer<float> probabilities(run.device, zeros(p.a * p.b)), dlogits(run.device, zeros(p.a * p.b));
  Buffer<float> weight(run.device, zeros(pairs)), dweight(run.device, zeros(pairs));
  Buffer<int32_t> expert(run.device, ids(pairs)), offsets(run.device, ids(p.b + 1));
  Buffer<int32_t> row_pair(run.device, ids(pairs)), pair_row(run.device, ids(pairs));
  const bool shifted = p.a % 2 == 1;
  Buffer<float> x(run.device, values_of(p.input, p.a * p.d, 2), shifted);
  Buffer<float> rows(run.device, zeros(pairs * p.d), shifted);
  Buffer<float> weighed(run.device, zeros(pairs * p.d), shifted);
  Buffer<float> y(run.device, zeros(p.a * p.d), shifted);
  Buffer<float> dout(run.device, random_floats(pairs * p.d, 3), shifted);
  need(graft_moe_route(&shape, logits.data(), probabilities.data(), expert.data(), weight.data(),
                       run.device));
  need(graft_moe_sort(&shape, expert.data(), offsets.data(), row_pair.data(), pair_row.data(),
                      run.device));
  need(graft_moe_gather(&shape, x.data(), row_pair.data(), p.d, rows.data(), run.device));
  need(graft_moe_weigh(&shape, rows.data(), row_pair.data(), weight.data(), p.d, weighed.data(),
                       run.device));
  need(graft_moe_combine(&shape, weighed.data(), pair_row.data(), p.d, y.data(), run.device));
  need(graft_moe_weigh_backward(&shape, dout.data(), rows.data(), row_pair.data(), weight.data(),
                                p.d, dout.data(), dweight.data(), run.device));
  need(graft_moe_route_backward(&shape, probabilities.data(), expert.data(), weight.data(),
                                dweight.data(), dlogits.data(), run.device));
  const auto floats = [](const std::vector<int32_t>& values) {
    return std::vector<float>(values.begin(), values.end());
  };
  return joined({probabilities.values(), weight.values(), floats(expert.values()),
                 floats(offsets.values()), floats(row_pair.values()), floats(pair_row.values()),
                 rows.values(), weighed.values(), y.values(), dout.values(), dweight.values(),
                 dlogits.values()});
}

// a = rows, b = vocabulary
std::vector<float> run_cross_entropy(const Run& run) {
  const Problem& p = run.problem;
  std::vector<int32_t> labels(static_cast<size_t>(p.a));
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i] = static_cast<int32_t>((i * 97 + 5) % static_cast<size_t>(p.b));
  }
  Buffer<int32_t> label(run.device, labels);
  Buffer<float> weight(run.device, random_floats(p.a, 2));
  Buffer<float> logits(run.device, values_of(p.input, p.a * p.b, 1), p.d == 1);
  Buffer<float> loss(run.device, zeros(p.a)), loss2(run.device, zeros(p.a));
  Buffer<uint8_t> correct(run.device, std::vector<uint8_t>(labels.size()));
  need(graft_cross_entropy(logits.data(), label.data(), nullptr, p.a, p.b, 1.0f, loss.data(),
                           nullptr, GRAFT_CE_LOSS_ONLY, run.device));
  need(graft_cross_entropy(logits.data(), label.data(), weight.data(), p.a, p.b, 0.7f, loss2.data(),
                           correct.data(), GRAFT_CE_WITH_GRADIENT, run.device));
  const std::vector<uint8_t> right = correct.values();
  return joined({loss.values(), loss2.values(), logits.values(),
                 std::vector<float>(right.begin(), right.end())});
}

// a = heads, b = kv_heads, c = head_dim, d = window
std::vector<float> run_attention(const Run& run) {
  const Problem& p = run.problem;
  std::vector<int32_t> ends = {0};
  for (const int32_t length : p.lengths) ends.push_back(ends.back() + length);
  const int64_t tokens = ends.back(), q_width = p.a * p.c, kv_width = p.b * p.c;
  Buffer<int32_t> cu_seqlens(run.device, ends);
  graft_attention_shape shape{};
  shape.documents = static_cast<int64_t>(p.lengths.size());
  shape.cu_seqlens = cu_seqlens.data();
  shape.heads = p.a;
  shape.kv_heads = p.b;
  shape.head_dim = p.c;
  shape.q_stride = q_width + 4;
  shape.k_stride = kv_width;
  shape.v_stride = kv_width + 8;
  shape.out_stride = q_width;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(p.c));
  shape.window = p.d;
  shape.softcap = p.b % 2 == 1 ? 20.0f : 0.0f;  // an odd number of kv heads caps
  shape.tokens = tokens;
  // Scores up to 1e4 for the large input: q of 1e4, k of 1.
  Buffer<float> q(run.device, values_of(p.input, tokens * shape.q_stride, 1));
  Buffer<float> k(run.device, random_floats(tokens * shape.k_stride, 2));
  Buffer<float> v(run.device, random_floats(tokens * shape.v_stride, 3));
  Buffer<float> dout(run.device, random_floats(tokens * q_width, 4));
  Buffer<float> out(run.device, zeros(tokens * q_width)), lse(run.device, zeros(tokens * p.a));
  Buffer<float> dq(run.device, zeros(tokens * shape.q_stride));
  Buffer<float> dk(run.device, zeros(tokens * shape.k_stride));
  Buffer<float> dv(run.device, zeros(tokens * shape.v_stride));
  const size_t bytes = graft_attention_workspace_bytes(&shape, run.device);
  Buffer<float> workspace(run.device, zeros(static_cast<int64_t>(bytes / sizeof(float))));
  need(graft_attention_forward(&shape, q.data(), k.data(), v.data(), out.data(), lse.data(),
                               run.device));
  need(graft_attention_backward(&shape, q.data(), k.data(), v.data(), out.data(), lse.data(),
                                dout.data(), dq.data(), dk.data(), dv.data(), workspace.data(),
                                bytes, run.device));
  static_cast<void>(workspace.values());
  return joined({out.values(), lse.values(), dq.values(), dk.values(), dv.values()});
}

// a = heads, b = kv_heads, c = head_dim, d = window; one document: the positions
std::vector<float> run_decode_step(const Run& run) {
  const Problem& p = run.problem;
  const int64_t positions = p.lengths[0];
  Buffer<float> q(run.device, values_of(p.input, p.a * p.c, 1));
  Buffer<float> k(run.device, random_floats(positions * p.b * p.c, 2));
  Buffer<float> v(run.device, random_floats(positions * p.b * p.c, 3));
  Buffer<float> out(run.device, zeros(p.a * p.c));
  need(graft_attention_decode(q.data(), k.data(), v.data(), positions, p.a, p.b, p.c, 0.2f,
                              out.data(), p.d, p.b % 2 == 1 ? 20.0f : 0.0f, run.device));
  return out.values();
}

// a = elements of the first tensor, b = tensors, c = 1 for clipping
std::vector<float> run_adamw(const Run& run) {
  const Problem& p = run.problem;
  std::vector<std::unique_ptr<Buffer<float>>> arrays;
  std::vector<graft_adamw_part> parts;
  const auto array = [&](const std::vector<float>& values, bool shifted) {
    arrays.push_back(std::make_unique<Buffer<float>>(run.device, values, shifted));
    return arrays.back()->data();
  };
  for (int64_t i = 0; i < p.b; ++i) {
    const int64_t count = p.a + 3 * i;
    const auto seed = static_cast<uint32_t>(10 * i);
    std::vector<float> second = random_floats(count, seed + 3, 0.1f);
    for (float& value : second) value *= value;
    graft_adamw_part part{};
    part.param = array(random_floats(count, seed), i % 2 == 1);
    part.grad = array(values_of(p.input, count, seed + 1), i % 2 == 1);
    part.m = array(random_floats(count, seed + 2, 0.1f), i % 2 == 1);
    part.v = array(second, i % 2 == 1);
    part.count = count;
    part.weight_decay = i % 3 == 0 ? 0.0f : 0.1f;
    parts.push_back(part);
  }
  Buffer<float> result(run.device, zeros(2));
  const size_t bytes = graft_adamw_parts_workspace_bytes(parts.data(), p.b);
  Buffer<double> workspace(run.device, std::vector<double>(bytes / sizeof(double)));
  const graft_adamw options{1e-3f, 0.9f, 0.999f, 1e-8f, 0.5f, 3, 0.5f};
  need(graft_adamw_parts_step(parts.data(), p.b, &options, p.c == 1 ? 1.0f : 0.0f, result.data(),
                              workspace.data(), bytes, run.device));
  static_cast<void>(workspace.values());
  std::vector<float> all = result.values();
  for (const auto& each : arrays) all = joined({all, each->values()});
  return all;
}

// a = rows, b = columns, c = block size, d = elements of the gap
std::vector<float> run_decode_rows(const Run& run) {
  const Problem& p = run.problem;
  const int64_t count = p.a * p.b, blocks = (count + p.c - 1) / p.c;
  std::vector<uint8_t> bytes(static_cast<size_t>((count + 1) / 2)),
      codes(static_cast<size_t>(blocks));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 + i / 5);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 11);
  Buffer<uint8_t> packed(run.device, bytes), packed2(run.device, bytes, true);
  Buffer<uint8_t> absmax8(run.device, codes);
  Buffer<float> absmax(run.device, values_of(p.input, blocks, 1));
  Buffer<float> nested(run.device, random_floats((blocks + 255) / 256, 2));
  const int64_t stride = p.b + p.d;
  graft_nf4_weight plain{}, doubled{};
  plain.packed = packed.data();
  plain.absmax = absmax.data();
  plain.count = count;
  plain.block_size = static_cast<int>(p.c);
  doubled = plain;
  doubled.packed = packed2.data();
  doubled.absmax = nullptr;
  doubled.absmax8 = absmax8.data();
  doubled.nested_absmax = nested.data();
  doubled.offset = 0.05f;
  std::vector<float> all;
  {
    Buffer<float> out(run.device, zeros(p.a * stride)), out2(run.device, zeros(p.a * stride));
    const graft_decode_target targets[] = {{plain, p.b, stride, out.data()},
                                           {doubled, p.b, stride, out2.data()}};
    need(graft_nf4_decode_rows(targets, 2, run.device, nullptr));
    all = joined({out.values(), out2.values()});
  }
  for (const auto decode : {graft_nf4_decode_rows_bf16, graft_nf4_decode_rows_f16}) {
    Buffer<uint16_t> out(run.device, std::vector<uint16_t>(static_cast<size_t>(p.a * stride)));
    const graft_decode_target targets[] = {{doubled, p.b, stride, out.data()}};
    need(decode(targets, 1, run.device, nullptr));
    const std::vector<uint16_t> half = out.values();
    all = joined({all, std::vector<float>(half.begin(), half.end())});
  }
  return all;
}

// a = count, b = block size
std::vector<float> run_quantize(const Run& run) {
  const Problem& p = run.problem;
  const int64_t blocks = graft_nf4_block_count(p.a, static_cast<int>(p.b));
  Buffer<float> weight(run.device, values_of(p.input, p.a, 1));
  Buffer<uint8_t> packed(run.device,
                         std::vector<uint8_t>(static_cast<size_t>(graft_nf4_packed_bytes(p.a))));
  Buffer<float> absmax(run.device, zeros(blocks)), nested(run.device, zeros((blocks + 255) / 256));
  Buffer<uint8_t> absmax8(run.device, std::vector<uint8_t>(static_cast<size_t>(blocks)));
  Buffer<float> offset(run.device, zeros(1)), out(run.device, zeros(p.a));
  need(graft_nf4_quantize(weight.data(), p.a, static_cast<int>(p.b), packed.data(), absmax.data(),
                          run.device, nullptr));
  need(graft_nf4_compress_absmax(absmax.data(), blocks, absmax8.data(), nested.data(),
                                 offset.data(), run.device, nullptr));
  graft_nf4_weight view{};
  view.packed = packed.data();
  view.absmax8 = absmax8.data();
  view.nested_absmax = nested.data();
  view.offset = offset.values()[0];
  view.count = p.a;
  view.block_size = static_cast<int>(p.b);
  need(graft_nf4_decode(&view, out.data(), run.device, nullptr));
  const std::vector<uint8_t> codes = packed.values(), codes8 = absmax8.values();
  return joined({std::vector<float>(codes.begin(), codes.end()), absmax.values(),
                 std::vector<float>(codes8.begin(), codes8.end()), nested.values(), offset.values(),
                 out.values()});
}

Problem sizes(int64_t a, int64_t b = 1, int64_t c = 0, int64_t d = 0) {
  return {a, b, c, d, Input::kNormal, {}};
}
Problem packed(
    std::vector<int32_t> lengths, int64_t heads, int64_t kv_heads, int64_t dim, int64_t window) {
  return {heads, kv_heads, dim, window, Input::kNormal, std::move(lengths)};
}

double pairs_of(const Problem& p) {
  double pairs = 0.0;
  for (const int32_t n : p.lengths) pairs += 0.5 * n * n;
  return pairs * static_cast<double>(p.a * p.c);
}

}  // namespace

const char* name_of(Input input) {
  switch (input) {
    case Input::kNormal:
      return "normal";
    case Input::kZero:
      return "zero";
    case Input::kDenormal:
      return "denormal";
    case Input::kOutlier:
      return "outlier";
    case Input::kConstant:
      return "constant";
    case Input::kLarge:
      return "large";
  }
  return "";
}

const std::vector<KernelCase>& kernel_cases() {
  static const std::vector<KernelCase> kCases = {
      {"rmsnorm forward",
       "rmsnorm_forward_kernel",
       {sizes(1, 1), sizes(3, 127), sizes(7, 128, 1), sizes(9, 129, 1), sizes(17, 260),
        sizes(8, 260, 1, 1), sizes(2, 1027)},
       kAll,
       run_norm_forward,
       [](const Problem& p) { return 32.0 * static_cast<double>(p.a * p.b); },
       sizes(8192, 4096)},
      {"rmsnorm backward",
       "rmsnorm_backward_kernel rmsnorm_weight_gradient_kernel",
       {sizes(1, 1), sizes(63, 31), sizes(64, 32, 1), sizes(65, 33), sizes(9, 260, 0, 1),
        sizes(2049, 36), sizes(5, 516, 1)},
       kAll,
       run_norm_backward,
       [](const Problem& p) { return 24.0 * static_cast<double>(p.a * p.b); },
       sizes(8192, 4096)},
      {"rope",
       "rope_kernel",
       {sizes(1, 1, 2, 2), sizes(3, 5, 64, 64), sizes(5, 3, 80, 32), sizes(7, 2, 10, 6),
        sizes(2, 9, 128, 128)},
       kAll,
       run_rope,
       [](const Problem& p) { return 32.0 * static_cast<double>(p.a * p.b * p.c) / 2; },
       sizes(8192, 32, 128, 128)},
      {"gated units",
       "gate_forward_kernel gate_backward_kernel",
       {sizes(1), sizes(31), sizes(1023), sizes(1024), sizes(1025), sizes(1028, 1, 0, 1)},
       kAll,
       run_gate,
       [](const Problem& p) { return 64.0 * static_cast<double>(p.a); },
       sizes(int64_t{8192} * 14336)},
      {"elementwise",
       "add_kernel scale_kernel softcap_forward_kernel softcap_backward_kernel",
       {sizes(1), sizes(31), sizes(1023), sizes(1024), sizes(1025), sizes(1028, 1, 0, 1)},
       kAll,
       run_elementwise,
       [](const Problem& p) { return 40.0 * static_cast<double>(p.a); },
       sizes(int64_t{8192} * 4096)},
      {"dropout",
       "dropout_kernel",
       {sizes(1, 1), sizes(5, 63), sizes(3, 64), sizes(3, 257), sizes(4, 260, 0, 1)},
       {Input::kNormal, Input::kConstant},
       run_dropout,
       [](const Problem& p) { return 8.0 * static_cast<double>(p.a * p.b); },
       sizes(8192, 4096)},
      {"embedding",
       "embedding_forward_kernel embedding_backward_kernel",
       {sizes(1, 1, 1), sizes(300, 5, 7), sizes(17, 1027, 5), sizes(33, 64, 1000)},
       {Input::kNormal, Input::kDenormal},
       run_embedding,
       [](const Problem& p) { return 16.0 * static_cast<double>(p.a * p.b); },
       sizes(8192, 4096, 32000)},
      {"bias",
       "bias_add_kernel bias_backward_kernel",
       {sizes(1, 1), sizes(63, 31), sizes(64, 32), sizes(65, 33), sizes(9, 260, 0, 1),
        sizes(1030, 36)},
       kAll,
       run_bias,
       [](const Problem& p) { return 12.0 * static_cast<double>(p.a * p.b); },
       sizes(8192, 4096)},
      {"mixture of experts",
       "moe_route_kernel moe_route_backward_kernel moe_sort_kernel moe_gather_kernel "
       "moe_combine_kernel moe_weigh_kernel moe_weigh_backward_kernel",
       {sizes(1, 1, 1, 1), sizes(5, 4, 2, 7), sizes(64, 8, 2, 64), sizes(65, 33, 5, 129),
        sizes(130, 128, 8, 4)},
       {Input::kNormal, Input::kZero, Input::kOutlier, Input::kConstant, Input::kLarge},
       run_moe,
       [](const Problem& p) { return 28.0 * static_cast<double>(p.a * p.c * p.d); },
       sizes(8192, 128, 8, 2048)},
      {"cross entropy",
       "cross_entropy_kernel",
       {sizes(1, 1), sizes(3, 2), sizes(2, 511), sizes(2, 512), sizes(2, 513), sizes(2, 1024, 0, 1),
        sizes(1, 33797)},
       kAll,
       run_cross_entropy,
       [](const Problem& p) { return 32.0 * static_cast<double>(p.a * p.b); },
       sizes(2048, 128256)},
      {"attention",
       "attention_forward_kernel attention_delta_kernel attention_query_gradient_kernel "
       "attention_key_gradient_kernel",
       {packed({1}, 1, 1, 8, 0), packed({1, 1, 2}, 2, 1, 16, 0), packed({7, 8, 9, 1}, 4, 2, 40, 0),
        packed({33, 0, 50}, 2, 2, 64, 0), packed({37}, 2, 1, 136, 0), packed({9}, 2, 2, 256, 4),
        packed({70, 15, 16, 17}, 2, 1, 24, 16), packed({130}, 2, 2, 8, 1),
        packed({530}, 2, 1, 8, 0), packed({600}, 2, 2, 8, 515)},
       {Input::kNormal, Input::kZero, Input::kOutlier, Input::kConstant, Input::kLarge},
       run_attention,
       pairs_of,
       packed({2048, 2048}, 32, 8, 128, 0)},
      {"attention decode",
       "attention_decode_kernel",
       {packed({1}, 1, 1, 8, 0), packed({17}, 4, 2, 72, 0), packed({511}, 2, 1, 64, 0),
        packed({513}, 2, 2, 136, 0), packed({600}, 2, 1, 16, 100)},
       {Input::kNormal, Input::kConstant, Input::kLarge},
       run_decode_step,
       [](const Problem& p) { return 8.0 * p.lengths[0] * static_cast<double>(p.b * p.c); },
       packed({8192}, 32, 8, 128, 0)},
      {"adamw",
       "adamw_squares_kernel adamw_norm_kernel adamw_step_kernel",
       {sizes(1, 1), sizes(17, 3, 1), sizes(1024, 2, 1), sizes(16384, 2), sizes(16385, 1, 1),
        sizes(5, 27, 1), sizes(0, 2)},
       kAll,
       run_adamw,
       [](const Problem& p) { return 32.0 * static_cast<double>(p.a * p.b); },
       sizes(4096 * 16, 448)},
      {"decode rows",
       "decode_rows_kernel",
       {sizes(1, 1, 32), sizes(3, 64, 64, 64), sizes(5, 72, 64, 8), sizes(7, 37, 32, 3),
        sizes(2, 8192, 4096, 16), sizes(260, 64, 64, 1)},
       {Input::kNormal, Input::kDenormal},
       run_decode_rows,
       [](const Problem& p) { return 6.6 * static_cast<double>(p.a * p.b); },
       sizes(4096, 4096, 64, 64)},
      {"nf4",
       "quantize_kernel mean_kernel compress_kernel decode_kernel",
       {sizes(1, 64), sizes(63, 32), sizes(64, 64), sizes(65, 64), sizes(4097, 4096),
        sizes(16448, 64)},
       {Input::kNormal, Input::kZero, Input::kDenormal, Input::kOutlier, Input::kConstant},
       run_quantize,
       [](const Problem& p) { return 13.0 * static_cast<double>(p.a); },
       sizes(4096 * 4096, 64)},
  };
  return kCases;
}

}  // namespace graft::kernels::test
