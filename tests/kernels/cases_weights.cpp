// Cases of the quantized weights.
#include <algorithm>

#include "kernels/decode_rows.h"
#include "kernels/nf4.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

// a = count, b = block size, c = graft_quant4_type; weights of the problem's type.
Job quantize(graft_device device, const Problem& p) {
  Job job(device, p);
  const int block = static_cast<int>(p.b);
  const int64_t blocks = graft_nf4_block_count(p.a, block);
  const Values values = values_of(p.input, p.a, 1);
  Array* const weight = p.type == GRAFT_F16 ? job.halves(values) : job.elements(values);
  Array* const packed =
      job.result(job.bytes(std::vector<uint8_t>(static_cast<size_t>(graft_nf4_packed_bytes(p.a)))));
  Array* const absmax = job.result(job.floats(zeros(blocks)));
  job.launch = [=, &p] {
    need(graft_quant4_quantize(static_cast<graft_quant4_type>(p.c), p.type, weight->data(), p.a,
                               block, packed->as<uint8_t>(), absmax->floats(), device, nullptr));
  };
  return job;
}

// 512 values whose mean is exactly 0 and whose blocks reach 1, half way between neighbouring codes.
std::vector<float> tied_values() {
  const float* const map = graft_dynamic_map_signed();
  std::vector<float> values(512);
  for (size_t i = 0; i < 256; ++i) {
    values[i] = i < 255 ? (map[i] + map[i + 1]) * 0.5f : 1.0f;
    values[i + 256] = -values[i];  // in the same lane of the mean
  }
  return values;
}

// a = blocks, b = 2 for ties
Job compress(graft_device device, const Problem& p) {
  Job job(device, p);
  Values values = p.b == 2 ? tied_values() : values_of(p.input, p.a, 1);
  for (float& value : values.period) value = value < 0.0f && p.b != 2 ? -value : value;
  Array* const absmax = job.floats(values);
  Array* const codes = job.result(job.bytes(std::vector<uint8_t>(static_cast<size_t>(p.a))));
  Array* const nested = job.result(job.floats(zeros((p.a + 255) / 256)));
  Array* const offset = job.result(job.floats(zeros(1)));
  job.launch = [=, &p] {
    need(graft_nf4_compress_absmax(absmax->floats(), p.a, codes->as<uint8_t>(), nested->floats(),
                                   offset->floats(), device, nullptr));
  };
  return job;
}

// Packed bytes and both forms of absmax of `count` weights.
struct Weight {
  graft_nf4_weight plain, nested;
};
Weight weight_of(
    Job& job, const Problem& p, int64_t count, int block, graft_quant4_type type = GRAFT_NF4) {
  const int64_t blocks = graft_nf4_block_count(count, block);
  std::vector<uint8_t> bytes(static_cast<size_t>(graft_nf4_packed_bytes(count)));
  std::vector<uint8_t> codes(static_cast<size_t>(blocks));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 + i / 5);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 11);
  Weight weight{};
  weight.plain.packed = job.bytes(bytes)->as<uint8_t>();
  weight.plain.count = count;
  weight.plain.block_size = block;
  weight.plain.type = type;
  weight.nested = weight.plain;
  weight.plain.absmax = job.floats(values_of(p.input, blocks, 1))->floats();
  weight.nested.absmax8 = job.bytes(codes)->as<uint8_t>();
  weight.nested.nested_absmax = job.floats(random_values((blocks + 255) / 256, 2))->floats();
  weight.nested.offset = 0.05f;
  return weight;
}

