#include <algorithm>
#include <bit>
#include <cerrno>
#include <functional>
#include <mutex>
#include <optional>

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include "core/error.h"
#include "core/hash.h"
#include "data/records/interrupt.h"
#include "data/text/token_store.h"
#include "data/text/token_store_format.h"

namespace graft::data {
namespace {

static_assert(std::endian::native == std::endian::little, "the store is little-endian");

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : path_(path), fd_(open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) fail_io("cannot write the token store", path, "choose another place for it");
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write_at(std::span<const std::byte> bytes, int64_t offset) const {
    while (!bytes.empty()) {
      const ssize_t done = pwrite(fd_, bytes.data(), bytes.size(), offset);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail_io("cannot write", path_, "free space on the disk and repeat");
      bytes = bytes.subspan(static_cast<size_t>(done));
      offset += done;
    }
  }
  void read_at(std::span<std::byte> bytes, int64_t offset) const {
    while (!bytes.empty()) {
      const ssize_t done = pread(fd_, bytes.data(), bytes.size(), offset);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) fail_io("cannot read back", path_);
      bytes = bytes.subspan(static_cast<size_t>(done));
      offset += done;
    }
  }
  void sync() const {
    if (fsync(fd_) != 0) fail_io("cannot sync", path_);
  }

 private:
  std::string path_;
  int fd_;
};

// An array that grows on disk, in a file without a name: a killed process leaves nothing behind.
class Spool {
 public:
  explicit Spool(const std::string& path) : file_(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC) {
    if (unlink(path.c_str()) != 0) fail_io("cannot unlink", path);
    buffer_.reserve(kStoreBlockBytes);
  }
  void append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const size_t room = static_cast<size_t>(kStoreBlockBytes) - buffer_.size();
      const size_t count = std::min(room, bytes.size());
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<int64_t>(count));
      bytes = bytes.subspan(count);
      if (buffer_.size() == static_cast<size_t>(kStoreBlockBytes)) flush();
    }
  }
  int64_t bytes() const { return written_ + static_cast<int64_t>(buffer_.size()); }
  void flush() {
    file_.write_at(buffer_, written_);
    written_ += static_cast<int64_t>(buffer_.size());
    buffer_.clear();
  }
  void read(int64_t offset, std::span<std::byte> bytes) const { file_.read_at(bytes, offset); }

 private:
  Descriptor file_;
  std::vector<std::byte> buffer_;
  int64_t written_ = 0;
};

[[noreturn]] void fail_store(const std::string& path) {
  fail(ExitCode::kIo, "the HDF5 library cannot write the store", path,
       "free some space or choose another place");
}

// An HDF5 identifier, closed at the end. Errors: kIo when it is invalid.
class Hdf5Id {
 public:
  Hdf5Id(hid_t id, herr_t (*close)(hid_t), const std::string& path) : id_(id), close_(close) {
    if (id_ < 0) fail_store(path);
  }
  ~Hdf5Id() { close_(id_); }
  Hdf5Id(const Hdf5Id&) = delete;
  Hdf5Id& operator=(const Hdf5Id&) = delete;
  hid_t get() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void check(herr_t status, const std::string& path) {
  if (status < 0) fail_store(path);
}

hid_t hdf5_type(StoreArrayIndex array) {
  switch (array) {
    case kTokens:
      return H5T_STD_I32LE;
    case kDocOffsets:
    case kSource:
      return H5T_STD_U64LE;
    case kWeights:
      return H5T_IEEE_F32LE;
    default:
      return H5T_STD_U8LE;
  }
}

void write_attribute(hid_t file,
                     const char* name,
                     const std::string& text,
                     const std::string& path) {
  const Hdf5Id type(H5Tcopy(H5T_C_S1), H5Tclose, path);
  check(H5Tset_size(type.get(), std::max<size_t>(text.size(), 1)), path);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), path);
  const Hdf5Id space(H5Screate(H5S_SCALAR), H5Sclose, path);
  const Hdf5Id attribute(H5Acreate2(file, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose, path);
  check(H5Awrite(attribute.get(), type.get(), text.c_str()), path);
}

// Bytes of each; -1 = the store has no such array.
using ArraySizes = std::array<int64_t, kStoreArrayCount>;

