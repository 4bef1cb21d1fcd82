// The functions of kernels/device.h's table, as the .cu files define them (internal).
#pragma once

#include "kernels/device.h"
#include "kernels/launch.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {

graft_status quant4_quantize(graft_quant4_type type,
                             graft_float_type weight_type,
                             const void* weight,
                             int64_t count,
                             int block_size,
                             uint8_t* packed,
                             float* absmax,
                             graft_stream stream);
graft_status nf4_compress_absmax(const float* absmax,
                                 int64_t blocks,
                                 uint8_t* absmax8,
                                 float* nested_absmax,
                                 float* offset,
                                 graft_stream stream);
graft_status nf4_decode_f32(const graft_nf4_weight& weight, float* out, graft_stream stream);
graft_status nf4_decode_bf16(const graft_nf4_weight& weight, uint16_t* out, graft_stream stream);
graft_status nf4_decode_f16(const graft_nf4_weight& weight, uint16_t* out, graft_stream stream);
graft_status rmsnorm_forward(const NormForward& call, int64_t rows, graft_stream stream);
graft_status rmsnorm_backward(const NormBackward& call, int64_t rows, graft_stream stream);
graft_status rope_apply(const RopeTurn& call, int64_t tokens, graft_stream stream);
graft_status gate_forward(const GateForward& call, int64_t rows, graft_stream stream);
graft_status gate_backward(const GateBackward& call, int64_t rows, graft_stream stream);
graft_status addition(const Addition& call, int64_t count, graft_stream stream);
graft_status conversion(const Conversion& call, int64_t rows, graft_stream stream);
graft_status softcap_forward(
    void* x, graft_float_type type, float cap, int64_t count, graft_stream stream);
graft_status softcap_backward(
    const void* y, void* dx, graft_float_type type, float cap, int64_t count, graft_stream stream);
graft_status dropout(const DropoutRows& call, int64_t rows, graft_stream stream);
graft_status embedding_forward(const EmbeddingRows& call, graft_stream stream);
graft_status embedding_backward(const EmbeddingRows& call, graft_stream stream);
graft_status bias_add(float* y, const float* bias, int64_t rows, int64_t dim, graft_stream stream);
graft_status bias_backward(
    const float* dy, int64_t rows, int64_t dim, float* dbias, graft_stream stream);
graft_status gain_forward(const float* h,
                          const float* gain,
                          int64_t rows,
                          int64_t dim,
                          int adds,
                          float* y,
                          graft_stream stream);
graft_status gain_backward(const float* dy,
                           const float* h,
                           const float* gain,
                           const float* inverse_norm,
                           int64_t rows,
                           int64_t dim,
                           float* dh,
                           float* dmagnitude,
                           graft_stream stream);
graft_status moe_route(const MoeRoute& call, graft_stream stream);
graft_status moe_route_backward(const MoeRouteBackward& call, graft_stream stream);
graft_status moe_sort(const MoeSort& call, graft_stream stream);
graft_status moe_gather(const MoeMove& call, graft_stream stream);
graft_status moe_combine(const MoeMove& call, graft_stream stream);
graft_status moe_weigh(const MoeMove& call, graft_stream stream);
graft_status moe_weigh_backward(const MoeWeighBackward& call, graft_stream stream);
graft_status attention_forward(const AttentionForward& call, graft_stream stream);
graft_status attention_backward(const AttentionBackward& call, graft_stream stream);
graft_status attention_decode(const AttentionDecode& call, graft_stream stream);
graft_status cross_entropy(const CrossEntropyRows& call, int64_t rows, graft_stream stream);
graft_status decode_rows(const DecodeRows& call, graft_stream stream);
graft_status place_pairs(const LoraPairs& call, graft_stream stream);
graft_status multiply(const graft_product& product,
                      const void* d,
                      int64_t ldd,
                      graft_stream stream);
graft_status small_product(const SmallRows& call, graft_stream stream);
graft_status scatter_rows(const ScatteredRows& call, graft_stream stream);
graft_status loss_sums(const LossSums& call, graft_stream stream);
graft_status adamw_parts(const AdamTensors& call, graft_stream stream);
graft_status allocate(size_t bytes, void** memory);
graft_status release(void* memory);
graft_status copy(void* to, const void* from, size_t bytes, graft_stream stream);
graft_status fill(void* memory, int byte, size_t bytes, graft_stream stream);
graft_status memory(size_t* free_bytes, size_t* total_bytes);
graft_status synchronize(graft_stream stream);
graft_status describe(char* name, size_t room, double* memory_bytes_per_second);

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
