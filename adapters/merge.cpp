#include "adapters/merge.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "adapters/checkpoint.h"
#include "adapters/fit.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/pattern.h"
#include "adapters/peft.h"
#include "adapters/pieces.h"
#include "adapters/quantize.h"
#include "core/error.h"
#include "kernels/gemm.h"

namespace graft::adapters {
namespace {

// Weights of one tile.
constexpr int64_t kTile = int64_t{1} << 20;
constexpr std::string_view kWeight = ".weight";

struct Sums {
  double base = 0, change = 0, delta = 0, rounding = 0;  // of squares
  void add(const Sums& other) {
    base += other.base;
    change += other.change;
    delta += other.delta;
    rounding += other.rounding;
  }
};

double ratio(double numerator, double denominator) {
  return denominator > 0 ? std::sqrt(numerator / denominator) : 0;
}

// Rows [begin, end) of a base weight as float32, from whatever form it has.
class BaseRows {
 public:
  BaseRows(const SafetensorsFile& file, const TensorInfo& tensor)
      : file_(&file), tensor_(&tensor) {}
  explicit BaseRows(Nf4Owned weight) : owned_(std::make_unique<Nf4Owned>(std::move(weight))) {}
  explicit BaseRows(Nf4Tensor weight) : packed_(std::make_unique<Nf4Tensor>(std::move(weight))) {}

  void read(int64_t begin, int64_t end, std::vector<float>& out) const {
    if (owned_ != nullptr) {
      decode_range(owned_->view(), begin, end, out);
    } else if (packed_ != nullptr) {
      decode_range(packed_->view(), begin, end, out);
    } else {
      out.resize(static_cast<size_t>(end - begin));
      read_floats(*file_, *tensor_, begin, out);
    }
  }

 private:
  const SafetensorsFile* file_ = nullptr;
  const TensorInfo* tensor_ = nullptr;
  std::unique_ptr<Nf4Owned> owned_;
  std::unique_ptr<Nf4Tensor> packed_;
};

float rounded_to(float value, DType dtype) {
  if (dtype == DType::kBF16) return bf16_to_f32(f32_to_bf16(value));
  if (dtype == DType::kF16) return f16_to_f32(f32_to_f16(value));
  return value;
}

// One matrix of the output: its rows stream through `write`, which also gathers the distances.
class MergedWeight {
 public:
  // `open` gives the base when it is needed, so that one matrix at a time is in memory.
  MergedWeight(TensorSpec spec, const AdapterModule* module, std::function<BaseRows()> open)
      : spec_(std::move(spec)), module_(module), open_(std::move(open)) {}

  void write(const ByteSink& sink) {
    const BaseRows base = open_();
    const int64_t rows = spec_.shape[0], columns = spec_.shape[1];
    const int64_t tile_rows = std::max<int64_t>(1, kTile / columns);
    std::vector<float> values, delta;
    for (int64_t row = 0; row < rows; row += tile_rows) {
      const int64_t count = std::min(tile_rows, rows - row);
      base.read(row * columns, (row + count) * columns, values);
      if (module_ != nullptr) add_delta(row, count, values, delta);
      write_floats(values, spec_.dtype, sink);
    }
  }

  const Sums& sums() const { return sums_; }
  const TensorSpec& spec() const { return spec_; }
  const AdapterModule* module() const { return module_; }

 private:
  void add_delta(int64_t row,
                 int64_t count,
                 std::vector<float>& values,
                 std::vector<float>& delta) {
    const int64_t columns = spec_.shape[1];
    delta.resize(values.size());
    const graft_status status =
        graft_gemm_f32(GRAFT_N, GRAFT_N, count, columns, module_->rank,
                       static_cast<float>(module_->scale), module_->b.data() + row * module_->rank,
                       module_->rank, module_->a.data(), columns, 0.0f, delta.data(), columns);
    if (status != GRAFT_OK) fail(ExitCode::kBug, graft_last_error(), spec_.name);
    if (!module_->magnitude.empty()) set_lengths(row, count, values, delta);
    const int64_t total = static_cast<int64_t>(values.size());
    std::vector<Sums> sums(static_cast<size_t>(piece_count(total)));
    std::vector<int64_t> not_finite(sums.size(), -1);
    for_each_piece(total, [&](int64_t piece, int64_t begin, int64_t end) {
      const size_t slot = static_cast<size_t>(piece);
      not_finite[slot] = add_piece(begin, end, values.data(), delta.data(), sums[slot]);
    });
    for (const int64_t index : not_finite) {
      if (index < 0) continue;
      fail(ExitCode::kData,
           "merged value " + std::to_string(row * columns + index) + " is not finite as " +
               std::string(dtype_name(spec_.dtype)),
           spec_.name, "the base or the adapter is damaged, or too large for the base's type");
    }
    for (const Sums& piece : sums) sums_.add(piece);
  }

