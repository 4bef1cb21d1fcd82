// Record files to a token store: the one function behind `graft data tokenize` and the trainer.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/records/record.h"
#include "data/text/mask.h"

namespace graft::data {

// What is tokenized. Borrowed for the call.
struct TokenizeInput {
  std::vector<std::string> files;
  std::vector<FieldMapping> mappings;  // other names for the members of each file's records, or
                                       // empty
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat = nullptr;  // nullptr: the model has none
  std::string model_dir;               // stands in the store for `graft data show`
};

struct TokenizeOptions {
  MaskOptions mask;
  std::string out;     // the store
  std::string report;  // a file for what is wrong with which row, or empty: a JSON line for each
                       // document that is refused or has a fault, {"file", "line", "row", "rule",
                       // "kept", "reason"}; written also when tokenize_files ends with an error
                       // about the data
  Pairs pairs = Pairs::kRefuse;  // refused ones are unreadable records
  int threads = 0;               // 0 = one per processor. The store's bytes do not depend on it.
};

// A record, or one document of it, that was left out.
struct RefusedRecord {
  std::string file;
  int64_t line = 0;  // 1-based
  int64_t row = 0;   // 0-based record of the file
  std::string rule;  // refusal_name(), or "unreadable"
  std::string reason;
};

// A special token in the documents. One that the model has never been trained on (a chat template
// that is new to a base model) needs its embedding trained as well.
struct SpecialCount {
  int32_t id = 0;
  std::string token;
  int64_t count = 0;
  int64_t trained = 0;  // of these, so many are trained on
};

struct TokenizeSummary {
  int64_t records = 0;
  int64_t documents = 0;
  int64_t pairs = 0;  // of the documents: preference pairs
  int64_t tokens = 0;
  int64_t supervised = 0;              // tokens
  std::map<int64_t, int64_t> lengths;  // how many documents have so many tokens
  int64_t turns = 0;
  int64_t turns_without_stop = 0;
  int64_t turns_unlike_serving = 0;
  int64_t straddling = 0;
  int64_t double_bos = 0;              // documents
  std::vector<SpecialCount> specials;  // by id
  int64_t truncated_documents = 0;
  int64_t truncated_tokens = 0;
  std::vector<std::pair<std::string, int64_t>> refused_by_rule;
  std::vector<RefusedRecord> refused;  // the first 20
  int64_t refused_count = 0;
  std::string digest;  // of the store
  std::string store;   // its path
};

// `settings`: tokenize_settings() of the same input. `progress(done_bytes, total_bytes)` is called
// from the calling thread, or is empty.
// Errors: kIo; kUsage (records need a template and the model has none); kData: no document at all,
// documents longer than sequence_len under OverLong::kRaise (counted over all files first), a fault
// whose level is kRaise, or more than 1 % of the turns with a straddling token.
TokenizeSummary tokenize_files(const TokenizeInput& input,
                               Json settings,
                               const TokenizeOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress = {});

// The settings of a store made with these arguments; a trainer compares store_digest() of them with
// an existing store to reuse it. Reads and hashes the files. Errors: kIo.
Json tokenize_settings(const TokenizeInput& input, const MaskOptions& mask);

}  // namespace graft::data
