#include "train/job/epochs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace graft::train {

EpochPlan::EpochPlan(const data::TokenStore& store, const TrainConfig& config)
    : store_(store),
      sequence_len_(config.sequence_len),
      rows_per_step_(config.rows_per_step()),
      seed_(config.seed),
      first_document_(config.datasets.size() + 1),
      supervised_(config.datasets.size()) {
  // A store holds the documents of one file after those of the file before.
  for (int64_t document = 0; document < store.document_count(); ++document) {
    const auto dataset = static_cast<size_t>(store.source(document).file);
    const auto loss = store.loss(document);
    ++first_document_[dataset + 1];
    supervised_[dataset].push_back(static_cast<uint32_t>(
        static_cast<int64_t>(loss.size()) - std::count(loss.begin(), loss.end(), uint8_t{0})));
  }
  std::partial_sum(first_document_.begin(), first_document_.end(), first_document_.begin());
  for (size_t i = 0; i < config.datasets.size(); ++i) {
    const Dataset& dataset = config.datasets[i];
    sources_.push_back(
        {dataset.path, supervised_[i], dataset.repeat, dataset.weight, dataset.budget});
    // A whole number of passes takes the same documents in every epoch.
    const bool is_whole = dataset.repeat == std::floor(dataset.repeat);
    is_steady_ = is_steady_ && is_whole && dataset.weight == 0 && dataset.budget == 0;
  }
}

void EpochPlan::load_epoch(int64_t epoch) {
  if (epoch_ == epoch) return;
  chosen_.clear();
  {
    const std::vector<std::vector<uint32_t>> mixed = data::mix(sources_, seed_, epoch);
    for (size_t dataset = 0; dataset < mixed.size(); ++dataset) {
      const auto first = static_cast<uint32_t>(first_document_[dataset]);
      for (const uint32_t document : mixed[dataset]) chosen_.push_back(first + document);
    }
  }
  // The order inside an epoch is pack()'s; equal documents in another order must not change it.
  std::sort(chosen_.begin(), chosen_.end());
  std::vector<uint32_t> lengths;
  lengths.reserve(chosen_.size());
  for (const uint32_t document : chosen_) {
    lengths.push_back(static_cast<uint32_t>(store_.length(document)));
  }
  rows_ = data::pack(lengths, {sequence_len_, seed_, epoch});
  epoch_ = epoch;
}

std::vector<data::PackedRow> EpochPlan::rows(int64_t first, int64_t last) const {
  std::vector<data::PackedRow> rows;
  for (int64_t row = first; row < last; ++row) {
    data::PackedRow& packed = rows.emplace_back();
    for (const uint32_t place : rows_.documents(row)) {
      packed.documents.push_back(chosen_[place]);
      packed.tokens += store_.length(chosen_[place]);
    }
  }
  return rows;
}

int64_t EpochPlan::steps_of_epoch(int64_t epoch) {
  const int64_t known = is_steady_ ? 0 : epoch;
  while (static_cast<int64_t>(steps_.size()) <= known) {
    load_epoch(static_cast<int64_t>(steps_.size()));
    steps_.push_back((rows_.size() + rows_per_step_ - 1) / rows_per_step_);
  }
  return steps_[static_cast<size_t>(known)];
}

EpochPlan::Step EpochPlan::at(int64_t step) {
  Step place;
  int64_t begin = 0;
  if (is_steady_) {
    place.epoch = step / steps_of_epoch(0);
    begin = place.epoch * steps_of_epoch(0);
  }
  for (; step >= begin + steps_of_epoch(place.epoch); ++place.epoch) {
    begin += steps_of_epoch(place.epoch);
  }
  load_epoch(place.epoch);
  const int64_t steps = steps_of_epoch(place.epoch);
  place.first_row = (step - begin) * rows_per_step_;
  place.last_row = std::min(place.first_row + rows_per_step_, rows_.size());
  place.epochs_done = static_cast<double>(place.epoch) +
                      static_cast<double>(step - begin + 1) / static_cast<double>(steps);
  place.ends_epoch = step - begin + 1 == steps;
  return place;
}

int64_t EpochPlan::steps_in(double epochs) {
  const auto whole = static_cast<int64_t>(epochs);
  int64_t steps = 0;
  if (is_steady_) {
    // 1.1 * 10 is a little above 11 in double and must not become 12.
    steps = static_cast<int64_t>(
        std::ceil(epochs * static_cast<double>(steps_of_epoch(0)) * (1 - 1e-12)));
    return std::max<int64_t>(1, steps);
  }
  for (int64_t epoch = 0; epoch < whole; ++epoch) steps += steps_of_epoch(epoch);
  const double rest = epochs - static_cast<double>(whole);
  if (rest > 0) {
    steps += static_cast<int64_t>(
        std::ceil(rest * static_cast<double>(steps_of_epoch(whole)) * (1 - 1e-12)));
  }
  return std::max<int64_t>(1, steps);
}

std::vector<EpochPlan::Share> EpochPlan::shares() const {
  const std::vector<int64_t> taken = data::tokens_per_epoch(sources_);
  std::vector<Share> shares;
  for (size_t i = 0; i < sources_.size(); ++i) {
    shares.push_back({sources_[i].name, static_cast<int64_t>(supervised_[i].size()),
                      std::accumulate(supervised_[i].begin(), supervised_[i].end(), int64_t{0}),
                      taken[i]});
  }
  return shares;
}

}  // namespace graft::train
