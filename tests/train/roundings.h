// How far two computations with roundings to bfloat16 may be apart.
//
// u = 2^-8 is the unit roundoff of bfloat16, whose significand has 8 bits: fl(x) = x (1 + d) with
// |d| <= u.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tests/train/reference.h"
#include "train/model/model.h"

namespace graft::test {

constexpr double kUnit = 0x1p-8;

// Of everything trained, in float64.
std::vector<at::Tensor> gradients_of(const train::Model& model);
std::vector<at::Tensor> gradients_of(const ReferenceResult& result);

// |a - b| / |b| over all tensors together.
double distance(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b);

// How much of the difference that the roundings make may be left between an engine and an oracle
// that both round. They sum in float32 and float64, so that a value of k terms is off by up to (k +
// 2) 2^-24 of itself, and one that lies so near to the middle between two bfloat16s, 2^-8 of it
// apart, goes the other way: (k + 2) 2^-15 of all values do. Each of them is off by a whole step,
// where a rounding is off by step / sqrt(12) in the mean square.
double flip_share(const train::Model& model);

at::Tensor random_values(at::IntArrayRef shape, uint64_t stream);
// To bfloat16, in float64.
at::Tensor rounded(const at::Tensor& x);

// What a float32 sum of `terms` products may be off by, where those of the absolute values are
// `magnitude`: gamma = k eps / (1 - k eps) of it.
at::Tensor sum_bound(int64_t terms, const at::Tensor& magnitude);

// The largest |got - expected| / bound.
double share_of_bound(const at::Tensor& got, const at::Tensor& expected, const at::Tensor& bound);

}  // namespace graft::test
