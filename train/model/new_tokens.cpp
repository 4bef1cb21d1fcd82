#include "train/model/new_tokens.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "adapters/fit.h"
#include "core/error.h"
#include "kernels/elementwise.h"
#include "train/engine/tensor.h"
#include "train/model/saved.h"
#include "train/model/targets.h"

namespace graft::train {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens";
constexpr const char* kHead = "lm_head";

struct Table {
  const char* module;
  at::Tensor* value;
  graft_float_type type;
  TableRows* rows;
  bool whole;  // trained
};

std::vector<Table> tables_of(Model& model) {
  std::vector<Table> tables = {{kEmbedding, &model.embedding, model.embedding_type,
                                &model.embedding_rows, model.embedding_grad.defined()}};
  if (!model.config.tied_embeddings) {
    tables.push_back(
        {kHead, &model.head, model.head_operands, &model.head_rows, model.head_grad.defined()});
  }
  return tables;
}

std::byte* row_of(const Table& table, int64_t row) {
  const int64_t bytes = table.value->size(1) * size_of(table.type);
  return static_cast<std::byte*>(table.value->data_ptr()) + row * bytes;
}

void put_rows(const Table& table, int64_t first, int64_t count, const float* values) {
  const int64_t hidden = table.value->size(1);
  const Device device = place_of(*table.value);
  check(graft_convert(values, GRAFT_F32, hidden, row_of(table, first), table.type, hidden, count,
                      hidden, 1, device.kind, device.stream));
}

// The means of the pieces' rows, [tokens, hidden] in float32. Not tensors of their own: the plan
// knows of none.
void take_means(const Table& table, const AddedTokens& added, float* means) {
  const int64_t hidden = table.value->size(1);
  std::vector<float> row(static_cast<size_t>(hidden));
  std::fill_n(means, added.count() * hidden, 0.0F);
  for (const std::vector<int32_t>& pieces : added.pieces) {
    for (const int32_t piece : pieces) {
      check(graft_convert(row_of(table, piece), table.type, hidden, row.data(), GRAFT_F32, hidden,
                          1, hidden, 1));
      for (int64_t i = 0; i < hidden; ++i) means[i] += row[static_cast<size_t>(i)];
    }
    for (int64_t i = 0; i < hidden; ++i) means[i] /= static_cast<float>(pieces.size());
    means += hidden;
  }
}

// The table by one of the names that `module` has in other checkpoints; nullptr for none.
const Table* find_table(const std::vector<Table>& tables, const std::string& module) {
  const std::vector<std::string> names = adapters::names_of(module);
  const auto table = std::find_if(tables.begin(), tables.end(), [&](const Table& one) {
    return std::find(names.begin(), names.end(), one.module) != names.end();
  });
  return table == tables.end() ? nullptr : &*table;
}

std::string module_of(const adapters::SavedTensor& saved) {
  return saved.name.substr(0, saved.name.rfind('.'));
}

// The vocabulary that the adapter was trained with, as far as it shows.
int64_t vocabulary_of(const std::vector<Table>& tables,
                      int64_t vocab_size,
                      const adapters::Adapter& adapter) {
  for (const adapters::TokenRows& rows : adapter.rows) {
    for (const int64_t id : rows.ids) vocab_size = std::max(vocab_size, id + 1);
  }
  for (const adapters::SavedTensor& saved : adapter.saved) {
    if (find_table(tables, module_of(saved)) == nullptr || saved.shape.size() != 2) continue;
    vocab_size = std::max(vocab_size, saved.shape[0]);
  }
  return vocab_size;
}

// A row that is neither the model's nor the adapter's would be nothing but zeros.
void check_new_rows(const Table& table,
                    int64_t stored,
                    int64_t vocab_size,
                    const adapters::Adapter& adapter,
                    const std::vector<Table>& tables,
                    const std::string& file) {
  for (const adapters::SavedTensor& saved : adapter.saved) {
    if (find_table(tables, module_of(saved)) == &table) return;
  }
  const auto rows = std::find_if(
      adapter.rows.begin(), adapter.rows.end(),
      [&](const adapters::TokenRows& one) { return find_table(tables, one.name) == &table; });
  const int64_t missing =
      adapters::first_missing(rows == adapter.rows.end() ? nullptr : &*rows, stored, vocab_size);
  if (missing == vocab_size) return;
  adapters::refuse_missing_row(missing, stored, vocab_size, file + ": " + table.module);
}

void grow(const Table& table, int64_t vocab_size) {
  const at::Tensor old = *table.value;
  at::Tensor grown = empty_of(table.type, {vocab_size, old.size(1)});
  std::memcpy(grown.data_ptr(), old.data_ptr(), old.nbytes());
  std::memset(static_cast<char*>(grown.data_ptr()) + old.nbytes(), 0,
              grown.nbytes() - old.nbytes());
  *table.value = grown;
}

void load_rows(Model& model, const adapters::TokenRows& rows, const std::string& file) {
  const std::vector<Table> tables = tables_of(model);
  const Table* const table = find_table(tables, rows.name);
  const std::string where = file + ": " + rows.name;
  if (table == nullptr) {
    fail(ExitCode::kData,
         rows.name == kHead ? "the adapter has rows of a head of its own, the model's is tied to "
                              "its embeddings"
                            : "the adapter has rows of a table that the model lacks",
         where, "use the model that the adapter was trained on");
  }
  if (rows.width != model.config.hidden_size) {
    fail(ExitCode::kData,
         "the adapter's rows are " + std::to_string(rows.width) + " wide, the model's " +
             std::to_string(model.config.hidden_size),
         where, "use the model that the adapter was trained on");
  }
  for (size_t i = 0; i < rows.ids.size(); ++i) {
    put_rows(*table, rows.ids[i], 1, rows.values.data() + static_cast<int64_t>(i) * rows.width);
  }
}

}  // namespace

