// What of a conversation is trained on under each option; every expectation is written by hand.
#include "core/error.h"
#include "data/text/mask.h"
#include "tests/data/text/byte_tokenizer.h"
#include "tests/data/text/golden.h"

namespace graft::data {
namespace {

constexpr const char* kChat =
    "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + '<E>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}";
// As Qwen3: the thought of an earlier turn is dropped, the last turn gets an empty one.
constexpr const char* kThinking =
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<a>' }}{% if loop.last %}{{ "
    "'<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m.content + '<E>' }}"
    "{% else %}{{ '<u>' + m.content + '<E>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}";
constexpr const char* kTools =
    "{% for m in messages %}{{ '<' + m.role[0] + '>' }}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.name + '(' + c.arguments|tojson + ')' }}"
    "{% endfor %}{{ '<E>' }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}";

class Masks {
 public:
  explicit Masks(const std::string& bos = "", const std::string& eos = "")
      : tokenizer(test::byte_tokenizer(dir_, {"<E>", "<s>", "</s>"}, bos, eos)) {}

  std::vector<Document> documents(const std::string& json, const char* source = kChat) const {
    const ChatTemplate chat(source, "chat.jinja");
    const Record record = parse_record(parse_json(json, "test"), "test", mapping);
    return encode_record(record, *tokenizer, source[0] ? &chat : nullptr, options);
  }
  // Documents joined by " | "; a refused one as its name.
  std::string marked(const std::string& json, const char* source = kChat) const {
    std::string text;
    for (const Document& doc : documents(json, source)) {
      if (!text.empty()) text += " | ";
      text += doc.refusal == Refusal::kNone ? test::marked_text(doc, *tokenizer)
                                            : std::string(refusal_name(doc.refusal));
    }
    return text;
  }

  MaskOptions options;
  FieldMapping mapping;

 private:
  test::TempDir dir_;

 public:
  std::unique_ptr<Tokenizer> tokenizer;
};

constexpr const char* kTwoTurns = R"({"messages": [
    {"role": "user", "content": "p"}, {"role": "assistant", "content": "q"},
    {"role": "user", "content": "r"}, {"role": "assistant", "content": "s"}]})";

}  // namespace

TEST_CASE("mask: turns all, last and expand", "[data][mask]") {
  Masks masks;
  CHECK(masks.marked(kTwoTurns) == "<u>p<E><a>[q<E>]<u>r<E><a>[s<E>]");
  masks.options.turns = Turns::kLast;
  CHECK(masks.marked(kTwoTurns) == "<u>p<E><a>q<E><u>r<E><a>[s<E>]");
  masks.options.turns = Turns::kExpand;
  CHECK(masks.marked(kTwoTurns) == "<u>p<E><a>[q<E>] | <u>p<E><a>q<E><u>r<E><a>[s<E>]");
}

TEST_CASE("mask: expanded turns are rendered as at serving, and all says where it differs",
          "[data][mask]") {
  Masks masks;
  const char* json = R"({"messages": [
      {"role": "user", "content": "p"}, {"role": "assistant", "content": "q"},
      {"role": "user", "content": "r"}, {"role": "assistant", "content": "s"}]})";
  // The generation prompt does not supply the empty thought: the model has to write it.
  CHECK(masks.marked(json, kThinking) == "<u>p<E><a>[q<E>]<u>r<E><a>[<think></think>s<E>]");
  CHECK(masks.documents(json, kThinking).front().turns_unlike_serving == 0);
  masks.options.turns = Turns::kExpand;
  CHECK(masks.marked(json, kThinking) ==
        "<u>p<E><a>[<think></think>q<E>] | <u>p<E><a>q<E><u>r<E><a>[<think></think>s<E>]");

  constexpr const char* kLastOnly =
      "{% for m in messages %}{% if loop.last and m.role == 'user' %}{{ '<now>' }}{% endif %}"
      "{{ '<' + m.role[0] + '>' + m.content + '<E>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}";
  masks.options.turns = Turns::kAll;
  CHECK(masks.documents(json, kLastOnly).front().turns_unlike_serving == 2);
}

TEST_CASE("mask: an empty thought that the generation prompt supplies is not trained",
          "[data][mask]") {
  const Masks masks;
  constexpr const char* kSupplied =
      "{% for m in messages %}{{ '<' + m.role[0] + '>' }}{% if m.role == 'assistant' %}"
      "{{ '<think></think>' }}{% endif %}{{ m.content + '<E>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<a><think></think>' }}{% endif %}";
  CHECK(masks.marked(kTwoTurns, kSupplied) ==
        "<u>p<E><a><think></think>[q<E>]<u>r<E><a><think></think>[s<E>]");
  // A header that is the template's own text, without the name of the role.
  constexpr const char* kOwnHeader =
      "{% for m in messages %}{{ '<a><think></think>' if m.role == 'assistant' else '<u>' }}"
      "{{ m.content + '<E>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<a><think></think>' }}{% endif %}";
  CHECK(masks.marked(kTwoTurns, kOwnHeader) ==
        "<u>p<E><a><think></think>[q<E>]<u>r<E><a><think></think>[s<E>]");
}

