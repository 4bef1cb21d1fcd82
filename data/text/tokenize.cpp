#include "data/text/tokenize.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"  // format_count
#include "data/text/token_store.h"

namespace graft::data {
namespace {

// Enough work to share out between threads, small enough to hold the documents in memory.
constexpr size_t kBatchRecords = 1024;
constexpr size_t kBatchBytes = size_t{16} << 20;
constexpr size_t kShownRefusals = 20;
constexpr double kMaxStraddlingTurns = 0.01;

struct Item {
  RawItem raw;
  std::vector<Document> documents;
  std::string unreadable;  // why the record could not be read
};

// Runs work(index) for 0..count-1 on `threads` threads; the first exception is thrown here.
template <class Work>
void for_each_index(size_t count, int threads, const Work& work) {
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> errors(static_cast<size_t>(threads));
  const auto run = [&](size_t thread) {
    try {
      for (size_t i = next++; i < count; i = next++) work(i);
    } catch (...) {
      errors[thread] = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> pool;
  for (size_t thread = 1; thread < static_cast<size_t>(threads); ++thread) {
    pool.emplace_back(run, thread);
  }
  run(0);
  for (std::thread& thread : pool) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

enum class Fate { kKept, kRefused };

// Adds up what the documents say and writes the kept ones.
class Collector {
 public:
  Collector(const std::vector<std::string>& files,
            const Tokenizer& tokenizer,
            TokenStoreWriter& writer,
            const std::string& report)
      : files_(files), tokenizer_(tokenizer), writer_(writer) {
    if (!report.empty()) report_.emplace(report);
  }

  void add(const Item& item) {
    ++summary_.records;
    if (!item.unreadable.empty()) refuse(item, "unreadable", item.unreadable);
    for (const Document& doc : item.documents) {
      if (doc.refusal != Refusal::kNone) {
        refuse(item, std::string(refusal_name(doc.refusal)), doc.reason);
      } else {
        keep(item, doc);
      }
    }
  }

  TokenizeSummary finish(const MaskOptions& options) {
    for (auto& [rule, count] : by_rule_) summary_.refused_by_rule.emplace_back(rule, count);
    for (const auto& [id, counts] : specials_) {
      summary_.specials.push_back({id, tokenizer_.token(id), counts.first, counts.second});
    }
    if (report_) report_->commit();
    check(options);
    summary_.digest = writer_.commit();
    return std::move(summary_);
  }

 private:
  void keep(const Item& item, const Document& doc) {
    writer_.add(doc.ids, stored_loss(doc), doc.role, {item.raw.file, item.raw.index}, doc.segment);
    for (size_t i = 0; i < doc.ids.size(); ++i) {
      if (!tokenizer_.is_special(doc.ids[i])) continue;
      auto& [count, trained] = specials_[doc.ids[i]];
      ++count;
      trained += doc.loss[i] != 0 ? 1 : 0;
    }
    ++summary_.documents;
    summary_.pairs += doc.segment.empty() ? 0 : 1;
    summary_.tokens += static_cast<int64_t>(doc.ids.size());
    summary_.supervised += doc.supervised;
    ++summary_.lengths[static_cast<int64_t>(doc.ids.size())];
    summary_.turns += doc.turns;
    summary_.turns_without_stop += doc.turns_without_stop;
    summary_.turns_unlike_serving += doc.turns_unlike_serving;
    summary_.straddling += doc.straddling;
    summary_.double_bos += doc.has_double_bos ? 1 : 0;
    summary_.truncated_documents += doc.truncated > 0 ? 1 : 0;
    summary_.truncated_tokens += doc.truncated;
    report_faults(item, doc);
  }

  void report_faults(const Item& item, const Document& doc) {
    const auto say = [&](int64_t count, std::string_view rule, const char* what) {
      if (count > 0) report(item, rule, Fate::kKept, std::to_string(count) + what);
    };
    say(doc.turns_without_stop, refusal_name(Refusal::kUnstoppedTurn),
        " trained turns do not end in a trained stop token");
    say(doc.has_double_bos ? 2 : 0, refusal_name(Refusal::kDoubleBos),
        " times BOS begin the document");
    say(doc.turns_unlike_serving, "unlike_serving",
        " trained turns stand behind another text than when the model is served");
    say(doc.straddling, "straddling", " tokens across the border of a turn are not trained");
    say(doc.truncated, "truncated", " tokens were cut off");
  }

  void report(const Item& item, std::string_view rule, Fate fate, std::string reason) {
    if (!report_) return;
    report_->write(dump_json(Json::object({{"file", files_[static_cast<size_t>(item.raw.file)]},
                                           {"line", item.raw.line},
                                           {"row", item.raw.index},
                                           {"rule", std::string(rule)},
                                           {"kept", fate == Fate::kKept},
                                           {"reason", std::move(reason)}})) +
                   "\n");
  }

  // The document's own weight indices as those of the store.
  std::span<const uint8_t> stored_loss(const Document& doc) {
    if (doc.weights.empty()) return doc.loss;
    std::array<uint8_t, 256> index{};
    index[1] = 1;
    for (size_t i = 0; i < doc.weights.size(); ++i) {
      index[i + 2] = writer_.weight_index(doc.weights[i]);
    }
    loss_.resize(doc.loss.size());
    std::transform(doc.loss.begin(), doc.loss.end(), loss_.begin(),
                   [&](uint8_t own) { return index[own]; });
    return loss_;
  }

  void refuse(const Item& item, const std::string& rule, const std::string& reason) {
    ++summary_.refused_count;
    ++by_rule_[rule];
    report(item, rule, Fate::kRefused, reason);
    if (summary_.refused.size() < kShownRefusals) {
      summary_.refused.push_back({files_[static_cast<size_t>(item.raw.file)], item.raw.line,
                                  item.raw.index, rule, reason});
    }
  }

  std::string first_refusal(const std::string& rule) const {
    for (const RefusedRecord& record : summary_.refused) {
      if (rule.empty() || record.rule == rule) {
        return record.file + ":" + std::to_string(record.line) + ": row " +
               std::to_string(record.row) + ": " + record.reason;
      }
    }
    return files_.front();
  }

  void check(const MaskOptions& options) const {
    const std::string too_long(refusal_name(Refusal::kTooLong));
    const auto long_count = by_rule_.find(too_long);
    if (options.over_long == OverLong::kRaise && long_count != by_rule_.end()) {
      fail(ExitCode::kData,
           format_count(long_count->second) + " of " + format_count(summary_.records) +
               " documents are longer than sequence_len " + std::to_string(options.sequence_len),
           first_refusal(too_long),
           "raise sequence_len, or choose drop, truncate_left, truncate_right or split");
    }
    raise(options.faults.nothing_trained, Refusal::kNothingTrained,
          "mark what is to be trained on, or set the fault's level to drop");
    raise(options.faults.unstopped_turn, Refusal::kUnstoppedTurn,
          "end assistant turns with a special token in the chat template");
    raise(options.faults.double_bos, Refusal::kDoubleBos,
          "take BOS out of the chat template, or out of the data");
    if (summary_.documents == 0) {
      fail(ExitCode::kData,
           "none of the " + format_count(summary_.records) + " records gives a document",
           first_refusal(""),
           "correct the records, what chooses the trained turns (roles_to_train, train_on_turns), "
           "or the "
           "model's chat template");
    }
    if (static_cast<double>(summary_.straddling) >
        kMaxStraddlingTurns * static_cast<double>(summary_.turns)) {
      fail(ExitCode::kData,
           format_count(summary_.straddling) + " tokens straddle the border of the " +
               format_count(summary_.turns) + " trained turns, more than 1 % of them",
           files_.front(), "the template must part turns by special tokens or line ends");
    }
  }

  void raise(FaultLevel level, Refusal refusal, const std::string& fix) const {
    const std::string rule(refusal_name(refusal));
    const auto found = by_rule_.find(rule);
    if (level != FaultLevel::kRaise || found == by_rule_.end()) return;
    fail(ExitCode::kData,
         format_count(found->second) + " of " + format_count(summary_.records) +
             " records are refused as " + rule,
         first_refusal(rule), fix);
  }

  const std::vector<std::string>& files_;
  const Tokenizer& tokenizer_;
  std::vector<uint8_t> loss_;
  TokenStoreWriter& writer_;
  std::optional<AtomicFile> report_;
  TokenizeSummary summary_;
  std::map<std::string, int64_t> by_rule_;
  std::map<int32_t, std::pair<int64_t, int64_t>> specials_;  // count, trained
};

const FieldMapping& mapping_of(const TokenizeInput& input, size_t file) {
  static const FieldMapping none;
  return input.mappings.empty() ? none : input.mappings[file];
}

Json mapping_json(const FieldMapping& mapping) {
  Json lists = Json::array();
  for (const auto* list : {&mapping.record, &mapping.message, &mapping.roles}) {
    Json renames = Json::array();
    for (const FieldMapping::Rename& rename : *list) {
      renames.push_back(Json::array({rename.known, rename.given}));
    }
    lists.push_back(std::move(renames));
  }
  return lists;
}

}  // namespace

Json tokenize_settings(const TokenizeInput& input, const MaskOptions& mask) {
  const auto level = [](FaultLevel fault) {
    return fault == FaultLevel::kReport ? "keep" : "drop";
  };
  Json roles = Json::array();
  for (const std::string& role : mask.roles_to_train) roles.push_back(role);
  Json policy = Json::object();
  policy.set("content_specials", kContentSpecialsNames[static_cast<size_t>(mask.content_specials)]);
  policy.set("over_long", kOverLongNames[static_cast<size_t>(mask.over_long)]);
  // Under "raise" the documents do not depend on the length.
  if (mask.over_long != OverLong::kRaise) policy.set("sequence_len", mask.sequence_len);
  if (mask.over_long == OverLong::kSplit) policy.set("chunk_overlap", mask.chunk_overlap);
  policy.set("turns", kTurnsNames[static_cast<size_t>(mask.turns)]);
  policy.set("roles_to_train", std::move(roles));
  policy.set("train_on_eos", kTrainEosNames[static_cast<size_t>(mask.train_on_eos)]);
  policy.set("train_on_inputs", mask.train_on_inputs);
  policy.set("unstopped_turn", level(mask.faults.unstopped_turn));
  policy.set("double_bos", level(mask.faults.double_bos));
  policy.set("now", mask.now);
  policy.set("vars", mask.vars);
  Json inputs = Json::array();
  for (size_t index = 0; index < input.files.size(); ++index) {
    const std::string& file = input.files[index];
    Json entry = Json::object();
    entry.set("name", base_name(file));
    entry.set("sha256", sha256_file(file));
    entry.set("bytes", file_size(file));
    if (const FieldMapping& mapping = mapping_of(input, index); !mapping.empty()) {
      entry.set("fields", mapping_json(mapping));
    }
    inputs.push_back(std::move(entry));
  }
  Json settings = Json::object();
  settings.set("tokenizer", input.tokenizer->digest());
  settings.set("template", input.chat ? Json(input.chat->digest()) : Json());
  settings.set("policy", std::move(policy));
  settings.set("inputs", std::move(inputs));
  return settings;
}

TokenizeSummary tokenize_files(const TokenizeInput& input,
                               Json settings,
                               const TokenizeOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress) {
  RecordSource source(input.files);
  int64_t total_bytes = 0;
  for (const std::string& file : input.files) total_bytes += file_size(file);
  // No part of the content address.
  settings.set("model", std::filesystem::absolute(input.model_dir).lexically_normal().string());
  TokenStoreWriter writer(options.out, std::move(settings));
  Collector collector(input.files, *input.tokenizer, writer, options.report);
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));

  const auto encode = [&](Item& item) {
    Record record;
    try {
      record = read_record(source, item.raw, mapping_of(input, static_cast<size_t>(item.raw.file)),
                           options.pairs);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      item.unreadable = error.text().what;
      return;
    }
    item.documents = encode_record(record, *input.tokenizer, input.chat, options.mask);
  };
  std::vector<Item> batch;
  int64_t done_bytes = 0;
  bool has_more = true;
  while (has_more) {
    batch.clear();
    size_t bytes = 0;
    while (batch.size() < kBatchRecords && bytes < kBatchBytes) {
      Item item;
      has_more = source.next(item.raw);
      if (!has_more) break;
      bytes += item.raw.raw.size();
      batch.push_back(std::move(item));
    }
    for_each_index(batch.size(), threads, [&](size_t i) { encode(batch[i]); });
    for (const Item& item : batch) collector.add(item);
    done_bytes += static_cast<int64_t>(bytes);
    if (progress) progress(std::min(done_bytes, total_bytes), total_bytes);
  }
  if (progress) progress(total_bytes, total_bytes);
  TokenizeSummary summary = collector.finish(options.mask);
  summary.store = options.out;
  return summary;
}

}  // namespace graft::data
