#include "train/job/evaluate.h"

#include <cmath>

#include "core/error.h"

namespace graft::train {
namespace {

// Adds the losses of a batch to the sources of its documents.
class SourceSplit {
 public:
  SourceSplit(const data::TokenStore& store, std::vector<SourceSums>& sources)
      : store_(store), sources_(sources) {}

  void add(const Batch& batch,
           const std::vector<int64_t>& documents,
           const std::vector<float>& row_loss,
           const std::vector<uint8_t>& row_correct) {
    size_t at = 0;
    for (int64_t row = 0; row < batch.supervised(); ++row) {
      const auto index = static_cast<size_t>(row);
      while (batch.predicting[index] >= batch.cu_seqlens[at + 1]) {
        ++at;
      }
      const auto file = static_cast<size_t>(store_.source(documents[at]).file);
      EvalSums& sums = sources_[file].sums;
      sums.loss_sum +=
          static_cast<double>(batch.weights[index]) * static_cast<double>(row_loss[index]);
      sums.weight_sum += static_cast<double>(batch.weights[index]);
      ++sums.supervised;
      sums.correct += row_correct[index];
    }
  }

 private:
  const data::TokenStore& store_;
  std::vector<SourceSums>& sources_;
};

}  // namespace

double EvalSums::perplexity() const {
  return std::exp(loss());
}

void EvalSums::add(const EvalSums& other) {
  loss_sum += other.loss_sum;
  weight_sum += other.weight_sum;
  supervised += other.supervised;
  correct += other.correct;
}

EvalResult evaluate(Decoder& decoder,
                    const data::TokenStore& store,
                    const std::function<void(int64_t, int64_t)>& progress) {
  EvalResult result;
  for (const Json& input : store.settings().at("inputs").as_array()) {
    result.sources.push_back({input.at("name").as_string(), {}});
  }
  SourceSplit split(store, result.sources);
  std::vector<int64_t> documents;
  std::vector<float> row_loss;
  std::vector<uint8_t> row_correct;
  Batch batch;
  batch.clear();
  const auto run = [&] {
    const float* residual = decoder.forward(batch, 0);
    row_loss.resize(static_cast<size_t>(batch.supervised()));
    row_correct.resize(row_loss.size());
    const Decoder::HeadResult head =
        decoder.head_loss(batch, residual, 1.0, nullptr, row_loss.data(), {}, row_correct.data());
    result.all.add({head.loss_sum, head.weight_sum, head.supervised, head.correct});
    split.add(batch, documents, row_loss, row_correct);
    result.documents += static_cast<int64_t>(documents.size());
    result.tokens += batch.tokens();
    documents.clear();
    batch.clear();
    if (progress) {
      progress(result.documents, store.document_count());
    }
  };
  for (int64_t document = 0; document < store.document_count(); ++document) {
    const int64_t length = store.length(document);
    if (length > decoder.max_tokens()) {
      fail(ExitCode::kData,
           "a document of " + std::to_string(length) + " tokens, at most " +
               std::to_string(decoder.max_tokens()) + " fit",
           store.path(), "raise sequence_len");
    }
    if (batch.tokens() + length > decoder.max_tokens()) {
      run();
    }
    batch.add(store.tokens(document), store.loss(document), store.weights(), 0);
    documents.push_back(document);
  }
  if (batch.tokens() > 0) {
    run();
  }
  return result;
}

}  // namespace graft::train
