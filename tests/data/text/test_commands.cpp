// The commands as a user runs them.
#include "core/file.h"
#include "core/json.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

const std::string kTiny = test::source_path("tests/golden/tokenizer_tiny");

}  // namespace

TEST_CASE("encode and decode: lines in, lines out, inverse of each other", "[data][commands]") {
  const auto encoded = test::run({"graft-data", "encode", "--tokenizer", kTiny, "--special"},
                                 "{\"text\": \"The cable é\"}\n\n{\"text\": \"\"}\n");
  REQUIRE(encoded.exit_code == 0);
  const size_t line_end = encoded.out.find('\n');
  const Json first = parse_json(encoded.out.substr(0, line_end), "out");
  CHECK(first.at("ids").as_array()[0].as_int() == 1);
  CHECK(first.at("offsets").size() == first.at("ids").size());
  CHECK(encoded.out.substr(line_end + 1) == "{\"ids\":[1],\"offsets\":[[0,0]]}\n");
  const auto decoded =
      test::run({"graft-data", "decode", "--tokenizer", kTiny, "--skip-special"}, encoded.out);
  CHECK(decoded.out == "{\"text\":\"The cable é\"}\n{\"text\":\"\"}\n");
}

TEST_CASE("encode: a bad line is named", "[data][commands]") {
  const auto result = test::run({"graft-data", "encode", "--tokenizer", kTiny},
                                "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
  CHECK(result.exit_code == 3);
  CHECK(result.err.find("stdin:2") != std::string::npos);
  CHECK(test::run({"graft-data", "encode", "--tokenizer", "/nowhere"}).exit_code == 74);
  CHECK(test::run({"graft-data", "encode"}).exit_code == 2);
}

TEST_CASE("encode, decode, render: a wrong kind and a misspelt member are named with their line",
          "[data][commands]") {
  const test::TempDir dir;
  write_file_atomically(dir.file("t.jinja"), "{{ messages[0].content }}{{ name }}");
  const auto render = [&](const std::string& line) {
    return test::run({"graft-data", "render", "--template", dir.file("t.jinja")},
                     R"({"messages": [{"role": "user", "content": "x"}], "conv": 1, "text": "x"})"
                     "\n" +
                         line);
  };
  const auto typo = render(R"({"messages": [], "add_generation_promt": true})");
  CHECK(typo.exit_code == 3);
  CHECK(typo.err.find("did you mean \"add_generation_prompt\"?") != std::string::npos);
  CHECK(typo.err.find("stdin:2") != std::string::npos);
  const auto kind = render(R"({"messages": [], "add_generation_prompt": "yes"})");
  CHECK(kind.exit_code == 3);
  CHECK(kind.err.find("stdin:2") != std::string::npos);
  const auto text = test::run({"graft-data", "encode", "--tokenizer", kTiny}, "{\"text\": 5}\n");
  CHECK(text.exit_code == 3);
  CHECK(text.err.find("must be a string, got integer") != std::string::npos);
  CHECK(text.err.find("stdin:1") != std::string::npos);
  const auto ids = test::run({"graft-data", "decode", "--tokenizer", kTiny},
                             "{\"ids\": [1]}\n{\"ids\": [99999]}\n");
  CHECK(ids.exit_code == 3);
  CHECK(ids.err.find("stdin:2") != std::string::npos);
}

TEST_CASE("render: text and spans in code points, or the error", "[data][commands]") {
  const test::TempDir dir;
  write_file_atomically(dir.file("t.jinja"),
                        "é{% generation %}{{ messages[0].content }}{% endgeneration %}");
  const auto result = test::run({"graft-data", "render", "--template", dir.file("t.jinja")},
                                "{\"messages\": [{\"role\": \"user\", \"content\": \"日本\"}]}\n"
                                "{\"messages\": []}\n");
  REQUIRE(result.exit_code == 0);
  const size_t line_end = result.out.find('\n');
  CHECK(result.out.substr(0, line_end) == "{\"text\":\"é日本\",\"spans\":[[1,3]]}");
  CHECK(parse_json(result.out.substr(line_end + 1), "out").find("error") != nullptr);
  CHECK(test::run({"graft-data", "render"}).exit_code == 2);
}

TEST_CASE("tokenize and show: a file becomes a store that shows what is trained on",
          "[data][commands]") {
  const test::TempDir dir;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    write_file_atomically(dir.file(name), read_file(join_path(kTiny, name)));
  }
  write_file_atomically(dir.file("chat_template.jinja"),
                        "{% for m in messages %}{{ '[' + m.role + '] ' + m.content }}"
                        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                        "{% if add_generation_prompt %}[assistant]{% endif %}");
  write_file_atomically(dir.file("d.jsonl"),
                        "{\"prompt\": \"order\", \"completion\": \"cable\"}\n");
  const std::string store = dir.file("s.h5");
  const auto made = test::run({"graft-data", "tokenize", dir.file("d.jsonl"), "--model", dir.path(),
                               "--out", store, "--json"});
  REQUIRE(made.exit_code == 0);
  const Json summary = parse_json(made.out, "out");
  CHECK(summary.at("documents").as_int() == 1);
  CHECK(summary.at("turns_without_stop").as_int() == 0);
  const auto shown = test::run({"graft-data", "show", store, "-n", "1"});
  REQUIRE(shown.exit_code == 0);
  CHECK(shown.out.find("[user] order[assistant][[ cable</s>]]") != std::string::npos);
  const auto json = test::run({"graft-data", "show", store, "--json"});
  CHECK(parse_json(json.out, "out").at("shown").as_array()[0].at("trained").as_int() ==
        summary.at("supervised_tokens").as_int());
  CHECK(test::run({"graft-data", "tokenize", dir.file("none.jsonl"), "--model", dir.path(), "--out",
                   store})
            .exit_code == 74);
  CHECK(test::run({"graft-data", "tokenize", dir.file("d.jsonl"), "--model", dir.path(), "--out",
                   store, "--over-long", "cut"})
            .exit_code == 2);
  remove_file(dir.file("chat_template.jinja"));
  const auto refused = test::run({"graft-data", "tokenize", dir.file("d.jsonl"), "--model",
                                  dir.path(), "--out", dir.file("x.h5")});
  CHECK(refused.exit_code == 2);
  CHECK(refused.err.find("chat template") != std::string::npos);
  CHECK_FALSE(file_exists(dir.file("x.h5")));
}