void add_tokens(ModelConfig& config, int64_t first, std::vector<std::vector<int32_t>> pieces) {
  config.added = {first, config.vocab_size, std::move(pieces)};
  config.vocab_size = std::max(config.vocab_size, first + config.added.count());
}

void begin_rows(Model& model) {
  const AddedTokens& added = model.config.added;
  if (added.count() == 0) return;
  for (const Table& table : tables_of(model)) {
    std::vector<float> means(static_cast<size_t>(added.count() * model.config.hidden_size));
    take_means(table, added, means.data());
    put_rows(table, added.first, added.count(), means.data());
  }
}

void train_rows(Model& model) {
  const AddedTokens& added = model.config.added;
  if (added.count() == 0) return;
  const int64_t hidden = model.config.hidden_size;
  for (const Table& table : tables_of(model)) {
    if (table.whole) continue;
    TableRows& rows = *table.rows;
    rows.value = empty_f32({added.count(), hidden});
    if (table.value->defined()) take_means(table, added, f32(rows.value));
    rows.grad = zeros_f32({added.count(), hidden});
    model.trained.push_back({std::string(table.module) + std::string(adapters::kTokenRows),
                             rows.value, rows.grad, true});
  }
  if (model.config.tied_embeddings && model.embedding_rows.grad.defined()) {
    model.head_rows.grad = zeros_f32({added.count(), hidden});
  }
}

void refresh_rows(Model& model) {
  for (const Table& table : tables_of(model)) {
    if (!table.rows->value.defined()) continue;
    put_rows(table, model.config.added.first, model.config.added.count(), f32(table.rows->value));
  }
}

void clear_rows(Model& model) {
  const AddedTokens& added = model.config.added;
  for (const Table& table : tables_of(model)) {
    const auto bytes =
        static_cast<size_t>(added.count() * table.value->size(1) * size_of(table.type));
    std::memset(row_of(table, added.first), 0, bytes);
  }
}

std::vector<adapters::TokenRowsView> row_views(const Model& model) {
  const AddedTokens& added = model.config.added;
  std::vector<int64_t> ids(static_cast<size_t>(added.count()));
  std::iota(ids.begin(), ids.end(), added.first);
  std::vector<adapters::TokenRowsView> views;
  for (const Table& table : tables_of(const_cast<Model&>(model))) {
    if (!table.rows->value.defined()) continue;
    views.push_back(
        {peft_path(model, table.module), ids, model.config.hidden_size, f32(table.rows->value)});
  }
  return views;
}

void load_tables(Model& model, const adapters::Adapter& adapter, const std::string& file) {
  const int64_t stored = model.config.vocab_size;
  std::vector<Table> tables = tables_of(model);
  const int64_t vocab_size = vocabulary_of(tables, stored, adapter);
  if (vocab_size > stored) {
    for (const Table& table : tables) {
      check_new_rows(table, stored, vocab_size, adapter, tables, file);
      grow(table, vocab_size);
    }
    if (model.config.tied_embeddings) model.head = model.embedding;
    model.config.vocab_size = vocab_size;
  }
  load_saved(model, adapter.saved, file);
  for (const adapters::TokenRows& rows : adapter.rows) load_rows(model, rows, file);
}

}  // namespace graft::train
