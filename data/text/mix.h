// Which documents of several datasets an epoch trains on.
//
// Every dataset is an endless stream: pass after pass over its documents, each pass in an order
// keyed by (seed, dataset, pass). An epoch takes the documents whose first supervised token lies in
// [epoch * T, (epoch + 1) * T) of the stream, T being the dataset's supervised tokens per epoch.
// So no document is left out or seen twice before the rest was seen once, shares are exact in the
// long run and within one document in each epoch, and nothing needs to be remembered to resume.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace graft::data {

struct MixSource {
  std::string name;                      // for messages
  std::span<const uint32_t> supervised;  // supervised tokens of each document, each at least 1
  // How much of it an epoch takes: one of these, the others 0. None: all of it, once.
  double repeat = 0;   // so many passes; 0.5 = another half in each epoch
  double weight = 0;   // its share of the supervised tokens of all datasets with a weight, whose
                       // sum over an epoch stays what these datasets hold together
  int64_t budget = 0;  // so many supervised tokens
};

// Supervised tokens that an epoch takes from each source, rounded; at least 1.
// Errors: kUsage when a number is negative or not finite, or a source has two of them.
std::vector<int64_t> tokens_per_epoch(std::span<const MixSource> sources);

// The documents of epoch 0, 1, …, a list for each source. A document comes more than once when T is
// more than the source holds. Errors: as tokens_per_epoch; kData (a source without documents, or
// with 2^32 or more).
std::vector<std::vector<uint32_t>> mix(std::span<const MixSource> sources,
                                       uint64_t seed,
                                       int64_t epoch);

}  // namespace graft::data