  // DoRA: the change that gives the rows of values + delta their lengths.
  void set_lengths(int64_t row,
                   int64_t count,
                   const std::vector<float>& values,
                   std::vector<float>& delta) const {
    const int64_t columns = spec_.shape[1];
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const float* const base = values.data() + i * columns;
      float* const change = delta.data() + i * columns;
      double squares = 0;
      for (int64_t j = 0; j < columns; ++j) {
        const double sum = static_cast<double>(base[j]) + static_cast<double>(change[j]);
        squares += sum * sum;
      }
      const double magnitude =
          static_cast<double>(module_->magnitude[static_cast<size_t>(row + i)]);
      const double factor = squares > 0 ? magnitude / std::sqrt(squares) : 0;
      for (int64_t j = 0; j < columns; ++j) {
        const double value = static_cast<double>(base[j]);
        change[j] = static_cast<float>(factor * (value + static_cast<double>(change[j])) - value);
      }
    }
  }

  // values += delta over [begin, end); gives the first index whose rounded sum is not finite, or
  // -1.
  int64_t add_piece(
      int64_t begin, int64_t end, float* values, const float* delta, Sums& sums) const {
    Sums local;
    for (int64_t i = begin; i < end; ++i) {
      const float sum = values[i] + delta[i];
      const float rounded = rounded_to(sum, spec_.dtype);
      if (!std::isfinite(rounded)) return i;
      const double base = static_cast<double>(values[i]), change = static_cast<double>(delta[i]);
      const double kept = static_cast<double>(rounded);
      local.base += base * base;
      local.change += (kept - base) * (kept - base);
      local.delta += change * change;
      local.rounding += (kept - (base + change)) * (kept - (base + change));
      values[i] = sum;
    }
    sums = local;
    return -1;
  }

  TensorSpec spec_;
  const AdapterModule* module_;  // nullptr: decoded only
  std::function<BaseRows()> open_;
  Sums sums_;
};

// A tensor's values from the adapter, in the model's dtype.
OutputTensor saved_tensor(const std::string& name, DType dtype, const SavedTensor& saved) {
  return {{name, dtype, saved.shape},
          [&saved, dtype](const ByteSink& sink) { write_floats(saved.values, dtype, sink); }};
}

// Sets tie_word_embeddings to false wherever config.json may have it.
Json untied(const Json& config) {
  Json result = config;
  result.set("tie_word_embeddings", false);
  if (const Json* text = config.find("text_config")) {
    Json inner = *text;
    inner.set("tie_word_embeddings", false);
    result.set("text_config", inner);
  }
  return result;
}

// A table with rows of the adapter's own, behind the model's last one too.
class RowsTable {
 public:
  RowsTable(const SafetensorsFile& file, const TensorInfo& tensor, const TokenRows& rows)
      : file_(file), tensor_(tensor), rows_(rows) {
    for (size_t i = 0; i < rows.ids.size(); ++i) index_[rows.ids[i]] = i;
  }

  void write(int64_t row_count, const ByteSink& sink) const {
    const int64_t columns = tensor_.shape[1];
    const int64_t tile_rows = std::max<int64_t>(1, kTile / columns);
    std::vector<float> values;
    for (int64_t row = 0; row < row_count; row += tile_rows) {
      const int64_t end = std::min(row + tile_rows, row_count);
      values.assign(static_cast<size_t>((end - row) * columns), 0);
      const int64_t stored = std::clamp(tensor_.shape[0] - row, int64_t{0}, end - row);
      read_floats(file_, tensor_, row * columns,
                  std::span(values).first(static_cast<size_t>(stored * columns)));
      for (auto at = index_.lower_bound(row); at != index_.end() && at->first < end; ++at) {
        std::copy_n(rows_.values.begin() + static_cast<int64_t>(at->second) * columns, columns,
                    values.begin() + (at->first - row) * columns);
      }
      write_floats(values, tensor_.dtype, sink);
    }
  }

