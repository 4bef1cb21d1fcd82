// Where a model's tensors lie: in host memory, or in that of the device that computes with them.
#pragma once

#include <exception>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/device.h"
#include "train/model/model.h"

namespace graft::train {

// Puts what a step reads and writes into the device's memory: weights, adapters, gradients; but
// not the embedding of a model that embeds_on_host, whose rows a decoder gathers on the host. The
// host keeps its tensors, and take_back() gives them to the model again, with the trained values,
// their gradients and what follows from them as the device left them. For the processor all of it
// is nothing, but that a narrow model's dense weights are extended meanwhile (extended.h).
//
// While a model is placed, its host tensors must not be replaced, and only kernels may follow its
// pointers. What is bound to the pointers (AdamW) is made after it; place() gives the same ones
// again as long as the model has the same tensors. What follows from the trained tensors and was
// computed on the host in between (DoRA's gains) is computed again there.
class PlacedModel {
 public:
  // Errors: kDevice, kBug (embeds_on_host of a model that cannot).
  PlacedModel(Model& model, const Device& device) : model_(model), device_(device) { place(); }
  // Of a model that an error leaves behind nothing is read any more, and the device may have
  // failed.
  ~PlacedModel() {
    if (std::uncaught_exceptions() == 0) take_back();
  }
  PlacedModel(const PlacedModel&) = delete;
  PlacedModel& operator=(const PlacedModel&) = delete;

  void place();
  void take_back();

 private:
  // The same tensor in both places.
  struct Pair {
    at::Tensor host;
    at::Tensor device;
    bool changes = false;  // the device writes it
  };
  struct Slot {
    at::Tensor* tensor;
    size_t pair;
    bool extends;  // its device tensor only makes another
  };
  // What a 4-bit weight that stays decoded has on the device, while the model is on the host.
  struct Decoded {
    Linear* linear;
    at::Tensor decoded;
    at::Tensor extended;
  };

  Model& model_;
  Device device_;
  bool placed_ = false;
  std::vector<Pair> pairs_;
  std::vector<Slot> slots_;
  std::vector<Decoded> decoded_;
};

}  // namespace graft::train
