#include "train/job/sample.h"

#include <algorithm>
#include <array>
#include <span>

#include "core/error.h"
#include "data/records/record.h"

namespace graft::train {
namespace {

void refuse(Sample& sample,
            const data::RecordSource& source,
            const data::RawItem& item,
            const std::string& why) {
  ++sample.refused;
  if (!sample.first_refusal.empty()) return;
  sample.first_refusal =
      source.files()[static_cast<size_t>(item.file)] + ":" + std::to_string(item.line) + ": " + why;
}

// The first place that is trained. A document's first token is predicted by nothing.
std::vector<uint8_t>::const_iterator first_trained(const data::Document& document) {
  return std::find_if(document.loss.begin() + 1, document.loss.end(),
                      [](uint8_t loss) { return loss != 0; });
}

void take(Sample& sample,
          const data::RecordSource& source,
          const data::RawItem& item,
          data::Document document) {
  if (document.refusal != data::Refusal::kNone) {
    refuse(sample, source, item,
           std::string(data::refusal_name(document.refusal)) + ": " + document.reason);
    return;
  }
  sample.tokens += static_cast<int64_t>(document.ids.size());
  sample.supervised += document.supervised;
  sample.turns += document.turns;
  sample.turns_without_stop += document.turns_without_stop;
  if (first_trained(document) != document.loss.end())
    sample.documents.push_back(std::move(document));
}

enum class Trains { kYes, kNo };

// Appends `document`, cut to `most` tokens around its first trained one.
void add_cut(
    Batch& batch, const data::Document& document, int64_t most, int64_t index, Trains trains) {
  std::array<float, 256> weights{0.0F, 1.0F};
  std::copy(document.weights.begin(), document.weights.end(), weights.begin() + 2);
  const auto size = static_cast<int64_t>(document.ids.size());
  const int64_t length = std::min(size, most);
  const int64_t middle = first_trained(document) - document.loss.begin();
  const int64_t begin = std::clamp<int64_t>(middle - length / 2, 0, size - length);
  const auto first = static_cast<size_t>(begin), count = static_cast<size_t>(length);
  const std::vector<uint8_t> nothing(count, 0);
  batch.add(
      std::span(document.ids).subspan(first, count),
      trains == Trains::kYes ? std::span(document.loss).subspan(first, count) : std::span(nothing),
      weights, index);
}

}  // namespace

Sample read_sample(const TrainConfig& config, const ModelText& text, int64_t most_records) {
  data::MaskOptions mask = config.mask;
  if (mask.over_long == data::OverLong::kRaise) mask.over_long = data::OverLong::kDrop;
  Sample sample;
  for (const Dataset& dataset : config.datasets) {
    data::RecordSource source({dataset.path});
    data::RawItem item;
    for (int64_t record = 0; record < most_records && source.next(item); ++record) {
      ++sample.records;
      try {
        for (data::Document& document :
             data::encode_record(data::read_record(source, item, dataset.fields), *text.tokenizer,
                                 text.chat_or_null(), mask)) {
          take(sample, source, item, std::move(document));
        }
      } catch (const Error& error) {
        if (error.code() != ExitCode::kData) throw;
        refuse(sample, source, item, error.text().what);
      }
    }
  }
  return sample;
}

StepRows sample_rows(const Sample& sample, size_t count, int64_t row_tokens) {
  StepRows rows;
  rows.count = count;
  rows.batch = [&sample, row_tokens](size_t first, size_t last) {
    Batch batch;
    batch.clear();
    for (size_t row = first; row < last; ++row) {
      batch.begin_row();
      for (size_t place = 0; place < 2; ++place) {
        const auto index = static_cast<int64_t>(2 * row + place) * (row_tokens / 2);
        add_cut(batch, sample.documents[(2 * row + place) % sample.documents.size()],
                row_tokens / 2, index, Trains::kYes);
      }
    }
    return batch;
  };
  rows.scale = 1 / rows.batch(0, count).weight_sum;
  return rows;
}

Batch sample_row(const Sample& sample, size_t documents, int64_t row_tokens, int64_t trained) {
  Batch batch;
  batch.clear();
  batch.begin_row();
  for (size_t place = 0; place < documents; ++place) {
    const bool trains = trained < 0 || trained == static_cast<int64_t>(place);
    add_cut(batch, sample.documents[place % sample.documents.size()], row_tokens / 2,
            batch.tokens(), trains ? Trains::kYes : Trains::kNo);
  }
  return batch;
}

}  // namespace graft::train