 private:
  const SafetensorsFile& file_;
  const TensorInfo& tensor_;
  const TokenRows& rows_;
  std::map<int64_t, size_t> index_;  // of `rows` by id
};

bool holds_packed_weights(const SafetensorsDirectory& model) {
  const std::vector<std::string> names = model.names();
  return std::any_of(names.begin(), names.end(), is_quantization_tensor);
}

bool trained_on_packed(const Adapter& adapter) {
  const auto trained = adapter.metadata.find("base_quantization");
  return trained != adapter.metadata.end() && trained->second != "none";
}

// |W - decoded NF4(W)| / |W| over the weights that `graft quantize` would pack.
double nf4_distance(const SafetensorsDirectory& model) {
  Sums sums;
  std::vector<float> original, decoded;
  for (const auto& file : model.files()) {
    for (const TensorInfo& tensor : file->tensors()) {
      if (!is_quantized_weight(tensor)) continue;
      const Nf4Owned packed = quantize_tensor(*file, tensor, {});
      for (int64_t begin = 0; begin < packed.count; begin += kTile) {
        const int64_t end = std::min(begin + kTile, packed.count);
        decode_range(packed.view(), begin, end, decoded);
        original.resize(decoded.size());
        read_floats(*file, tensor, begin, original);
        for (size_t i = 0; i < decoded.size(); ++i) {
          const double value = static_cast<double>(original[i]);
          const double change = static_cast<double>(decoded[i]) - value;
          sums.base += value * value;
          sums.change += change * change;
        }
      }
    }
  }
  return ratio(sums.change, sums.base);
}

MergeBase choose_base(MergeBase asked,
                      bool packed,
                      const SafetensorsDirectory& model,
                      const Adapter& adapter) {
  if (asked == MergeBase::kW16 && packed) {
    fail(ExitCode::kUsage, "the model directory is 4-bit: it holds no 16-bit weights to merge onto",
         model.directory(), "give the original model, or --merge-base dequant");
  }
  if (asked != MergeBase::kAuto) return asked;
  return packed || trained_on_packed(adapter) ? MergeBase::kDequant : MergeBase::kW16;
}

const AdapterModule* find_module(const Adapter& adapter, const std::string& name) {
  const auto found = std::find_if(adapter.modules.begin(), adapter.modules.end(),
                                  [&](const AdapterModule& module) { return module.name == name; });
  return found == adapter.modules.end() ? nullptr : &*found;
}

int64_t spec_bytes(const TensorSpec& spec) {
  int64_t count = dtype_bytes(spec.dtype);
  for (const int64_t dimension : spec.shape) count *= dimension;
  return count;
}

class Merge {
 public:
  explicit Merge(const MergeOptions& options)
      : options_(options),
        model_(options.model),
        adapter_(fit_adapter(read_peft(options.adapter), model_)),
        packed_model_(holds_packed_weights(model_)) {
    report_.base = choose_base(options.base, packed_model_, model_, adapter_);
    for (const SavedTensor& saved : adapter_.saved) place(saved);
    for (const TokenRows& rows : adapter_.rows) place(rows);
    check_tables();
  }

  MergeReport run() {
    Json::Object config = read_config(model_).as_object();
    config.erase(std::remove_if(config.begin(), config.end(),
                                [](const auto& m) { return m.first == "quantization_config"; }),
                 config.end());
    Json plain(std::move(config));
    if (unties()) plain = untied(plain);
    if (report_.new_rows > 0) plain = with_vocab_size(plain, vocab_size_);
    report_.own_tokenizer = has_tokenizer(options_.adapter);
    write_checkpoint(
        model_, options_.out, plain, [this](const SafetensorsFile& file) { return plan(file); },
        "merge", report_.own_tokenizer ? options_.adapter : "");
    collect();
    report_.relative_change = ratio(total_.change, total_.base);
    report_.rounding_share = ratio(total_.rounding, total_.delta);
    if (report_.base == MergeBase::kW16 && trained_on_packed(adapter_)) {
      report_.trained_base_distance = nf4_distance(model_);
    }
    return report_;
  }

 private:
  // The model's tensor of this name, or of one that it has elsewhere.
  std::optional<SafetensorsDirectory::Entry> find_tensor(const std::string& any_name) const {
    for (const std::string& name : names_of(any_name)) {
      for (const std::string& stored : {name, "language_model." + name}) {
        if (const auto entry = model_.find(stored)) return entry;
      }
    }
    return std::nullopt;
  }

  static bool is_table(const std::string& name) {
    return ends_in_parts(name, "embed_tokens.weight") || ends_in_parts(name, "lm_head.weight");
  }

