// graft: finds the program that holds a command and becomes it.
//
// One program per side, because a program that links LibTorch needs 0.25-0.5 s to start and the
// dataset side must start in milliseconds.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include "core/error.h"
#include "core/idle_threads.h"
#include "core/progress.h"

namespace {

struct Route {
  std::string_view verb;  // one word, or two, which become one of the program's
  std::string_view program;
  bool is_group;  // the verb is not passed on: `graft data clean` runs `graft-data clean`
  std::string_view summary;
  std::string_view fix = "build it with `make`, or install the whole of graft";  // not here
};

constexpr Route kRoutes[] = {
    {"data", "graft-data", true, "curate, deduplicate and tokenize instruction data"},
    {"train", "graft-train", false, "train an adapter or a whole model from a config file"},
    {"plan", "graft-train", false, "memory, work and time of a training run"},
    {"check", "graft-train", false, "all that is wrong with a config, its data and its model"},
    {"doctor", "graft-train", false, "this machine, and the engine's promises on your own config"},
    {"eval", "graft-train", false, "loss, accuracy and exact match of a model or adapter"},
    {"logits", "graft-train", false, "logits for given token ids"},
    {"generate", "graft-train", false, "text from a model or adapter"},
    {"quantize", "graft-adapter", false, "a 4-bit checkpoint that bitsandbytes loads"},
    {"adapter", "graft-adapter", true, "inspect and merge adapters"},
    {"bench step", "graft-train", false, "speed and memory of training steps on this machine"},
    {"bench", "graft-bench", true, "kernels and data beside other implementations",
     "it is not installed: run it in a source tree after `make`; `graft bench step` is installed"},
};

constexpr std::string_view kBashCompletion =
    R"bash(# bash completion of graft: eval "$(graft completion)"
_graft() {
  local words
  words=$(graft --complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _graft graft
)bash";

std::string sibling(std::string_view program) {
  std::string path(4096, '\0');
  const ssize_t size = ::readlink("/proc/self/exe", path.data(), path.size());
  if (size < 0) {
    graft::fail_io("cannot find the program's own place", "/proc/self/exe");
  }
  path.resize(static_cast<size_t>(size));
  return (std::filesystem::path(path).parent_path() / program).string();
}

void print_help() {
  std::vector<std::vector<std::string>> rows;
  for (const Route& route : kRoutes) {
    rows.push_back({"  graft " + std::string(route.verb) + (route.is_group ? " COMMAND" : ""),
                    std::string(route.summary)});
  }
  rows.push_back({"  graft completion", "print the bash completion: eval \"$(graft completion)\""});
  std::printf("graft %s: exact, explained LoRA and QLoRA fine-tuning\n\ncommands:\n%s\n%s",
              GRAFT_VERSION, graft::format_table("<<", rows).c_str(),
              "`graft COMMAND --help` explains a command. Every command takes --json.\n");
}

[[noreturn]] void become(const Route& route, std::span<char* const> rest, bool complete) {
  const std::string program = sibling(route.program);
  std::vector<std::string> words = {program};
  if (complete) {
    words.emplace_back("--complete");
  }
  if (!route.is_group) {
    words.emplace_back(route.verb);
  }
  words.insert(words.end(), rest.begin(), rest.end());
  std::vector<char*> pointers;
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  // What the programs with OpenMP otherwise set by starting themselves once more: LibTorch would be
  // loaded twice.
  graft::let_idle_threads_sleep();
  ::execv(program.c_str(), pointers.data());
  graft::fail(graft::ExitCode::kUsage,
              "\"graft " + std::string(route.verb) + "\" needs the program " +
                  std::string(route.program) + ", which is not here",
              program, std::string(route.fix));
}

// How many words the verb takes; 0 where the words are not its own.
size_t words_of(const Route& route, std::span<char* const> words) {
  const size_t space = route.verb.find(' ');
  if (words.empty() || words[0] != route.verb.substr(0, space)) return 0;
  if (space == std::string_view::npos) return 1;
  return words.size() > 1 && words[1] == route.verb.substr(space + 1) ? 2 : 0;
}

int run(int argc, char** argv) {
  std::span<char* const> words(argv + 1, static_cast<size_t>(argc - 1));
  const bool complete = !words.empty() && std::string_view(words[0]) == "--complete";
  if (complete) {
    words = words.subspan(1);
  }
  const std::string_view verb = words.empty() ? "--help" : words[0];
  std::vector<std::string_view> verbs;
  for (const Route& route : kRoutes) {
    if (const size_t taken = words_of(route, words)) {
      become(route, words.subspan(taken), complete);
    }
    const size_t space = route.verb.find(' ');
    if (space == std::string_view::npos) {
      verbs.push_back(route.verb);
    } else if (complete && words.size() == 1 && verb == route.verb.substr(0, space)) {
      std::printf("%s\n", std::string(route.verb.substr(space + 1)).c_str());
      std::fflush(stdout);  // its group's own follow
    }
  }
  verbs.emplace_back("completion");
  if (complete) {
    for (const std::string_view one : verbs) {
      std::printf("%s\n", std::string(one).c_str());
    }
    return 0;
  }
  if (verb == "--help" || verb == "-h" || verb == "help") {
    print_help();
    return 0;
  }
  if (verb == "--version") {
    std::printf("graft %s\n", GRAFT_VERSION);
    return 0;
  }
  if (verb == "completion") {
    std::fputs(std::string(kBashCompletion).c_str(), stdout);
    return 0;
  }
  graft::fail(graft::ExitCode::kUsage, graft::unknown_name("command", verb, verbs), "command line",
              "see `graft --help`");
}

}  // namespace

int main(int argc, char** argv) {
  return graft::run_main([&] { return run(argc, argv); });
}
