#include "data/text/tokenize.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
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

constexpr std::array<std::string_view, 3> kContentSpecialsNames = {"refuse", "literal", "parse"};
constexpr std::array<std::string_view, 3> kOverLongNames = {"raise", "drop", "truncate_right"};

struct Item {
  RawItem raw;
  Document document;
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

// Adds up what the documents say and writes the kept ones.
class Collector {
 public:
  Collector(const std::vector<std::string>& files, TokenStoreWriter& writer)
      : files_(files), writer_(writer) {}

  void add(const Item& item) {
    ++summary_.records;
    const Document& doc = item.document;
    if (!item.unreadable.empty()) {
      refuse(item, "unreadable", item.unreadable);
    } else if (doc.refusal != Refusal::kNone) {
      refuse(item, std::string(refusal_name(doc.refusal)), doc.reason);
    } else {
      keep(item);
    }
  }

  TokenizeSummary finish(const MaskOptions& options) {
    for (auto& [rule, count] : by_rule_) summary_.refused_by_rule.emplace_back(rule, count);
    check(options);
    summary_.digest = writer_.commit();
    return std::move(summary_);
  }

 private:
  void keep(const Item& item) {
    const Document& doc = item.document;
    writer_.add(doc.ids, doc.loss, doc.role, {item.raw.file, item.raw.index});
    ++summary_.documents;
    summary_.tokens += static_cast<int64_t>(doc.ids.size());
    summary_.supervised += doc.supervised;
    summary_.longest = std::max(summary_.longest, static_cast<int64_t>(doc.ids.size()));
    summary_.turns += doc.turns;
    summary_.turns_without_stop += doc.turns_without_stop;
    summary_.straddling += doc.straddling;
    summary_.truncated_documents += doc.truncated > 0 ? 1 : 0;
    summary_.truncated_tokens += doc.truncated;
  }

  void refuse(const Item& item, const std::string& rule, const std::string& reason) {
    ++summary_.refused_count;
    ++by_rule_[rule];
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
           "raise sequence_len, or choose over_long drop or truncate_right");
    }
    if (summary_.documents == 0) {
      fail(ExitCode::kData,
           "none of the " + format_count(summary_.records) + " records gives a document",
           first_refusal(""), "correct the records, or the model's chat template");
    }
    if (static_cast<double>(summary_.straddling) >
        kMaxStraddlingTurns * static_cast<double>(summary_.turns)) {
      fail(ExitCode::kData,
           format_count(summary_.straddling) + " tokens straddle the border of the " +
               format_count(summary_.turns) + " trained turns, more than 1 % of them",
           files_.front(), "the template must part turns by special tokens or line ends");
    }
  }

  const std::vector<std::string>& files_;
  TokenStoreWriter& writer_;
  TokenizeSummary summary_;
  std::map<std::string, int64_t> by_rule_;
};

}  // namespace

Json tokenize_settings(const std::vector<std::string>& files,
                       const Tokenizer& tokenizer,
                       const ChatTemplate* chat,
                       const MaskOptions& mask) {
  Json policy = Json::object();
  policy.set("content_specials", kContentSpecialsNames[static_cast<size_t>(mask.content_specials)]);
  policy.set("over_long", kOverLongNames[static_cast<size_t>(mask.over_long)]);
  // Under "raise" the documents do not depend on the length.
  if (mask.over_long != OverLong::kRaise) policy.set("sequence_len", mask.sequence_len);
  policy.set("now", mask.now);
  policy.set("vars", mask.vars);
  Json inputs = Json::array();
  for (const std::string& file : files) {
    Json input = Json::object();
    input.set("name", base_name(file));
    input.set("sha256", sha256_file(file));
    input.set("bytes", file_size(file));
    inputs.push_back(std::move(input));
  }
  Json settings = Json::object();
  settings.set("tokenizer", tokenizer.digest());
  settings.set("template", chat ? Json(chat->digest()) : Json());
  settings.set("policy", std::move(policy));
  settings.set("inputs", std::move(inputs));
  return settings;
}

TokenizeSummary tokenize_files(const std::vector<std::string>& files,
                               const std::string& model_dir,
                               const TokenizeOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress) {
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(model_dir);
  const std::optional<ChatTemplate> chat = ChatTemplate::load(model_dir);
  const ChatTemplate* used = chat ? &*chat : nullptr;
  RecordSource source(files);
  int64_t total_bytes = 0;
  for (const std::string& file : files) total_bytes += file_size(file);
  Json settings = tokenize_settings(files, *tokenizer, used, options.mask);
  // For `graft data show`; no part of the content address.
  settings.set("model", std::filesystem::absolute(model_dir).lexically_normal().string());
  TokenStoreWriter writer(options.out, std::move(settings));
  Collector collector(files, writer);
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));

  const auto encode = [&](Item& item) {
    Record record;
    try {
      record = read_record(source, item.raw);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      item.unreadable = error.text().what;
      return;
    }
    item.document = encode_record(record, *tokenizer, used, options.mask);
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
  TokenizeSummary summary = collector.finish(options.mask);
  summary.store = options.out;
  return summary;
}

}  // namespace graft::data
