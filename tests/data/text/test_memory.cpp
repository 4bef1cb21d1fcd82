// What tokenizing and planning epochs may hold in memory of their own, as a hard limit of the
// process (RLIMIT_DATA counts every private writable mapping).
//
// A store of 4 GB holds about 5 million documents of 140 tokens (the mean of alpaca, GSM8K and
// GPTeacher), so 256 MiB are 52 bytes a document. By default the tests check that rate on smaller
// stores; GRAFT_STORE_GB=4 checks the whole one (12 GB of disk; 17 minutes on two busy cores).
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <new>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "data/text/mix.h"
#include "data/text/packing.h"
#include "data/text/token_store.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kBytesPerDocument = 52;
constexpr int64_t kStoreBytesPerToken = 6;  // tokens, loss, role

double store_gigabytes() {
  const char* wanted = std::getenv("GRAFT_STORE_GB");
  return wanted ? std::atof(wanted) : 0;
}

// The process's private writable memory, in bytes.
int64_t data_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmData:")) return std::stoll(line.substr(7)) * 1024;
  }
  return 0;
}

// The exit code of `exec_program` in a process of its own.
template <class Exec>
int run(const Exec& exec_program) {
  const pid_t child = ::fork();
  if (child == 0) {
    exec_program();
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void limit_data(int64_t bytes) {
  const auto limit = static_cast<rlim_t>(bytes);
  const rlimit both = {limit, limit};
  if (::setrlimit(RLIMIT_DATA, &both) != 0) ::_exit(126);
}

constexpr const char* kChild = "child of a memory test: plans two epochs";
constexpr int kPlanned = 0;
constexpr int kOutOfMemory = 3;

// plan_epochs() in this program anew, whose heap is empty, with `budget` bytes more than it starts
// with.
int plan_within(int64_t budget, const std::string& store) {
  return run([&] {
    ::setenv("GRAFT_TEST_BUDGET", std::to_string(budget).c_str(), 1);
    ::setenv("GRAFT_TEST_STORE", store.c_str(), 1);
    ::execl("/proc/self/exe", "test_text", kChild, nullptr);
  });
}

// Documents of 20 to 260 tokens, 140 in the mean.
int64_t write_store(const std::string& path, int64_t documents) {
  const Philox random(1, 1);
  TokenStoreWriter writer(path, Json::object({{"inputs", Json::array()}}));
  std::vector<int32_t> ids(260);
  std::vector<uint8_t> loss(260, 0);
  const std::vector<uint8_t> role(260, 3);
  std::fill(loss.begin() + 10, loss.end(), uint8_t{1});
  for (int64_t d = 0; d < documents; ++d) {
    const size_t length = 20 + random.below(static_cast<uint64_t>(d), 241);
    ids[0] = static_cast<int32_t>(d);
    writer.add(std::span(ids).first(length), std::span(loss).first(length),
               std::span(role).first(length), {.file = 0, .row = d});
  }
  writer.commit();
  return writer.token_count();
}

// What a trainer does before each of two epochs, and one look at every token.
bool plan_epochs(const std::string& path) {
  const TokenStore store = TokenStore::open(path);
  std::vector<uint32_t> supervised;
  supervised.reserve(static_cast<size_t>(store.document_count()));
  for (int64_t d = 0; d < store.document_count(); ++d) {
    const auto loss = store.loss(d);
    supervised.push_back(static_cast<uint32_t>(loss.size()) -
                         static_cast<uint32_t>(std::count(loss.begin(), loss.end(), uint8_t{0})));
  }
  const std::vector<MixSource> sources = {{"all", supervised}};
  int64_t seen = 0;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::vector<uint32_t> chosen = std::move(mix(sources, 7, epoch)[0]);
    std::sort(chosen.begin(), chosen.end());
    std::vector<uint32_t> lengths;
    lengths.reserve(chosen.size());
    for (const uint32_t d : chosen) lengths.push_back(static_cast<uint32_t>(store.length(d)));
    const PackedRows rows = pack(lengths, {.sequence_len = 2048, .seed = 7, .epoch = epoch});
    for (int64_t row = 0; row < rows.size(); ++row) {
      for (const uint32_t d : rows.documents(row)) {
        seen += static_cast<int64_t>(store.tokens(chosen[d]).size());
      }
    }
  }
  return seen == 2 * store.token_count();
}

}  // namespace

// Ends the process where plan_within() runs it, and does nothing where a person's filter does.
TEST_CASE(kChild, "[.]") {
  const char* budget = std::getenv("GRAFT_TEST_BUDGET");
  const char* store = std::getenv("GRAFT_TEST_STORE");
  if (budget == nullptr || store == nullptr) return;
  limit_data(data_bytes() + std::atoll(budget));
  try {
    std::_Exit(plan_epochs(store) ? kPlanned : 2);
  } catch (const std::bad_alloc&) {
    std::_Exit(kOutOfMemory);
  }
}

TEST_CASE("memory: planning epochs holds at most 52 bytes a document", "[data][memory]") {
  const double gigabytes = store_gigabytes();
  const test::TempDir dir;
  const auto documents =
      gigabytes > 0 ? static_cast<int64_t>(gigabytes * 1e9 / (140 * kStoreBytesPerToken + 16))
                    : int64_t{200'000};
  const int64_t tokens = write_store(dir.file("s.h5"), documents);
  // Two megabytes for the allocator and for what does not grow with the documents.
  const int64_t budget = gigabytes > 0 ? 256 * kMiB : documents * kBytesPerDocument + 2 * kMiB;
  CHECK(plan_within(budget, dir.file("s.h5")) == kPlanned);
  // The limit binds: a quarter of it is not enough.
  CHECK(plan_within(budget / 4, dir.file("s.h5")) == kOutOfMemory);
  std::printf("memory: %lld documents, %lld tokens, store %lld MB, planned in %lld MiB\n",
              static_cast<long long>(documents), static_cast<long long>(tokens),
              static_cast<long long>(file_size(dir.file("s.h5")) / 1'000'000),
              static_cast<long long>(budget / kMiB));
}

TEST_CASE("memory: tokenizing takes no memory that grows with the data", "[data][memory]") {
  const double gigabytes = store_gigabytes();
  const test::TempDir dir;
  const std::string model = test::source_path("tests/golden/tokenizer_tiny");
  // 84 tokens a record with the tiny tokenizer.
  std::string line = "{\"text\": \"";
  for (int i = 0; i < 12; ++i) line += "the order of the printer ";
  line += "\"}\n";
  const auto records = gigabytes > 0
                           ? static_cast<int64_t>(gigabytes * 1e9 / (84 * kStoreBytesPerToken))
                           : int64_t{20'000};
  {
    std::ofstream out(dir.file("text.jsonl"), std::ios::binary);
    for (int64_t i = 0; i < records; ++i) out << line;
  }
  const int code = run([&] {
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
    limit_data(256 * kMiB);
    const std::string program = std::string(GRAFT_BIN_DIR) + "/graft-data";
    ::execl(program.c_str(), "graft-data", "tokenize", dir.file("text.jsonl").c_str(), "--model",
            model.c_str(), "--out", dir.file("s.h5").c_str(), "--threads", "2", nullptr);
  });
  CHECK(code == 0);
  CHECK(file_exists(dir.file("s.h5.json")));
  std::printf("memory: %lld records of %lld MB tokenized to %lld MB in 256 MiB\n",
              static_cast<long long>(records),
              static_cast<long long>(file_size(dir.file("text.jsonl")) / 1'000'000),
              static_cast<long long>(file_size(dir.file("s.h5")) / 1'000'000));
}

}  // namespace graft::data