// Creates the file with room for every array and returns their file offsets. The data itself is
// written past the library, straight to these offsets.
ArraySizes create_hdf5(const std::string& path,
                       const ArraySizes& bytes,
                       const std::string& digest) {
  static std::mutex mutex;  // Debian's HDF5 is not thread-safe
  const std::lock_guard lock(mutex);
  // Its own clean-up at the process's end crashes after a failed write (full disk); everything is
  // closed here. Has to come before any other call.
  H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // its errors are ours to print
  const Hdf5Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, path);
  check(H5Pset_alignment(access.get(), 1, kStoreAlignment), path);
  const Hdf5Id file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose,
                    path);
  const Hdf5Id layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, path);
  check(H5Pset_layout(layout.get(), H5D_CONTIGUOUS), path);
  check(H5Pset_alloc_time(layout.get(), H5D_ALLOC_TIME_EARLY), path);
  check(H5Pset_fill_time(layout.get(), H5D_FILL_TIME_NEVER), path);
  check(H5Pset_obj_track_times(layout.get(), false), path);
  ArraySizes offsets{};
  for (size_t i = 0; i < kStoreArrays.size(); ++i) {
    const StoreArray& array = kStoreArrays[i];
    if (bytes[i] < 0) continue;
    const auto count = static_cast<hsize_t>(bytes[i] / array.item_bytes);
    const Hdf5Id space(H5Screate_simple(1, &count, nullptr), H5Sclose, path);
    const Hdf5Id dataset(H5Dcreate2(file.get(), std::string(array.name).c_str(),
                                    hdf5_type(static_cast<StoreArrayIndex>(i)), space.get(),
                                    H5P_DEFAULT, layout.get(), H5P_DEFAULT),
                         H5Dclose, path);
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (offset == HADDR_UNDEF || offset % kStoreAlignment != 0) {
      fail(ExitCode::kBug, "HDF5 gave no aligned place for " + std::string(array.name), path);
    }
    offsets[i] = static_cast<int64_t>(offset);
  }
  write_attribute(file.get(), "format", std::string(kStoreFormat), path);
  write_attribute(file.get(), "version", std::to_string(kStoreVersion), path);
  write_attribute(file.get(), "digest", digest, path);
  check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), path);
  return offsets;
}

// Fills `block` with the bytes of an array from `offset` on.
using ReadBlock = std::function<void(int64_t offset, std::span<std::byte> block)>;

Json write_array(const Descriptor& file,
                 const StoreArray& array,
                 int64_t offset,
                 int64_t bytes,
                 const ReadBlock& read) {
  Json hashes = Json::array();
  std::vector<std::byte> block;
  for (int64_t done = 0; done < bytes; done += kStoreBlockBytes) {
    block.resize(static_cast<size_t>(std::min(kStoreBlockBytes, bytes - done)));
    read(done, block);
    const std::string_view text(reinterpret_cast<const char*>(block.data()), block.size());
    hashes.push_back(hex64(xxh3_64(text)));
    file.write_at(block, offset + done);
  }
  Json entry = Json::object();
  entry.set("offset", offset);
  entry.set("bytes", bytes);
  entry.set("dtype", array.dtype);
  entry.set("xxh3", hashes);
  return entry;
}

}  // namespace

struct TokenStoreWriter::State {
  State(std::string store_path, Json store_settings)
      : path(std::move(store_path)),
        settings(std::move(store_settings)),
        temporary(path + ".tmp-" + std::to_string(getpid())),
        leftover(temporary, Leftover::kFile),
        tokens(temporary + ".tokens"),
        loss(temporary + ".loss"),
        role(temporary + ".role"),
        offsets(temporary + ".offsets"),
        source(temporary + ".source") {
    add_number(offsets, 0);
  }
  static void add_number(Spool& spool, uint64_t number) {
    spool.append(std::as_bytes(std::span(&number, 1)));
  }
  // The segments of tokens that belong to no pair.
  void add_prompts(uint64_t count) {
    constexpr std::array<std::byte, 4096> zeros{};
    for (uint64_t left = count; left > 0;) {
      const auto some = static_cast<size_t>(std::min<uint64_t>(left, zeros.size()));
      segment->append(std::span(zeros).first(some));
      left -= some;
    }
  }
  std::string path;
  Json settings;
  std::string temporary;
  RemoveIfStopped leftover;
  Spool tokens;
  Spool loss;
  Spool role;
  Spool offsets;
  Spool source;
  std::optional<Spool> segment;  // once there is a pair
  int64_t document_count = 0;
  uint64_t token_count = 0;
  std::vector<float> weights = {0.0F, 1.0F};
};

TokenStoreWriter::TokenStoreWriter(std::string path, Json settings) {
  if (directory_exists(path)) {
    fail(ExitCode::kUsage, "the token store is one file, but this is a directory", path,
         "give --out a file name, for example " + join_path(path, "store.h5"));
  }
  make_directories(directory_name(path));
  state_ = std::make_unique<State>(std::move(path), std::move(settings));
}

TokenStoreWriter::~TokenStoreWriter() {
  if (state_) unlink(state_->temporary.c_str());
}