  // Finds the tensor that `saved` replaces.
  void place(const SavedTensor& saved) {
    const auto entry = find_tensor(saved.name);
    if (!entry) {
      if (saved.name == "lm_head.weight" && saved.shape.size() == 2) {
        head_ = &saved;  // tied: the model has only the embeddings
        vocab_size_ = std::max(vocab_size_, saved.shape[0]);
        return;
      }
      fail(ExitCode::kData, "the adapter has a tensor that the model lacks",
           model_.directory() + ": " + saved.name, "use the model that the adapter was trained on");
    }
    const TensorInfo& info = *entry->info;
    const bool grows = is_table(info.name) && info.shape.size() == 2 && saved.shape.size() == 2 &&
                       saved.shape[0] > info.shape[0] && saved.shape[1] == info.shape[1];
    if (info.shape != saved.shape && !grows) {
      fail(ExitCode::kData,
           "the model's tensor is " + shape_text(info.shape) + ", the adapter's " +
               shape_text(saved.shape),
           entry->file->path() + ": " + info.name, "use the model that the adapter was trained on");
    }
    replaced_[info.name] = &saved;
    if (ends_in_parts(info.name, "embed_tokens.weight")) embedding_ = info.name;
    if (grows) vocab_size_ = std::max(vocab_size_, saved.shape[0]);
  }

  // Finds the table that `rows` belong to.
  void place(const TokenRows& rows) {
    const auto entry = find_tensor(rows.name + ".weight");
    const std::string where = model_.directory() + ": " + rows.name;
    if (!entry || entry->info->shape.size() != 2 || entry->info->shape[1] != rows.width) {
      fail(ExitCode::kData,
           entry ? "the model's table is " + shape_text(entry->info->shape) +
                       ", the adapter's rows are " + std::to_string(rows.width) + " wide"
                 : "the adapter has rows of a table that the model lacks, or has tied to another",
           where, "use the model that the adapter was trained on");
    }
    rows_[entry->info->name] = &rows;
    for (const int64_t id : rows.ids) vocab_size_ = std::max(vocab_size_, id + 1);
    report_.token_rows += static_cast<int64_t>(rows.ids.size());
  }

  // Where the vocabulary grows, every table has all of the new rows.
  void check_tables() {
    for (const std::string& name : model_.names()) {
      if (!is_table(name)) continue;
      const TensorInfo& table = *model_.at(name).info;
      if (table.shape.size() != 2) continue;
      const int64_t stored = table.shape[0];
      vocab_size_ = std::max(vocab_size_, stored);
      report_.new_rows = vocab_size_ - stored;
      const auto saved = replaced_.find(name);
      if (saved != replaced_.end() && saved->second->shape[0] == vocab_size_) continue;
      const auto rows = rows_.find(name);
      const int64_t missing =
          first_missing(rows == rows_.end() ? nullptr : rows->second, stored, vocab_size_);
      if (missing < vocab_size_) {
        refuse_missing_row(missing, stored, vocab_size_, options_.adapter + ": " + name);
      }
    }
    if (head_ != nullptr && head_->shape[0] < vocab_size_) {
      refuse_missing_row(head_->shape[0], head_->shape[0], vocab_size_,
                         options_.adapter + ": " + head_->name);
    }
  }

  // Embeddings and head were one tensor, and the adapter has two.
  bool unties() const {
    if (model_.find("lm_head.weight") || model_.find("language_model.lm_head.weight")) return false;
    const SavedTensor* const embedding = embedding_.empty() ? nullptr : replaced_.at(embedding_);
    if (head_ == nullptr) return embedding != nullptr;
    return embedding == nullptr || embedding->values != head_->values;
  }

  // The head that was tied to `embedding` and no longer is.
  OutputTensor own_head(const SafetensorsFile& file, const TensorInfo& embedding) const {
    if (head_ != nullptr) return saved_tensor("lm_head.weight", embedding.dtype, *head_);
    OutputTensor copy = copied_tensor(file, embedding);
    copy.spec.name = "lm_head.weight";
    return copy;
  }

  OutputTensor table_with_rows(const SafetensorsFile& file,
                               const TensorInfo& tensor,
                               const TokenRows& rows) const {
    const auto table = std::make_shared<RowsTable>(file, tensor, rows);
    const int64_t row_count = vocab_size_;
    return {{tensor.name, tensor.dtype, {row_count, tensor.shape[1]}},
            [table, row_count](const ByteSink& sink) { table->write(row_count, sink); }};
  }