TEST_CASE("mask: thoughts and tool calls are trained with the template's text round them",
          "[data][mask]") {
  const Masks masks;
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p"},
            {"role": "assistant", "content": "q", "reasoning_content": "t"}]})",
                     kThinking) == "<u>p<E><a>[<think>t</think>q<E>]");
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p"},
            {"role": "assistant", "content": null,
             "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
            {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]})",
                     kTools) == "<u>p<E><a>[<call>f({\"x\": 1})<E>]<t>2<E><a>[two<E>]");
}

TEST_CASE("mask: what a later header says again is not trained", "[data][mask]") {
  const Masks masks;
  constexpr const char* kAgain =
      "{% set ns = namespace(name='') %}{% for m in messages %}{{ '<' + m.role[0] + '>' }}"
      "{% if m.role == 'tool' %}{{ ns.name + '=' }}{% endif %}{{ m.content or '' }}"
      "{% for c in m.tool_calls or [] %}{% set ns.name = c.name %}{{ c.name + '()' + c.arguments }}"
      "{% endfor %}{{ '<E>' }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}";
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p"},
            {"role": "assistant", "content": "so", "tool_calls": [{"name": "f", "arguments": "1"}]},
            {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]})",
                     kAgain) == "<u>p<E><a>[sof()1<E>]<t>f=2<E><a>[two<E>]");
}

TEST_CASE("mask: a turn begins where serving and training part", "[data][mask]") {
  Masks masks;
  // The prompt opens a thought; turns without one have none. Calls are closed by a special token.
  constexpr const char* kOpens =
      "{% for m in messages %}{{ '<' + m.role[0] + '>' }}{% for c in m.tool_calls or [] %}"
      "{{ '<call>' + c.name + '</s>;' }}{% endfor %}{{ (m.content or '') + '<E>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<a><think>' }}{% endif %}";
  const char* json = R"({"messages": [{"role": "user", "content": "p"},
      {"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": "1"}]}]})";
  // What the template writes in front of the call's name is the model's to write.
  CHECK(masks.marked(json, kOpens) == "<u>p<E><a>[<call>f</s>;<E>]");
  CHECK(masks.documents(json, kOpens).front().turns_unlike_serving == 1);
}

TEST_CASE("mask: roles_to_train, train and weight choose the messages", "[data][mask]") {
  Masks masks;
  masks.options.roles_to_train = {"user"};
  CHECK(masks.marked(kTwoTurns) == "<u>[p<E>]<a>q<E><u>[r<E>]<a>s<E>");
  masks.options.roles_to_train = {"assistant"};
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p", "train": true},
      {"role": "assistant", "content": "q", "train": false},
      {"role": "user", "content": "r"}, {"role": "assistant", "content": "s", "weight": 2.5},
      {"role": "assistant", "content": "t", "weight": 0},
      {"role": "assistant", "content": "u", "weight": 1}]})") ==
        "<u>[p<E>]<a>q<E><u>r<E><a>[2.5:s<E>]<a>t<E><a>[u<E>]");
  for (const char* bad : {R"("train": 1)", R"("weight": -1)", R"("weight": "high")"}) {
    CAPTURE(bad);
    CHECK(masks.marked(std::string(R"({"messages": [{"role": "assistant", "content": "q", )") +
                       bad + "}]}") == "bad_member");
  }
  masks.options.roles_to_train = {"narrator"};
  CHECK(masks.marked(kTwoTurns) == "nothing_trained");
}

TEST_CASE("mask: train_on_eos and train_on_inputs", "[data][mask]") {
  Masks masks;
  masks.options.train_on_eos = TrainEos::kNone;
  CHECK(masks.marked(kTwoTurns) == "<u>p<E><a>[q]<E><u>r<E><a>[s]<E>");
  masks.options.train_on_eos = TrainEos::kLast;
  CHECK(masks.marked(kTwoTurns) == "<u>p<E><a>[q]<E><u>r<E><a>[s<E>]");
  masks.options.train_on_eos = TrainEos::kAll;
  CHECK(masks.marked(kTwoTurns) == "<u>p[<E>]<a>[q<E>]<u>r[<E>]<a>[s<E>]");
  masks.options.train_on_eos = TrainEos::kTurn;
  masks.options.train_on_inputs = true;
  CHECK(masks.marked(kTwoTurns) == "[<u>p<E><a>q<E><u>r<E><a>s<E>]");
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p", "weight": 0.5},
      {"role": "assistant", "content": "q", "train": false}]})") == "[<u>][0.5:p][<E><a>]q[<E>]");
}

TEST_CASE("mask: BOS is never trained, also under train_on_inputs", "[data][mask]") {
  Masks masks("<s>");
  masks.options.train_on_inputs = true;
  CHECK(masks.marked(kTwoTurns) == "<s>[<u>p<E><a>q<E><u>r<E><a>s<E>]");
}