uint8_t TokenStoreWriter::weight_index(float weight) {
  std::vector<float>& weights = state_->weights;
  const auto known = std::find(weights.begin(), weights.end(), weight);
  const auto index = known - weights.begin();
  if (known == weights.end()) {
    if (index >= kWeightCount) {
      fail(ExitCode::kData, "the records have more than 254 different weights", state_->path,
           "round the messages' \"weight\"");
    }
    weights.push_back(weight);
  }
  return static_cast<uint8_t>(index);
}

void TokenStoreWriter::add(std::span<const int32_t> ids,
                           std::span<const uint8_t> loss,
                           std::span<const uint8_t> role,
                           DocumentSource source,
                           std::span<const uint8_t> segment) {
  if (ids.empty() || loss.size() != ids.size() || role.size() != ids.size() ||
      (!segment.empty() && segment.size() != ids.size()) || source.file < 0 || source.row < 0 ||
      source.row >= int64_t{1} << kFileShift) {
    fail(ExitCode::kBug, "a document's ids, loss and role must have one length, at least 1");
  }
  state_->tokens.append(std::as_bytes(ids));
  state_->loss.append(std::as_bytes(loss));
  state_->role.append(std::as_bytes(role));
  if (!segment.empty() && !state_->segment) {
    state_->segment.emplace(state_->temporary + ".segment");
    state_->add_prompts(state_->token_count);
  }
  if (!segment.empty()) {
    state_->segment->append(std::as_bytes(segment));
  } else if (state_->segment) {
    state_->add_prompts(ids.size());
  }
  ++state_->document_count;
  state_->token_count += ids.size();
  State::add_number(state_->offsets, state_->token_count);
  State::add_number(state_->source, static_cast<uint64_t>(source.file) << kFileShift |
                                        static_cast<uint64_t>(source.row));
}

int64_t TokenStoreWriter::document_count() const {
  return state_->document_count;
}

int64_t TokenStoreWriter::token_count() const {
  return static_cast<int64_t>(state_->token_count);
}

std::string TokenStoreWriter::commit() {
  State& state = *state_;
  if (state.document_count == 0) {
    fail(ExitCode::kData, "there is no document to store", state.path);
  }
  std::vector<float> weights = state.weights;
  weights.resize(kWeightCount, 0.0F);
  std::array<Spool*, kStoreArrayCount> spools{};
  spools[kTokens] = &state.tokens;
  spools[kLoss] = &state.loss;
  spools[kRole] = &state.role;
  spools[kDocOffsets] = &state.offsets;
  spools[kSource] = &state.source;
  if (state.segment) spools[kSegment] = &*state.segment;
  std::array<ReadBlock, kStoreArrayCount> readers;
  ArraySizes bytes;
  bytes.fill(-1);
  for (size_t i = 0; i < spools.size(); ++i) {
    if (spools[i] == nullptr) continue;
    Spool& spool = *spools[i];
    spool.flush();
    readers[i] = [&](int64_t at, std::span<std::byte> block) { spool.read(at, block); };
    bytes[i] = spool.bytes();
  }
  readers[kWeights] = [&](int64_t at, std::span<std::byte> block) {
    std::copy_n(std::as_bytes(std::span(weights)).begin() + at, block.size(), block.begin());
  };
  bytes[kWeights] = static_cast<int64_t>(weights.size() * sizeof(float));
  // Of the same input there is also a store without them.
  if (state.segment) state.settings.set("preference_pairs", true);
  const std::string digest = store_digest(state.settings);
  const ArraySizes offsets = create_hdf5(state.temporary, bytes, digest);

  Json datasets = Json::object();
  {
    const Descriptor file(state.temporary, O_RDWR | O_CLOEXEC);
    for (size_t i = 0; i < kStoreArrays.size(); ++i) {
      if (bytes[i] < 0) continue;
      datasets.set(std::string(kStoreArrays[i].name),
                   write_array(file, kStoreArrays[i], offsets[i], bytes[i], readers[i]));
    }
    file.sync();
  }
  Json sidecar = Json::object();
  sidecar.set("format", kStoreFormat);
  sidecar.set("version", kStoreVersion);
  sidecar.set("digest", digest);
  sidecar.set("bytes", file_size(state.temporary));
  sidecar.set("documents", document_count());
  sidecar.set("tokens", token_count());
  sidecar.set("settings", state.settings);
  sidecar.set("datasets", datasets);
  // An old sidecar must never stand beside a new store.
  const HoldSignals hold;
  remove_file(state.path + ".json");
  rename_path(state.temporary, state.path);
  write_file_atomically(state.path + ".json", dump_json(sidecar, {.indent = 1}) + "\n");
  return digest;
}

}  // namespace graft::data