  // The matrix that replaces `tensor`, or nothing when it is copied.
  std::unique_ptr<MergedWeight> merged(const SafetensorsFile& file, const TensorInfo& tensor) {
    if (tensor.name.size() <= kWeight.size() ||
        tensor.name.substr(tensor.name.size() - kWeight.size()) != kWeight) {
      return nullptr;
    }
    const std::string name = tensor.name.substr(0, tensor.name.size() - kWeight.size());
    const AdapterModule* module = find_module(adapter_, name);
    TensorSpec spec{tensor.name, tensor.dtype, tensor.shape};
    std::function<BaseRows()> open;
    if (tensor.dtype == DType::kU8) {
      const auto packed = find_nf4(model_, name);
      if (!packed) return nullptr;
      spec.shape = packed->shape();
      spec.dtype = packed->dtype();
      open = [this, name] { return BaseRows(*find_nf4(model_, name)); };
    } else if (report_.base == MergeBase::kDequant && !packed_model_ &&
               is_quantized_weight(tensor)) {
      // Every weight that QLoRA saw becomes its decoded value, adapted or not.
      open = [&file, &tensor] { return BaseRows(quantize_tensor(file, tensor, {})); };
    } else if (module != nullptr) {
      open = [&file, &tensor] { return BaseRows(file, tensor); };
    } else {
      return nullptr;
    }
    return std::make_unique<MergedWeight>(std::move(spec), module, std::move(open));
  }

  std::vector<OutputTensor> plan(const SafetensorsFile& file) {
    collect();
    std::vector<OutputTensor> output;
    for (const TensorInfo& tensor : file.tensors()) {
      if (is_quantization_tensor(tensor.name)) continue;
      if (unties() && ends_in_parts(tensor.name, "embed_tokens.weight")) {
        output.push_back(own_head(file, tensor));
        report_.bytes += spec_bytes(output.back().spec);
      }
      const auto saved = replaced_.find(tensor.name);
      std::unique_ptr<MergedWeight> weight =
          saved == replaced_.end() ? merged(file, tensor) : nullptr;
      const auto rows = rows_.find(tensor.name);
      if (rows != rows_.end()) {
        output.push_back(table_with_rows(file, tensor, *rows->second));
      } else if (saved != replaced_.end()) {
        output.push_back(saved_tensor(tensor.name, tensor.dtype, *saved->second));
        ++report_.saved_tensors;
      } else if (weight == nullptr) {
        output.push_back(copied_tensor(file, tensor));
        ++report_.copied_tensors;
      } else {
        MergedWeight* const pointer = weight.get();
        output.push_back(
            {weight->spec(), [pointer](const ByteSink& sink) { pointer->write(sink); }});
        held_.push_back(std::move(weight));
      }
      report_.bytes += spec_bytes(output.back().spec);
    }
    return output;
  }

  // Takes the distances of the matrices that were written.
  void collect() {
    for (const auto& weight : held_) {
      if (weight->module() == nullptr) continue;
      ++report_.merged_tensors;
      total_.add(weight->sums());
      const double change = ratio(weight->sums().change, weight->sums().base);
      if (report_.most_changed.empty() || change > report_.most_changed_value) {
        report_.most_changed = weight->module()->name;
        report_.most_changed_value = change;
      }
    }
    held_.clear();
  }

  const MergeOptions& options_;
  SafetensorsDirectory model_;
  Adapter adapter_;
  bool packed_model_;
  std::vector<std::unique_ptr<MergedWeight>> held_;     // of the file that is being written
  std::map<std::string, const SavedTensor*> replaced_;  // by the model's name
  std::map<std::string, const TokenRows*> rows_;        // likewise
  int64_t vocab_size_ = 0;                              // of the merged model
  std::string embedding_;                               // the model's name, where it is replaced
  const SavedTensor* head_ = nullptr;                   // without a tensor of the model's
  Sums total_;
  MergeReport report_;
};

}  // namespace

MergeBase parse_merge_base(std::string_view text) {
  for (const MergeBase base : {MergeBase::kAuto, MergeBase::kW16, MergeBase::kDequant}) {
    if (text == merge_base_name(base)) return base;
  }
  constexpr std::string_view kKnown[] = {"auto", "w16", "dequant"};
  fail(ExitCode::kUsage, unknown_name("merge base", text, kKnown), "--merge-base");
}

std::string_view merge_base_name(MergeBase base) {
  switch (base) {
    case MergeBase::kW16:
      return "w16";
    case MergeBase::kDequant:
      return "dequant";
    case MergeBase::kAuto:
      break;
  }
  return "auto";
}

MergeReport merge_adapter(const MergeOptions& options) {
  return Merge(options).run();
}

}  // namespace graft::adapters
