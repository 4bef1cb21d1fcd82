// Token ids, offsets and decoded text against Hugging Face `tokenizers`.
#include <map>

#include "data/text/tokenizer.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

// Checks one golden row (the keys of tests/golden/make_tokenizer_goldens.py).
void check_row(const Tokenizer& tokenizer, const Json& row) {
  const std::string text = row.at("text").as_string();
  CAPTURE(text);
  const Encoding encoding = tokenizer.encode(text);
  const std::vector<int32_t> ids = test::ids_of(row, "ids");
  CHECK(encoding.ids == ids);
  CHECK(tokenizer.encode_ids(text) == ids);
  CHECK(tokenizer.encode_ids(text, {.special = true}) == test::ids_of(row, "ids_special"));
  CHECK(reference_offsets(text, encoding) == test::ranges_of(row, "offsets"));
  CHECK(tokenizer.decode(ids) == row.at("decoded").as_string());
  CHECK(tokenizer.decode(ids, Tokenizer::SkipSpecial::kYes) == row.at("decoded_skip").as_string());
  int64_t at = 0;
  for (const ByteRange& span : encoding.spans) {
    CHECK(span.begin == at);
    CHECK(span.end >= span.begin);
    at = span.end;
  }
  CHECK(at == static_cast<int64_t>(text.size()));
}

}  // namespace

TEST_CASE("tokenizer: ids, offsets and text of real models equal tokenizers", "[data][tokenizer]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::map<std::string, std::string> directories = {
      {"llama2", "/data/tokenizers/llama2"},
      {"mistral_v3", "/data/tokenizers/mistral_v3"},
      {"phi3", "/data/tokenizers/phi3"},
      {"stories260K", "/data/models/stories260K"},
  };
  const std::string name = GENERATE("llama2", "mistral_v3", "phi3", "stories260K");
  CAPTURE(name);
  const auto tokenizer = load_tokenizer(shared + directories.at(name));
  int rows = 0;
  for (const Json& row : test::read_golden(shared + "/data/tokenizers/golden.jsonl")) {
    if (row.at("tok").as_string() != name) continue;
    check_row(*tokenizer, row);
    ++rows;
  }
  CHECK(rows == 49);
}

TEST_CASE("tokenizer: tokenizer.model alone gives the ids of tokenizer.json", "[data][tokenizer]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::string directory = GENERATE("/data/tokenizers/llama2", "/data/models/stories260K");
  const auto from_json = load_tokenizer(shared + directory + "/tokenizer.json");
  const auto from_model = load_tokenizer(shared + directory + "/tokenizer.model");
  for (const Json& row : test::read_golden(shared + "/data/tokenizers/golden.jsonl")) {
    const std::string text = row.at("text").as_string();
    CAPTURE(text);
    CHECK(from_model->encode_ids(text) == from_json->encode_ids(text));
  }
}

}  // namespace graft::data
