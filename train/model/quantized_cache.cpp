#include "train/model/quantized_cache.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <sys/stat.h>

#include <ATen/ops/from_blob.h>

#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/progress.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// Raised when what an entry holds or how it is named changes.
constexpr int kFormat = 1;
constexpr const char* kDigestKey = "xxh3";

void warn(const std::string& what, const Error& error) {
  std::fprintf(stderr, "warning: %s: %s (%s)\n", what.c_str(), error.text().what.c_str(),
               error.text().where.c_str());
}

// What changes when a file does, short of someone setting its time back.
std::string stamp_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) fail_io("cannot read the file", path);
  return std::to_string(info.st_dev) + ":" + std::to_string(info.st_ino) + ":" +
         std::to_string(info.st_size) + ":" + std::to_string(info.st_mtim.tv_sec) + "." +
         std::to_string(info.st_mtim.tv_nsec);
}

// XXH3 of a file's content, remembered beside the cache under the file's stamp.
std::string content_digest(const std::string& directory, const SafetensorsFile& file) {
  const std::string stamp = stamp_of(file.path());
  const std::string memo = join_path(directory, "file-" + sha256_hex(stamp).substr(0, 32));
  if (file_exists(memo)) {
    const std::string text = read_file(memo, 1024);
    if (text.size() == 16) return text;
  }
  constexpr int64_t kPiece = int64_t{1} << 23;
  std::vector<std::byte> piece(static_cast<size_t>(kPiece));
  uint64_t digest = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    digest =
        xxh3_64(tensor.name + dtype_name(tensor.dtype).data() + shape_text(tensor.shape), digest);
    const int64_t bytes = tensor.end - tensor.begin;
    for (int64_t begin = 0; begin < bytes; begin += kPiece) {
      const std::span<std::byte> part(piece.data(),
                                      static_cast<size_t>(std::min(kPiece, bytes - begin)));
      file.read(tensor, begin, part);
      digest = xxh3_64({reinterpret_cast<const char*>(part.data()), part.size()}, digest);
    }
  }
  make_directories(directory);
  write_file_atomically(memo, hex64(digest));
  return hex64(digest);
}

std::vector<Linear*> cached_linears(Model& model) {
  std::vector<Linear*> linears;
  for (Linear* const linear : model.linears()) {
    if (linear->quantizes) linears.push_back(linear);
  }
  return linears;
}

int64_t weight_count(Model& model) {
  int64_t count = 0;
  for (const Linear* linear : cached_linears(model)) count += linear->in * linear->out;
  return count;
}

std::string entry_path(const QuantizedCache& cache,
                       const SafetensorsDirectory& files,
                       Model& model) {
  const adapters::Nf4Options options;
  std::string name = "format " + std::to_string(kFormat) + " block " +
                     std::to_string(options.block_size) + " nested " +
                     std::to_string(options.double_quant);
  for (const auto& file : files.files()) name += " " + content_digest(cache.directory, *file);
  for (const Linear* linear : cached_linears(model)) {
    name +=
        " " + linear->name + " " + std::to_string(linear->out) + "x" + std::to_string(linear->in);
  }
  return join_path(cache.directory, "nf4-" + sha256_hex(name).substr(0, 32) + ".safetensors");
}

struct Part {
  TensorSpec spec;
  std::span<const std::byte> bytes;
};

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

std::vector<TensorBytes> parts_of(const Linear& linear) {
  const BaseWeight& base = linear.base;
  return {{{linear.name + ".packed", DType::kU8, {base.packed.numel()}}, bytes_of(base.packed)},
          {{linear.name + ".absmax8", DType::kU8, {base.absmax8.numel()}}, bytes_of(base.absmax8)},
          {{linear.name + ".nested_absmax", DType::kF32, {base.nested_absmax.numel()}},
           bytes_of(base.nested_absmax)},
          {{linear.name + ".offset", DType::kF32, {1}}, std::as_bytes(std::span(&base.offset, 1))}};
}