// a = count, b = block size, c = graft_quant4_type; decoded to the problem's type.
Job decode(graft_device device, const Problem& p) {
  Job job(device, p);
  const Weight weight =
      weight_of(job, p, p.a, static_cast<int>(p.b), static_cast<graft_quant4_type>(p.c));
  const bool half = p.type != GRAFT_F32;
  Array* const out = job.result(half ? job.bits16(p.a) : job.floats(zeros(p.a)));
  Array* const out2 = job.result(half ? job.bits16(p.a) : job.floats(zeros(p.a)));
  job.launch = [=, &p] {
    for (const auto& [view, to] : {std::pair{&weight.plain, out}, {&weight.nested, out2}}) {
      if (p.type == GRAFT_F32) {
        need(graft_nf4_decode(view, to->floats(), device, nullptr));
      } else if (p.type == GRAFT_BF16) {
        need(graft_nf4_decode_bf16(view, to->as<uint16_t>(), device, nullptr));
      } else {
        need(graft_nf4_decode_f16(view, to->as<uint16_t>(), device, nullptr));
      }
    }
  };
  return job;
}

// a = rows, b = columns, c = block size, d = elements of the gap; two weights in one launch, the
// second with a tail in its gap (but for one column).
Job decode_rows(graft_device device, const Problem& p) {
  Job job(device, p);
  const Weight weight =
      weight_of(job, p, p.a * p.b, static_cast<int>(p.c), p.a % 2 == 0 ? GRAFT_FP4 : GRAFT_NF4);
  const int64_t stride = p.b + p.d, tail_columns = p.d % 8 == 0 ? p.d : p.d - 1;
  const bool half = p.type != GRAFT_F32;
  Array* const out = job.result(half ? job.bits16(p.a * stride) : job.floats(zeros(p.a * stride)));
  Array* const out2 = job.result(half ? job.bits16(p.a * stride) : job.floats(zeros(p.a * stride)));
  const Values values = random_values(p.a * std::max<int64_t>(tail_columns, 0), 5);
  Array* const tail = half ? job.halves(values) : job.floats(values);
  job.launch = [=, &p] {
    const bool has_tail = tail_columns > 0;
    const graft_decode_target targets[] = {
        {weight.plain, p.b, stride, out->data(), nullptr, 0},
        {weight.nested, p.b, stride, out2->data(), has_tail ? tail->data() : nullptr,
         has_tail ? tail_columns : 0}};
    const auto function = p.type == GRAFT_F32    ? graft_nf4_decode_rows
                          : p.type == GRAFT_BF16 ? graft_nf4_decode_rows_bf16
                                                 : graft_nf4_decode_rows_f16;
    need(function(targets, 2, device, nullptr));
  };
  return job;
}

double element_bytes(const Problem& p) {
  return p.type == GRAFT_F32 ? 4.0 : 2.0;
}
double no_flops(const Problem&) {
  return 0.0;
}

}  // namespace

