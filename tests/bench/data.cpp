#include <memory>
#include <string>
#include <vector>

#include <omp.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "data/curate/clean.h"
#include "data/text/tokenizer.h"
#include "tests/bench/measure.h"

namespace graft::bench {
namespace {

constexpr int64_t kRecords = 20'000;

// Words drawn by rank from a 4,000-word vocabulary; rank r has a share of about 1 / r, as in text.
class Words {
 public:
  explicit Words(uint64_t seed) : random_(seed, 3) {
    constexpr std::string_view kSyllables[] = {"ba", "ce", "di", "fo", "gu", "la", "me", "ni",
                                               "po", "ru", "sa", "te", "vi", "wo", "zu", "ar"};
    for (uint64_t n = 0; n < 4000; ++n) {
      std::string word;
      for (uint64_t rest = n + 16; rest > 0; rest /= 16) {
        word += kSyllables[rest % 16];
      }
      words_.push_back(word);
    }
  }

  const std::string& next() {
    const uint64_t most = 1 + random_.below(draw_++, 4000);
    return words_[random_.below(draw_++, most)];
  }

  std::string sentence() {
    std::string text = next();
    text[0] = static_cast<char>(text[0] - 'a' + 'A');
    for (uint64_t n = 5 + random_.below(draw_++, 12); n > 0; --n) {
      text += (n == 4 ? ", " : " ") + next();
    }
    return text + ".";
  }

  uint64_t below(uint64_t bound) { return random_.below(draw_++, bound); }

 private:
  Philox random_;
  uint64_t draw_ = 0;
  std::vector<std::string> words_;
};

std::string text_of(Words& words, uint64_t sentences) {
  std::string text = words.sentence();
  for (uint64_t n = 1; n < sentences; ++n) {
    text += " " + words.sentence();
  }
  return text;
}

// Alpaca records of 300 to 700 bytes; every tenth repeats an earlier one with two sentences
// changed.
std::string records() {
  Words words(1);
  std::vector<std::string> answers;
  std::string lines;
  for (int64_t i = 0; i < kRecords; ++i) {
    std::string answer = text_of(words, 3 + words.below(5));
    if (i % 10 == 9) {
      const std::string& old = answers[words.below(answers.size())];
      answer = old + " " + words.sentence();
    }
    answers.push_back(answer);
    lines += dump_json(Json::object(
                 {{"instruction", text_of(words, 1)}, {"input", ""}, {"output", answer}})) +
             "\n";
  }
  return lines;
}

// A file that lives as long as the closures that read it.
struct ScratchFile {
  explicit ScratchFile(const std::string& text) {
    path = "/tmp/graft-bench-" + hex64(xxh3_64(text)) + ".jsonl";
    write_file_atomically(path, text);
  }
  ~ScratchFile() { remove_tree(path); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  std::string path;
};

}  // namespace

void add_data(Bench& bench) {
  const std::string tokenizer_dir = std::string(GRAFT_SOURCE_DIR) + "/examples/quickstart/base";
  if (bench.wants("tokenizer")) {
    const std::shared_ptr<data::Tokenizer> tokenizer = data::load_tokenizer(tokenizer_dir);
    Words words(2);
    std::vector<std::string> texts;
    double bytes = 0;
    for (int i = 0; i < 2000; ++i) {
      texts.push_back(text_of(words, 8));
      bytes += static_cast<double>(texts.back().size());
    }
    bench.add({"tokenizer, one thread",
               Unit::kMegabytes,
               bytes,
               {{"graft",
                 [=] {
                   for (const std::string& text : texts) {
                     tokenizer->encode_ids(text);
                   }
                 }}},
               {}});
  }
  if (!bench.wants("clean") && !bench.wants("near duplicates")) {
    return;
  }
  const std::string text = records();
  const auto file = std::make_shared<ScratchFile>(text);
  const int threads = omp_get_max_threads();
  bench.add({"clean, all rules",
             Unit::kMegabytes,
             static_cast<double>(text.size()),
             {{"graft",
               [=] {
                 data::RecordSource source({file->path});
                 data::CleanOptions options;
                 options.threads = threads;
                 data::clean(source, options, [](int64_t, int64_t) {});
               }}},
             {}});
  bench.add({"near duplicates",
             Unit::kDocuments,
             static_cast<double>(kRecords),
             {{"graft",
               [=] {
                 data::RecordSource source({file->path});
                 data::DedupOptions options;
                 options.threads = threads;
                 data::dedup_only(source, options, {}, [](int64_t, int64_t) {});
               }}},
             {}});
}

}  // namespace graft::bench