// Digest of tensors by name, however they lie in the file.
uint64_t digest_of(uint64_t before, const std::string& name, std::span<const std::byte> bytes) {
  return xxh3_64({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                 xxh3_64(name, before));
}

class Entry {
 public:
  explicit Entry(const std::string& path) : file_(std::make_shared<SafetensorsFile>(path)) {}

  void bind(Model& model) {
    uint64_t digest = 0;
    std::vector<BaseWeight> weights;
    const std::vector<Linear*> linears = cached_linears(model);
    for (const Linear* linear : linears) {
      BaseWeight base;
      const adapters::Nf4Options options;
      base.count = linear->in * linear->out;
      base.block_size = options.block_size;
      base.type = options.type;
      const int64_t blocks = graft_nf4_block_count(base.count, base.block_size);
      base.packed =
          view(linear->name + ".packed", DType::kU8, graft_nf4_packed_bytes(base.count), digest);
      base.mapped = true;
      base.absmax8 = view(linear->name + ".absmax8", DType::kU8, blocks, digest);
      base.nested_absmax = view(linear->name + ".nested_absmax", DType::kF32,
                                graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK), digest);
      base.offset = f32(view(linear->name + ".offset", DType::kF32, 1, digest))[0];
      weights.push_back(std::move(base));
    }
    const auto stored = file_->metadata().find(kDigestKey);
    if (stored == file_->metadata().end() || stored->second != hex64(digest)) {
      fail(ExitCode::kData, "its digest does not agree with its content", file_->path());
    }
    for (size_t i = 0; i < linears.size(); ++i) linears[i]->base = std::move(weights[i]);
  }

 private:
  // A view of the mapping, which lives as long as any of them.
  at::Tensor view(const std::string& name, DType dtype, int64_t count, uint64_t& digest) {
    const TensorInfo& info = file_->at(name);
    if (info.dtype != dtype || info.count() != count) {
      fail(ExitCode::kData, "it holds other tensors", file_->path() + ": " + name);
    }
    const std::span<const std::byte> bytes = file_->bytes(info);
    digest = digest_of(digest, name, bytes);
    const std::shared_ptr<SafetensorsFile> owner = file_;
    return at::from_blob(
        const_cast<std::byte*>(bytes.data()), {count}, [owner](void*) {},
        dtype == DType::kU8 ? at::kByte : at::kFloat);
  }

  std::shared_ptr<SafetensorsFile> file_;
};

}  // namespace

QuantizedCache QuantizedCache::in_home() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  QuantizedCache result;
  if (cache != nullptr && *cache != '\0') {
    result.directory = join_path(cache, "graft");
  } else if (home != nullptr && *home != '\0') {
    result.directory = join_path(home, ".cache/graft");
  }
  return result;
}

bool load_quantized(const QuantizedCache& cache, const SafetensorsDirectory& files, Model& model) {
  if (cache.directory.empty() || weight_count(model) < cache.least_weights) return false;
  try {
    const std::string path = entry_path(cache, files, model);
    if (!file_exists(path)) return false;
    Entry(path).bind(model);
    return true;
  } catch (const Error& error) {
    warn("the kept 4-bit weights are not used, they are made again", error);
    return false;
  }
}

void keep_quantized(const QuantizedCache& cache,
                    const SafetensorsDirectory& files,
                    const Model& model) {
  // Only names, shapes and values are read.
  Model& named = const_cast<Model&>(model);
  if (cache.directory.empty() || weight_count(named) < cache.least_weights) return;
  try {
    std::vector<TensorBytes> tensors;
    uint64_t digest = 0;
    for (const Linear* linear : cached_linears(named)) {
      for (const TensorBytes& part : parts_of(*linear)) {
        digest = digest_of(digest, part.spec.name, part.bytes);
        tensors.push_back(part);
      }
    }
    const std::string path = entry_path(cache, files, named);
    write_safetensors(path, std::move(tensors), {{kDigestKey, hex64(digest)}});
    std::fprintf(stderr, "cache   4-bit weights kept for the next start: %s, %s\n", path.c_str(),
                 format_bytes(file_size(path)).c_str());
  } catch (const Error& error) {
    warn("the 4-bit weights are not kept for the next start", error);
  }
}

}  // namespace graft::train