std::vector<KernelCase> weight_cases() {
  const std::vector<graft_float_type> decoded = {GRAFT_F32, GRAFT_BF16, GRAFT_F16};
  return {
      {"quantize",
       "quantize_kernel",
       {sizes(1, 64), sizes(63, 32, 1), sizes(64, 64), sizes(65, 64, 1), sizes(4097, 4096),
        sizes(16448, 64, 1), shifted(sizes(130, 64))},
       {Input::kNormal, Input::kZero, Input::kDenormal, Input::kOutlier, Input::kConstant},
       decoded,
       quantize,
       sizes(4096 * 14336, 64),
       [](const Problem& p) { return 4.6 * static_cast<double>(p.a); },
       no_flops,
       {{"quantize_kernel", "the largest without its sign bit cleared", "nf4.cu",
         "__float_as_uint(to_float(weight[first + i])) & 0x7fffffffu",
         "__float_as_uint(to_float(weight[first + i]))"},
        {"quantize_kernel", "nibbles swapped", "nf4.cu", "static_cast<uint8_t>(high << 4 | low)",
         "static_cast<uint8_t>(low << 4 | high)"},
        {"quantize_kernel", "an odd end takes the next block's weight", "nf4.cu",
         "i + 1 < length ? to_float(weight[first + i + 1]) : 0.0f",
         "i + 1 < block_size ? to_float(weight[first + i + 1]) : 0.0f"}}},
      {"compress absmax",
       "mean_kernel compress_kernel",
       {sizes(1), sizes(255), sizes(256), sizes(257), sizes(1030), sizes(512, 2)},
       {Input::kNormal, Input::kZero, Input::kDenormal, Input::kOutlier, Input::kConstant},
       {GRAFT_F32},
       compress,
       sizes(4096 * 14336 / 64),
       [](const Problem& p) { return 9.0 * static_cast<double>(p.a); },
       no_flops,
       {{"mean_kernel", "dropped barrier between the halvings", "nf4.cu",
         "for (unsigned width = kThreads / 2; width > 0; width /= 2) {\n    __syncthreads();",
         "for (unsigned width = kThreads / 2; width > 0; width /= 2) {"},
        {"compress_kernel", "a tie goes to the upper code", "nf4.cu", "if (scaled > midpoint) {",
         "if (scaled >= midpoint) {"},
        {"compress_kernel", "dropped barrier before the largest is read", "nf4.cu",
         "  __syncthreads();\n  const float largest = __uint_as_float(shared.largest[0]);",
         "  const float largest = __uint_as_float(shared.largest[0]);"}}},
      {"decode",
       "decode_kernel",
       {sizes(1, 64), sizes(7, 32, 1), sizes(64, 64), sizes(65, 64, 1), sizes(8193, 4096),
        sizes(33000, 64, 1), shifted(sizes(130, 64))},
       {Input::kNormal, Input::kDenormal},
       decoded,
       decode,
       sizes(4096 * 14336, 64),
       [](const Problem& p) { return 2.0 * (0.54 + element_bytes(p)) * static_cast<double>(p.a); },
       no_flops,
       {{"decode_kernel", "nibbles swapped", "nf4.cu", "shared.code[packed >> (8 * i + 4) & 15u]",
         "shared.code[packed >> (8 * i) & 15u]"},
        {"decode_kernel", "the offset left out", "nf4.cu",
         "__fadd_rn(__fmul_rn(shared.map[__ldg(weight.absmax8 + block)], nested), weight.offset)",
         "__fmul_rn(shared.map[__ldg(weight.absmax8 + block)], nested)"},
        {"decode_kernel", "dropped barrier after the tables", "nf4.cu",
         "shared.map[threadIdx.x] = device_map.value[threadIdx.x];\n  __syncthreads();",
         "shared.map[threadIdx.x] = device_map.value[threadIdx.x];"},
        {"decode_kernel", "missing tail", "nf4.cu",
         "i < kWordWeights && element + i < weight.count; ++i) {\n        out[element + i]",
         "i < kWordWeights - 1 && element + i < weight.count; ++i) {\n        out[element + i]"}}},
      {"decode rows",
       "decode_rows_kernel",
       {sizes(1, 1, 32), sizes(3, 64, 64, 64), sizes(5, 72, 64, 8), sizes(7, 37, 32, 3),
        sizes(2, 8192, 4096, 16), sizes(260, 64, 64, 1), shifted(sizes(4, 24, 32, 8))},
       {Input::kNormal, Input::kDenormal},
       decoded,
       decode_rows,
       sizes(14336, 4096, 64, 64),
       [](const Problem& p) {
         return 2.0 * (0.54 + element_bytes(p)) * static_cast<double>(p.a * p.b);
       },
       no_flops,
       {{"decode_rows_kernel", "every block decodes the first weight", "nf4.cu",
         "if (targets.target[i].first_block <= blockIdx.x) index = i;", ""},
        {"decode_rows_kernel", "the tail in the place of the weight", "nf4.cu",
         "row * target.row_stride + target.columns + column", "row * target.row_stride + column"},
        {"decode_rows_kernel", "rows of words without their gap", "nf4.cu",
         "Out::store_word(out + row * target.row_stride",
         "Out::store_word(out + row * target.columns"}}},
  };
}

}  // namespace graft::kernels::test
