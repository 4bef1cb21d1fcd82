#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "data/text/token_store.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

Json settings() {
  Json input = Json::object();
  input.set("name", "a.jsonl");
  input.set("sha256", "00");
  input.set("bytes", 5);
  Json value = Json::object();
  value.set("tokenizer", "t1");
  value.set("template", nullptr);
  value.set("inputs", Json::array({input}));
  return value;
}

// Document d has d + 1 tokens: d * 1000 + i, trained where i is odd.
void write_store(const std::string& path, int64_t documents) {
  TokenStoreWriter writer(path, settings());
  for (int64_t d = 0; d < documents; ++d) {
    std::vector<int32_t> ids;
    std::vector<uint8_t> loss;
    for (int64_t i = 0; i <= d; ++i) {
      ids.push_back(static_cast<int32_t>(d * 1000 + i));
      loss.push_back(i % 2 == 1);
    }
    const std::vector<uint8_t> role(ids.size(), static_cast<uint8_t>(d % 6));
    writer.add(ids, loss, role, {.file = static_cast<int32_t>(d % 3), .row = d * 7});
  }
  writer.commit();
}

void flip_byte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const auto byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(at);
  file.put(byte);
}

}  // namespace

TEST_CASE("token store: what was written is read back", "[data][store]") {
  const test::TempDir dir;
  const std::string path = dir.file("s.h5");
  const int64_t documents = GENERATE(1, 2, 900);  // 900: 405,450 tokens, two blocks of 1 MiB
  write_store(path, documents);
  const TokenStore store = TokenStore::open(path);
  REQUIRE(store.document_count() == documents);
  CHECK(store.token_count() == documents * (documents + 1) / 2);
  const int64_t d = documents - 1;
  REQUIRE(store.length(d) == d + 1);
  CHECK(store.tokens(d).back() == d * 1000 + d);
  CHECK(store.loss(d).back() == d % 2);
  CHECK(store.roles(d).front() == d % 6);
  CHECK(store.source(d) == DocumentSource{static_cast<int32_t>(d % 3), d * 7});
  CHECK(store.weights()[0] == 0.0F);
  CHECK(store.weights()[1] == 1.0F);
  CHECK(store.settings() == settings());
  CHECK(store.digest() == store_digest(settings()));
  CHECK(list_directory(dir.path()) == std::vector<std::string>{"s.h5", "s.h5.json"});
}

TEST_CASE("token store: the same documents give the same bytes", "[data][store]") {
  const test::TempDir dir;
  write_store(dir.file("a.h5"), 40);
  write_store(dir.file("b.h5"), 40);
  CHECK(read_file(dir.file("a.h5")) == read_file(dir.file("b.h5")));
  CHECK(read_file(dir.file("a.h5.json")) == read_file(dir.file("b.h5.json")));
}

TEST_CASE("token store: the content address ignores file names", "[data][store]") {
  Json renamed = settings();
  Json input = Json::object();
  input.set("name", "b.jsonl");
  input.set("sha256", "00");
  input.set("bytes", 5);
  renamed.set("inputs", Json::array({input}));
  CHECK(store_digest(renamed) == store_digest(settings()));
  input.set("sha256", "01");
  renamed.set("inputs", Json::array({input}));
  CHECK(store_digest(renamed) != store_digest(settings()));
}

TEST_CASE("token store: one flipped byte in any array is found", "[data][store]") {
  const test::TempDir dir;
  const std::string path = dir.file("s.h5");
  write_store(path, 50);
  const Json sidecar = read_json_file(path + ".json");
  const std::string array = GENERATE("tokens", "loss", "role", "doc_offsets", "source", "weights");
  const Json& entry = sidecar.at("datasets").at(array);
  flip_byte(path, entry.at("offset").as_int() + entry.at("bytes").as_int() - 1);
  CHECK_THROWS_WITH(TokenStore::open(path), Catch::Contains("checksum") && Catch::Contains(array));
}