TEST_CASE("mask: faults are reported or dropped as the user says", "[data][mask]") {
  Masks masks("<s>");
  constexpr const char* kNoStop =
      "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content }}{% endfor %}";
  CHECK(masks.marked(kTwoTurns, kNoStop) == "<s><u>p<a>[q]<u>r<a>[s]");
  CHECK(masks.documents(kTwoTurns, kNoStop).front().turns_without_stop == 2);
  masks.options.faults.unstopped_turn = FaultLevel::kDrop;
  CHECK(masks.marked(kTwoTurns, kNoStop) == "unstopped_turn");
  const std::string twice = std::string("<s><s>") + kChat;
  CHECK(masks.marked(kTwoTurns, twice.c_str()) == "double_bos");
  masks.options.faults.double_bos = FaultLevel::kReport;
  CHECK(masks.marked(kTwoTurns, twice.c_str()).substr(0, 6) == "<s><s>");
}

TEST_CASE("mask: documents that are too long", "[data][mask]") {
  Masks masks("<s>", "</s>");
  const std::string text = R"({"text": "abcdefghi"})";  // <s>, nine letters, </s>
  masks.options.sequence_len = 6;
  CHECK(masks.marked(text, "") == "too_long");
  masks.options.over_long = OverLong::kTruncateRight;
  CHECK(masks.marked(text, "") == "<s>[abcde]");
  CHECK(masks.documents(text, "").front().truncated == 5);
  masks.options.over_long = OverLong::kTruncateLeft;
  CHECK(masks.marked(text, "") == "<s>[fghi</s>]");
  CHECK(masks.documents(text, "").front().truncated == 5);
  masks.options.over_long = OverLong::kSplit;
  CHECK(masks.marked(text, "") == "<s>[abcde] | <s>[fghi</s>]");
  masks.options.chunk_overlap = 2;
  CHECK(masks.marked(text, "") == "<s>[abcde] | <s>de[fgh] | <s>gh[i</s>]");
}

TEST_CASE("mask: pieces without a trained token are counted, not lost silently", "[data][mask]") {
  Masks masks;
  masks.options.sequence_len = 8;
  masks.options.over_long = OverLong::kSplit;
  const std::string json = R"({"prompt": "aaaaaaaaaaaaaaa", "completion": "b"})";
  CHECK(masks.marked(json) == "aa<E><a>[b<E>] | too_long");
  CHECK(masks.documents(json).front().truncated == 16);
  masks.options.over_long = OverLong::kTruncateRight;
  CHECK(masks.marked(json) == "too_long");
}

TEST_CASE("mask: segments and token ids need no template", "[data][mask]") {
  Masks masks;
  CHECK(masks.marked(R"({"segments": [{"text": "Q: p ", "label": false},
      {"text": "A: ", "label": true}, {"text": "q<E>", "label": true}]})",
                     "") == "Q: p [A: q<E>]");
  CHECK(masks.documents(R"({"segments": [{"text": "q", "label": true}]})", "")
            .front()
            .turns_without_stop == 1);
  const int32_t p = *masks.tokenizer->id("<0x70>");
  const std::string ids = std::to_string(p) + ", " + std::to_string(p + 1) + ", 1, 0";
  const std::string labels = "-100, " + std::to_string(p + 1) + ", 1, -100";
  CHECK(masks.marked(R"({"input_ids": [)" + ids + R"(], "labels": [)" + labels +
                         R"(], "attention_mask": [1, 1, 1, 0]})",
                     "") == "p[q<E>]");
  CHECK(masks.marked(R"({"input_ids": [)" + ids + "]}", "").substr(0, 5) == "[pq<E");
  CHECK(masks.marked(R"({"input_ids": [100000]})", "") == "bad_member");
  CHECK(masks.marked(R"({"input_ids": [1, 2], "labels": [2, -100]})", "") == "bad_member");
  CHECK_THROWS_WITH(masks.marked(R"({"input_ids": [1, 2], "labels": [1]})", ""),
                    Catch::Contains("2 integers"));
  CHECK_THROWS_WITH(masks.marked(R"({"segments": [{"text": "q"}]})", ""),
                    Catch::Contains("\"label\""));
}

TEST_CASE("mask: members under other names", "[data][mask]") {
  Masks masks;
  masks.mapping.record = {{"messages", "dialogue"}};
  masks.mapping.message = {{"role", "speaker"}, {"content", "said"}};
  masks.mapping.roles = {{"user", "client"}, {"assistant", "agent"}};
  CHECK(masks.marked(R"({"dialogue": [{"speaker": "client", "said": "p"},
      {"speaker": "agent", "said": "q"}], "messages": "another thing"})") == "<u>p<E><a>[q<E>]");
}

TEST_CASE("mask: null members that Parquet pads messages with are not shown to the template",
          "[data][mask]") {
  const Masks masks;
  constexpr const char* kLooks =
      "{% for m in messages %}{{ '<' + m.role[0] + '>' }}{% if 'tool_calls' in m %}{{ '<call>' }}"
      "{% endif %}{{ m.content + '<E>' }}{% endfor %}";
  CHECK(masks.marked(R"({"messages": [{"role": "user", "content": "p", "tool_calls": null},
      {"role": "assistant", "content": "q", "tool_calls": null, "name": null}]})",
                     kLooks) == "<u>p<E><a>[q<E>]");
}

}  // namespace graft::data