TEST_CASE("encode: an error names line and column of standard input", "[data][commands]") {
  const auto result = test::run({"graft-data", "encode", "--tokenizer", kTiny},
                                "{\"text\": \"a\"}\n{\"text\": }\n");
  CHECK(result.exit_code == 3);
  CHECK(result.err.find("at stdin:2:10\n") != std::string::npos);
}

TEST_CASE("tokenize: damaged input is counted with its line, a bad place is refused",
          "[data][commands]") {
  const test::TempDir dir;
  const auto tokenize = [&](const std::string& content, const std::string& out) {
    write_file_atomically(dir.file("d.jsonl"), content);
    return test::run(
        {"graft-data", "tokenize", dir.file("d.jsonl"), "--model", kTiny, "--out", out});
  };
  const auto damaged = tokenize("{\"text\":\"a\"}\n{\"text\":\n", dir.file("s.h5"));
  CHECK(damaged.exit_code == 0);
  CHECK(damaged.out.find("d.jsonl:2: ") != std::string::npos);
  CHECK(damaged.out.find("malformed JSON") != std::string::npos);
  const auto open_array = tokenize("[{\"text\":\"a\"}\n", dir.file("s.h5"));
  CHECK(open_array.out.find("final ] is missing") != std::string::npos);
  make_directories(dir.file("folder"));
  const auto folder = tokenize("{\"text\":\"a\"}\n", dir.file("folder"));
  CHECK(folder.exit_code == 2);
  CHECK(folder.err.find("folder/store.h5") != std::string::npos);
  CHECK(tokenize("\n", dir.file("x.h5")).exit_code == 3);
  CHECK_FALSE(file_exists(dir.file("x.h5")));
}

}  // namespace graft::data
