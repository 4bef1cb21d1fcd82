#include "data/text/token_store.h"

#include <algorithm>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/token_store_format.h"

namespace graft::data {
namespace {

constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n";
constexpr std::string_view kRemake = "remove the store and its .json and tokenize again";

[[noreturn]] void damaged(const std::string& what, const std::string& where) {
  fail(ExitCode::kData, what, where, std::string(kRemake));
}

// The bytes of one array, checked against the sidecar.
std::span<const std::byte> checked_array(std::span<const std::byte> file,
                                         const Json& entry,
                                         const StoreArray& array,
                                         const std::string& path) {
  const std::string where = path + ": /" + std::string(array.name);
  const int64_t offset = entry.at("offset").as_int();
  const int64_t bytes = entry.at("bytes").as_int();
  const auto size = static_cast<int64_t>(file.size());
  if (entry.at("dtype").as_string() != array.dtype) {
    damaged("dtype must be " + std::string(array.dtype) + ", got " + entry.at("dtype").as_string(),
            where);
  }
  if (offset < 0 || bytes < 0 || offset % kStoreAlignment != 0 || offset > size ||
      bytes > size - offset || bytes % array.item_bytes != 0) {
    damaged("the array must lie in the file's " + std::to_string(size) + " bytes, got offset " +
                std::to_string(offset) + " and " + std::to_string(bytes) + " bytes",
            where);
  }
  const Json::Array& hashes = entry.at("xxh3").as_array();
  if (static_cast<int64_t>(hashes.size()) != (bytes + kStoreBlockBytes - 1) / kStoreBlockBytes) {
    damaged("the number of checksums does not fit the array", where);
  }
  const auto data = file.subspan(static_cast<size_t>(offset), static_cast<size_t>(bytes));
  for (size_t block = 0; block < hashes.size(); ++block) {
    const size_t begin = block * static_cast<size_t>(kStoreBlockBytes);
    const size_t end = std::min(begin + static_cast<size_t>(kStoreBlockBytes), data.size());
    const std::string_view text(reinterpret_cast<const char*>(data.data() + begin), end - begin);
    if (hex64(xxh3_64(text)) != hashes[block].as_string()) {
      damaged("the checksum of bytes " + std::to_string(offset + static_cast<int64_t>(begin)) +
                  " to " + std::to_string(offset + static_cast<int64_t>(end)) + " is wrong",
              where);
    }
  }
  return data;
}

template <class T>
std::span<const T> as(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

// 0…0, or 0…0 1…1 2…2.
bool is_segmented(std::span<const uint8_t> segment) {
  const auto rejected = static_cast<uint8_t>(Segment::kRejected);
  if (segment.empty()) return true;
  if (!std::is_sorted(segment.begin(), segment.end()) || segment.back() > rejected) return false;
  const auto has = [&](Segment part) {
    return std::binary_search(segment.begin(), segment.end(), static_cast<uint8_t>(part));
  };
  return has(Segment::kChosen) == has(Segment::kRejected);
}

}  // namespace

std::string store_digest(const Json& settings) {
  Json content = Json::object();
  for (const auto& [key, value] : settings.as_object()) {
    if (key != "model") content.set(key, value);
  }
  if (const Json* inputs = settings.find("inputs")) {
    Json nameless = Json::array();
    for (const Json& input : inputs->as_array()) {
      Json entry = Json::object();
      for (const auto& [key, value] : input.as_object()) {
        if (key != "name") entry.set(key, value);
      }
      nameless.push_back(entry);
    }
    content.set("inputs", nameless);
  }
  return sha256_hex(std::string(kStoreFormat) + " " + std::to_string(kStoreVersion) + "\n" +
                    dump_json(content, {.sort_keys = true}));
}

TokenStore TokenStore::open(const std::string& path, Pairs pairs) {
  const std::string sidecar_path = path + ".json";
  if (!file_exists(path)) fail(ExitCode::kIo, "there is no token store", path);
  TokenStore store(path);
  const std::span<const std::byte> file = store.file_.bytes();
  // Whatever else the file is, nobody shall be told to remove it.
  if (!store.file_.text().starts_with(kHdf5Signature)) {
    fail(ExitCode::kData, "the file is no token store", path,
         "name what `graft data tokenize` wrote");
  }
  if (!file_exists(sidecar_path)) {
    damaged("the store is unfinished: its sidecar is missing", sidecar_path);
  }
  const Json sidecar = read_json_file(sidecar_path);
  if (sidecar.at("format").as_string() != kStoreFormat ||
      sidecar.at("version").as_int() != kStoreVersion) {
    damaged("the store must be " + std::string(kStoreFormat) + " version " +
                std::to_string(kStoreVersion),
            sidecar_path);
  }
  if (sidecar.at("bytes").as_int() != static_cast<int64_t>(file.size())) {
    damaged("the store must have " + std::to_string(sidecar.at("bytes").as_int()) + " bytes, got " +
                std::to_string(file.size()),
            path);
  }
  std::array<std::span<const std::byte>, kStoreArrayCount> arrays;
  const bool has_pairs = sidecar.at("datasets").find(kStoreArrays[kSegment].name) != nullptr;
  if (has_pairs && pairs == Pairs::kRefuse) {
    fail(ExitCode::kData,
         "the store holds preference pairs, where documents of one text are needed", path,
         R"(tokenize records with one answer each: {"prompt", "completion"})");
  }
  for (size_t i = 0; i < (has_pairs ? kStoreArrayCount : kSegment); ++i) {
    const Json& entry = sidecar.at("datasets").at(kStoreArrays[i].name);
    arrays[i] = checked_array(file, entry, kStoreArrays[i], path);
  }
  store.tokens_ = as<int32_t>(arrays[kTokens]);
  store.loss_ = as<uint8_t>(arrays[kLoss]);
  store.role_ = as<uint8_t>(arrays[kRole]);
  store.offsets_ = as<uint64_t>(arrays[kDocOffsets]);
  store.segment_ = as<uint8_t>(arrays[kSegment]);
  store.source_ = as<uint64_t>(arrays[kSource]);
  store.weights_ = as<float>(arrays[kWeights]);
  const size_t tokens = store.tokens_.size();
  if (store.loss_.size() != tokens || store.role_.size() != tokens ||
      (has_pairs && store.segment_.size() != tokens) ||
      store.offsets_.size() != store.source_.size() + 1 ||
      store.weights_.size() != static_cast<size_t>(kWeightCount)) {
    damaged("the arrays' lengths do not fit together", path);
  }
  if (store.offsets_.front() != 0 || store.offsets_.back() != tokens ||
      !std::is_sorted(store.offsets_.begin(), store.offsets_.end())) {
    damaged("the offsets must ascend from 0 to " + std::to_string(tokens), path + ": /doc_offsets");
  }
  for (int64_t document = 0; has_pairs && document < store.document_count(); ++document) {
    if (!is_segmented(store.segments(document))) {
      damaged("document " + std::to_string(document) +
                  " must be a prompt, a chosen and a rejected answer, or no pair",
              path + ": /segment");
    }
  }
  store.settings_ = sidecar.at("settings");
  store.digest_ = sidecar.at("digest").as_string();
  if (store_digest(store.settings_) != store.digest_) {
    damaged("the settings do not have the digest that the sidecar names", sidecar_path);
  }
  return store;
}

int64_t TokenStore::length(int64_t document) const {
  if (document < 0 || document >= document_count()) {
    fail(ExitCode::kUsage,
         "the store has documents 0.." + std::to_string(document_count() - 1) + ", got " +
             std::to_string(document),
         path());
  }
  const auto i = static_cast<size_t>(document);
  return static_cast<int64_t>(offsets_[i + 1] - offsets_[i]);
}

std::span<const int32_t> TokenStore::tokens(int64_t document) const {
  const auto count = static_cast<size_t>(length(document));
  return tokens_.subspan(offsets_[static_cast<size_t>(document)], count);
}

std::span<const uint8_t> TokenStore::loss(int64_t document) const {
  const auto count = static_cast<size_t>(length(document));
  return loss_.subspan(offsets_[static_cast<size_t>(document)], count);
}

std::span<const uint8_t> TokenStore::roles(int64_t document) const {
  const auto count = static_cast<size_t>(length(document));
  return role_.subspan(offsets_[static_cast<size_t>(document)], count);
}

std::span<const uint8_t> TokenStore::segments(int64_t document) const {
  const auto count = static_cast<size_t>(length(document));
  return segment_.subspan(offsets_[static_cast<size_t>(document)], count);
}

std::optional<PairParts> TokenStore::pair(int64_t document) const {
  length(document);  // checks the range
  if (segment_.empty()) return std::nullopt;
  const std::span<const uint8_t> segment = segments(document);
  if (segment.empty() || segment.back() == static_cast<uint8_t>(Segment::kPrompt)) {
    return std::nullopt;
  }
  const auto begin_of = [&](Segment part) {
    return std::lower_bound(segment.begin(), segment.end(), static_cast<uint8_t>(part)) -
           segment.begin();
  };
  return PairParts{begin_of(Segment::kChosen), begin_of(Segment::kRejected)};
}

DocumentSource TokenStore::source(int64_t document) const {
  length(document);  // checks the range
  const uint64_t source = source_[static_cast<size_t>(document)];
  return {static_cast<int32_t>(source >> kFileShift),
          static_cast<int64_t>(source & ((uint64_t{1} << kFileShift) - 1))};
}

std::vector<uint32_t> TokenStore::lengths() const {
  std::vector<uint32_t> lengths(source_.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = static_cast<uint32_t>(offsets_[i + 1] - offsets_[i]);
  }
  return lengths;
}

void check_store_matches(const TokenStore& store,
                         const Tokenizer& tokenizer,
                         const ChatTemplate* chat) {
  const auto check = [&](const char* member, const Json& expected) {
    const Json* found = store.settings().find(member);
    if (found && *found == expected) return;
    const auto text = [](const Json& value) {
      return value.is_string() ? value.as_string().substr(0, 16) : std::string("none");
    };
    fail(ExitCode::kData,
         std::string("the store belongs to another model: its ") + member + " is " +
             (found ? text(*found) : "unknown") + ", the model's is " + text(expected),
         store.path(), "tokenize the data again with this model");
  };
  check("tokenizer", tokenizer.digest());
  check("template", chat ? Json(chat->digest()) : Json());
}

}  // namespace graft::data
