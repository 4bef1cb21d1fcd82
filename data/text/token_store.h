// The token store: tokenized documents in one HDF5 file that training maps and never parses.
//
// /tokens i32[T]  /loss u8[T]  /role u8[T]  /doc_offsets u64[N+1]  /source u64[N]  /weights
// f32[256] are contiguous, uncompressed and start at multiples of 4 KiB; h5py and h5dump read them.
// A store with preference pairs has /segment u8[T] too.
// Beside <store> stands <store>.json with each dataset's file offset, bytes and dtype, the XXH3 of
// every MiB, the settings and the content address. TokenStore reads only the sidecar and maps the
// data: the HDF5 library never runs on a file that is not trusted. Written once, synced, renamed;
// the store first, its sidecar last, so a store without a sidecar is an unfinished one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/records/record.h"
#include "data/text/mask.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"

namespace graft::data {

// Where a document came from: input file (its place in settings()["inputs"]) and 0-based row.
struct DocumentSource {
  int32_t file = 0;
  int64_t row = 0;
  friend bool operator==(const DocumentSource&, const DocumentSource&) = default;
};

// Writes a store in one pass: arrays are spooled beside the target, then laid out. Without commit()
// nothing stays behind.
class TokenStoreWriter {
 public:
  // `settings` must be an object; it is stored as it is. Errors: kIo.
  TokenStoreWriter(std::string path, Json settings);
  ~TokenStoreWriter();
  TokenStoreWriter(const TokenStoreWriter&) = delete;
  TokenStoreWriter& operator=(const TokenStoreWriter&) = delete;
  // The index of a loss weight other than 0 and 1 in /weights; the same for the same weight.
  // Errors: kData (more than 254 of them).
  uint8_t weight_index(float weight);
  // ids, loss and role have the same length, at least 1; loss holds 0, 1 and what weight_index()
  // gave. segment: of a preference pair, as Document::segment; else empty. Errors: kIo, kBug.
  void add(std::span<const int32_t> ids,
           std::span<const uint8_t> loss,
           std::span<const uint8_t> role,
           DocumentSource source,
           std::span<const uint8_t> segment = {});
  int64_t document_count() const;
  int64_t token_count() const;
  // Returns the content address. Errors: kIo, kData (no documents).
  std::string commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A preference pair's parts, as ranges of its document's tokens: the prompt ends where the chosen
// answer begins, that one where the rejected one begins.
struct PairParts {
  int64_t chosen_begin = 0;
  int64_t rejected_begin = 0;
  friend bool operator==(const PairParts&, const PairParts&) = default;
};

class TokenStore {
 public:
  // Maps the store. Checks the sidecar, the sizes and the XXH3 of every MiB (about 10 GB/s), that
  // offsets are ascending and that segments are. Pairs::kRefuse: for a reader to which a document
  // is one sequence. Errors: kIo, kData naming dataset and byte range, or that it holds pairs.
  static TokenStore open(const std::string& path, Pairs pairs = Pairs::kRefuse);

  int64_t document_count() const { return static_cast<int64_t>(source_.size()); }
  int64_t token_count() const { return static_cast<int64_t>(tokens_.size()); }
  // document: 0..document_count()-1; the views live as long as the store.
  std::span<const int32_t> tokens(int64_t document) const;
  std::span<const uint8_t> loss(int64_t document) const;
  std::span<const uint8_t> roles(int64_t document) const;
  DocumentSource source(int64_t document) const;
  // nullopt: the document is no preference pair.
  std::optional<PairParts> pair(int64_t document) const;
  int64_t length(int64_t document) const;
  std::vector<uint32_t> lengths() const;                       // of every document, for pack()
  std::span<const float> weights() const { return weights_; }  // [256], weights()[0] = 0
  // {"tokenizer": sha256, "template": sha256 or null, "policy": {…}, "inputs": [{"name", "sha256",
  //  "bytes"}], "model": directory, …}
  const Json& settings() const { return settings_; }
  // The content address: SHA-256 over the format's version and the settings without file names and
  // "model".
  const std::string& digest() const { return digest_; }
  const std::string& path() const { return file_.path(); }

 private:
  explicit TokenStore(const std::string& path) : file_(path) {}
  std::span<const uint8_t> segments(int64_t document) const;
  MappedFile file_;
  std::span<const int32_t> tokens_;
  std::span<const uint8_t> loss_;
  std::span<const uint8_t> role_;
  std::span<const uint8_t> segment_;  // empty: no document is a pair
  std::span<const uint64_t> offsets_;
  std::span<const uint64_t> source_;
  std::span<const float> weights_;
  Json settings_;
  std::string digest_;
};

// Refuses a store that was not made with this tokenizer and template (nullptr = the model has
// none). Errors: kData with both digests.
void check_store_matches(const TokenStore& store,
                         const Tokenizer& tokenizer,
                         const ChatTemplate* chat);

// The content address of settings: what `TokenStoreWriter::commit` returns for them.
std::string store_digest(const Json& settings);

}  // namespace graft::data
