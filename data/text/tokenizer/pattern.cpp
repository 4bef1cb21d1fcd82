#include "data/text/tokenizer/pattern.h"

#include <algorithm>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.h"
#include "data/text/tokenizer/known_patterns.h"
#include "data/text/tokenizer/unicode.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// Backtracking steps of one match: a word of a real pattern needs a few, a megabyte of white space
// about a million. 2^22 end within 0.1 s.
constexpr uint32_t kMatchLimit = uint32_t{1} << 22;
constexpr uint32_t kHeapLimitKiB = 64 * 1024;
constexpr uint32_t kDepthLimit = 10000;
// Real patterns have at most 400 characters.
constexpr size_t kMaxPatternBytes = 10000;
// The JIT's own stack; patterns without recursion use little.
constexpr size_t kJitStackBytes = size_t{1} << 20;
constexpr PCRE2_SIZE kMaxCompiledBytes = size_t{1} << 22;

std::string message_of(int code) {
  std::string text(256, '\0');
  const int length =
      pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text.data()), text.size());
  text.resize(length > 0 ? static_cast<size_t>(length) : 0);
  return text;
}

// Steps that all matches of one text may take together: the limit of one match bounds neither what
// the JIT does inside of a repetition, nor a pattern that is slow at every byte. PCRE2 calls before
// each item of the pattern that it tries; real patterns need 10 a byte.
class Steps {
 public:
  explicit Steps(size_t bytes) : left_(int64_t{1} << 22) {
    left_ += 25 * static_cast<int64_t>(bytes);
  }
  static int count(pcre2_callout_block*, void* data) {
    // An error number of ours; pcre2_match() gives it back.
    return --static_cast<Steps*>(data)->left_ > 0 ? 0 : kNoneLeft;
  }
  static constexpr int kNoneLeft = -1000;

 private:
  int64_t left_;
};

// Rewrites what both engines read differently, or refuses it.
std::string translate(std::string_view pattern, const std::string& where) {
  const auto refuse = [&](const std::string& what) {
    fail(ExitCode::kData, "a regular expression with " + what + " is not supported", where,
         "pattern: " + std::string(pattern.substr(0, 200)));
  };
  std::string out;
  bool in_class = false;
  bool after_interval = false;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    const bool was_interval = after_interval;
    after_interval = false;
    if (c == '\\' && at + 1 < pattern.size()) {
      const char next = pattern[++at];
      switch (next) {
        case 'w':
          out += in_class ? R"(\p{L}\p{M}\p{Nd}\p{Pc})" : R"([\p{L}\p{M}\p{Nd}\p{Pc}])";
          break;
        case 'W':
          if (in_class) refuse("\\W in a class");
          out += R"([^\p{L}\p{M}\p{Nd}\p{Pc}])";
          break;
        case 'u': {
          const std::string_view digits = pattern.substr(at + 1, 4);
          if (digits.size() != 4 ||
              digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
            refuse("\\u without four hex digits");
          }
          out += "\\x{" + std::string(digits) + "}";
          at += 4;
          break;
        }
        case 'b':
        case 'B':
        case 'h':
        case 'H':
        case 'R':
        case 'X':
        case 'K':
        case 'G':
        case 'g':
        case 'k':
        case 'Z':
        case 'C':
        case 'N':
        case 'O':
        case 'Q':
        case 'E':
          refuse(std::string("\\") + next);
          break;
        case 'p':
        case 'P':
        case 'x': {
          // The braces are a name, no repetition.
          const size_t end = pattern.find('}', at);
          const bool is_named = at + 1 < pattern.size() && pattern[at + 1] == '{';
          if (!is_named || end == std::string_view::npos) {
            refuse(std::string("\\") + next + " without {}");
          }
          out += '\\';
          out += pattern.substr(at, end - at + 1);
          at = end;
          break;
        }
        default:
          out += {'\\', next};
      }
      continue;
    }
    if (in_class) {
      if (c == '[') refuse("a class in a class");
      if (c == '&' && at + 1 < pattern.size() && pattern[at + 1] == '&') refuse("&& in a class");
      if (c == ']' && out.back() != '[' && !(out.back() == '^' && out[out.size() - 2] == '[')) {
        in_class = false;
      }
      out += c;
      continue;
    }
    if (c == '[') in_class = true;
    // Oniguruma reads {1,3}+ as a repeated repetition, PCRE2 as a possessive one.
    if (c == '+' && was_interval) refuse("+ behind {n,m}");
    after_interval = c == '}';
    if (c == '(' && at + 1 < pattern.size() && pattern[at + 1] == '*') refuse("(*");
    if (c == '(' && at + 2 < pattern.size() && pattern[at + 1] == '?') {
      const std::string_view rest = pattern.substr(at + 2);
      const bool is_known = rest[0] == ':' || rest[0] == '=' || rest[0] == '!' || rest[0] == '>' ||
                            rest.substr(0, 2) == "i:" || rest.substr(0, 2) == "<=" ||
                            rest.substr(0, 2) == "<!";
      if (!is_known) refuse("the group (?" + std::string(rest.substr(0, 1)));
    }
    out += c;
  }
  return out;
}

}  // namespace