TEST_CASE("token store: truncated or unfinished stores are refused", "[data][store]") {
  const test::TempDir dir;
  const std::string path = dir.file("s.h5");
  write_store(path, 50);
  SECTION("truncated") {
    const std::string bytes = read_file(path);
    write_file_atomically(path, std::string_view(bytes).substr(0, bytes.size() / 2));
    CHECK_THROWS_WITH(TokenStore::open(path), Catch::Contains("bytes, got"));
  }
  SECTION("no sidecar") {
    remove_file(path + ".json");
    CHECK_THROWS_WITH(TokenStore::open(path), Catch::Contains("unfinished"));
  }
  SECTION("a sidecar that points outside") {
    Json sidecar = read_json_file(path + ".json");
    Json datasets = sidecar.at("datasets");
    Json tokens = datasets.at("tokens");
    tokens.set("offset", int64_t{1} << 40);
    datasets.set("tokens", tokens);
    sidecar.set("datasets", datasets);
    write_file_atomically(path + ".json", dump_json(sidecar));
    CHECK_THROWS_WITH(TokenStore::open(path), Catch::Contains("/tokens"));
  }
  SECTION("settings that were changed") {
    Json sidecar = read_json_file(path + ".json");
    sidecar.set("settings", Json::object());
    write_file_atomically(path + ".json", dump_json(sidecar));
    CHECK_THROWS_WITH(TokenStore::open(path), Catch::Contains("digest"));
  }
  SECTION("another file") {
    write_file_atomically(dir.file("data.jsonl"), "{}\n");
    CHECK_THROWS_WITH(TokenStore::open(dir.file("data.jsonl")),
                      Catch::Contains("no token store") && !Catch::Contains("remove"));
  }
  SECTION("absent") {
    CHECK_THROWS_WITH(TokenStore::open(dir.file("none.h5")), Catch::Contains("no token store"));
  }
}

TEST_CASE("token store: a writer without commit leaves nothing", "[data][store]") {
  const test::TempDir dir;
  {
    TokenStoreWriter writer(dir.file("s.h5"), settings());
    const std::vector<int32_t> ids = {1};
    const std::vector<uint8_t> one = {1};
    writer.add(ids, one, one, {});
  }
  CHECK(list_directory(dir.path()).empty());
  TokenStoreWriter empty(dir.file("e.h5"), settings());
  CHECK_THROWS_WITH(empty.commit(), Catch::Contains("no document"));
}

TEST_CASE("token store: tokenize killed at any moment and run again gives the same store",
          "[data][store]") {
  const test::TempDir dir;
  std::string lines;
  for (int i = 0; i < 40'000; ++i) {
    lines += "{\"text\": \"order " + std::to_string(i) + " of the cable\"}\n";
  }
  write_file_atomically(dir.file("text.jsonl"), lines);
  const std::string program = std::string(GRAFT_BIN_DIR) + "/graft-data";
  const std::string model = test::source_path("tests/golden/tokenizer_tiny");
  // Returns the exit status as waitpid gives it; ms < 0 lets it end by itself.
  const auto tokenize = [&](const std::string& store, int ms) {
    const std::string input = dir.file("text.jsonl");
    const pid_t child = ::fork();
    if (child == 0) {
      const int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, STDOUT_FILENO);
      ::dup2(null, STDERR_FILENO);
      ::execl(program.c_str(), "graft-data", "tokenize", input.c_str(), "--model", model.c_str(),
              "--out", store.c_str(), nullptr);
      ::_exit(127);
    }
    if (ms >= 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      ::kill(child, SIGKILL);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
  };
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(tokenize(dir.file("whole.h5"), -1) == 0);
  const auto whole_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                            std::chrono::steady_clock::now() - start)
                            .count();
  const TokenStore whole = TokenStore::open(dir.file("whole.h5"));
  const Philox random(7, 0);
  int killed = 0;
  for (uint64_t round = 0; round < 10; ++round) {
    const auto ms = static_cast<int>(random.below(round, static_cast<uint64_t>(whole_ms) + 1));
    killed += WIFSIGNALED(tokenize(dir.file("killed.h5"), ms)) ? 1 : 0;
    // Whatever stands there is either no finished store or the right one.
    if (file_exists(dir.file("killed.h5.json"))) {
      CHECK(TokenStore::open(dir.file("killed.h5")).digest() == whole.digest());
    }
  }
  CHECK(killed >= 5);
  REQUIRE(tokenize(dir.file("killed.h5"), -1) == 0);
  CHECK(TokenStore::open(dir.file("killed.h5")).digest() == whole.digest());
  CHECK(read_file(dir.file("killed.h5")) == read_file(dir.file("whole.h5")));
}

}  // namespace graft::data
