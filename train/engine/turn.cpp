#include "train/engine/turn.h"

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

int64_t width_of(const Pass& pass, const Turned& x) {
  return x.heads * pass.config.head_dim;
}

int64_t norms_per_token(const Pass& pass, const Turned& x) {
  return width_of(pass, x) / x.norm.size;
}

// The projected values without gaps: where they lie, or in the place of the turned ones.
const void* without_gaps(const Pass& pass, const Turned& x) {
  const int64_t width = width_of(pass, x);
  if (x.stride == width) return x.projected;
  check(graft_convert(x.projected, x.type, x.stride, x.turned, x.type, width, pass.batch.tokens(),
                      width, 1, pass.device.kind, pass.device.stream));
  return x.turned;
}

void rotate(const Pass& pass,
            const LayerConfig& layer,
            const Turned& x,
            void* values,
            graft_rope_direction direction) {
  if (layer.rope < 0) return;
  const int64_t stride = x.norm.size > 0 ? width_of(pass, x) : x.stride;
  check(graft_rope_apply(values, pass.batch.tokens(), x.heads, pass.config.head_dim, stride,
                         pass.rotation.cos(layer.rope), pass.rotation.sin(layer.rope), direction,
                         pass.rotation.rotary_dim(layer.rope), x.type, pass.device.kind,
                         pass.device.stream));
}

}  // namespace

void* turn(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  void* turned = x.projected;
  if (x.norm.size > 0) {
    turned = x.turned;
    check(graft_rmsnorm_forward(without_gaps(pass, x), f32(x.norm.weight), pass.config.rms_norm_eps,
                                pass.batch.tokens() * norms_per_token(pass, x), x.norm.size, turned,
                                x.inv_rms, pass.config.norm, x.type, 0, pass.device.kind,
                                pass.device.stream));
  }
  rotate(pass, layer, x, turned, GRAFT_ROPE_FORWARD);
  pass.clock.lap(Work::kRows);
  return turned;
}

const void* turned_again(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  return x.norm.size > 0 ? turn(pass, layer, x) : x.projected;
}

void* turn_backward(
    const Pass& pass, const LayerConfig& layer, const Turned& x, void* d, void* unnormed) {
  rotate(pass, layer, x, d, GRAFT_ROPE_INVERSE);
  pass.clock.lap(Work::kRows);
  if (x.norm.size == 0) return d;
  const int64_t values = pass.batch.tokens() * width_of(pass, x);
  pass.device.zero(unnormed, static_cast<size_t>(values * size_of(x.type)));
  norm_backward(pass, x.norm, norms_per_token(pass, x), x.type, d, without_gaps(pass, x), x.inv_rms,
                unnormed);
  return unnormed;
}

graft_attention_shape attention_shape(const Pass& pass, size_t index) {
  const ModelConfig& config = pass.config;
  graft_attention_shape shape{};
  shape.documents = pass.batch.documents();
  shape.cu_seqlens = pass.arrays.cu_seqlens;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.q_stride = config.q_width();
  shape.k_stride = config.kv_width();
  shape.v_stride = config.kv_width();
  shape.out_stride = config.q_width();
  shape.scale = config.attention_scale;
  shape.window = config.layers[index].window;
  shape.softcap = config.attention_cap;
  shape.tokens = pass.batch.tokens();
  return shape;
}

}  // namespace graft::train