struct Pattern::State {
  std::string source;
  std::string where;
  pcre2_code* code = nullptr;
  pcre2_match_context* limits = nullptr;
  bool is_jit = false;
  bool counts_steps = false;
  ~State() {
    pcre2_code_free(code);
    pcre2_match_context_free(limits);
  }
};

Pattern::Pattern(std::string_view pattern, const std::string& where)
    : state_(std::make_unique<State>()) {
  state_->source = pattern;
  state_->where = where;
  if (pattern.size() > kMaxPatternBytes || pattern.find('\0') != std::string_view::npos) {
    fail(ExitCode::kData,
         "a regular expression must have at most " + std::to_string(kMaxPatternBytes) +
             " bytes and no zero byte",
         where);
  }
  const std::string translated = translate(pattern, where);
  state_->counts_steps =
      std::find(known::kAll.begin(), known::kAll.end(), pattern) == known::kAll.end();
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_max_pattern_length(context, kMaxPatternBytes * 4);
  pcre2_set_parens_nest_limit(context, 100);
  int code = 0;
  PCRE2_SIZE at = 0;
  state_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                               PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C |
                                   (state_->counts_steps ? PCRE2_AUTO_CALLOUT : 0),
                               &code, &at, context);
  pcre2_compile_context_free(context);
  if (!state_->code) {
    fail(ExitCode::kData, "not a regular expression: " + message_of(code), where,
         "pattern: " + std::string(pattern.substr(0, 200)));
  }
  PCRE2_SIZE bytes = 0;
  pcre2_pattern_info(state_->code, PCRE2_INFO_SIZE, &bytes);
  if (bytes > kMaxCompiledBytes) {
    fail(ExitCode::kData, "a regular expression needs " + std::to_string(bytes) + " bytes compiled",
         where, "simplify the pattern: at most 4 MiB are allowed");
  }
  // Hardened systems forbid memory that is written and run; the interpreter does the same work.
  state_->is_jit = pcre2_jit_compile(state_->code, PCRE2_JIT_COMPLETE) == 0;
  state_->limits = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(state_->limits, kMatchLimit);
  pcre2_set_heap_limit(state_->limits, kHeapLimitKiB);
  pcre2_set_depth_limit(state_->limits, kDepthLimit);
}

Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

void Pattern::find_all(std::string_view text,
                       size_t begin,
                       size_t end,
                       std::vector<ByteRange>& out) const {
  struct Scratch {
    pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
    pcre2_jit_stack* stack = pcre2_jit_stack_create(size_t{1} << 15, kJitStackBytes, nullptr);
    std::string shown;
    ~Scratch() {
      pcre2_match_data_free(data);
      pcre2_jit_stack_free(stack);
    }
  };
  thread_local Scratch scratch;
  std::string_view shown = text.substr(begin, end - begin);
  bool is_copied = false;
  for (size_t at = 0; at < shown.size(); at += utf8_length(shown[at])) {
    if (static_cast<unsigned char>(shown[at]) < 0x80) continue;
    const char32_t stand_in = unicode14_stand_in(utf8_at(shown, at));
    if (stand_in == 0) continue;
    if (!is_copied) scratch.shown.assign(shown);
    is_copied = true;
    std::string bytes;
    append_utf8(bytes, stand_in);
    scratch.shown.replace(at, bytes.size(), bytes);
  }
  if (is_copied) shown = scratch.shown;
  pcre2_match_context* limits = pcre2_match_context_copy(state_->limits);
  if (state_->is_jit) pcre2_jit_stack_assign(limits, nullptr, scratch.stack);
  const std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> owner(
      limits, pcre2_match_context_free);
  Steps steps(shown.size());
  if (state_->counts_steps) pcre2_set_callout(limits, Steps::count, &steps);
  for (size_t at = 0; at < shown.size();) {
    const int code = pcre2_match(state_->code, reinterpret_cast<PCRE2_SPTR>(shown.data()),
                                 shown.size(), at, PCRE2_NO_UTF_CHECK, scratch.data, limits);
    if (code == PCRE2_ERROR_NOMATCH) return;
    if (code < 0) {
      const std::string why = code == Steps::kNoneLeft ? "too many steps" : message_of(code);
      fail(ExitCode::kData, "a regular expression does not end on this text: " + why, state_->where,
           "pattern: " + state_->source.substr(0, 200));
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.data);
    const size_t from = ends[0];
    const size_t to = ends[1];
    if (to <= from) {
      at = std::max(at, from);
      if (at < shown.size()) at += utf8_length(shown[at]);
      continue;
    }
    out.push_back({static_cast<int64_t>(begin + from), static_cast<int64_t>(begin + to)});
    at = to;
  }
}

}  // namespace graft::data
