#include "core/args.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "core/error.h"
#include "core/progress.h"

namespace graft {
namespace {

constexpr Option kCommonOptions[] = {
    {"--json", "", "", "print the result as JSON on standard output"},
    {"--help", "", "", "show this text"},
};

[[noreturn]] void refuse(std::string what, std::string fix) {
  fail(ExitCode::kUsage, std::move(what), "command line", std::move(fix));
}

std::vector<Option> all_options(const Command& command) {
  std::vector<Option> options = command.options;
  options.insert(options.end(), std::begin(kCommonOptions), std::end(kCommonOptions));
  return options;
}

std::string command_help(std::string_view prefix, const Command& command) {
  std::string text = std::string(prefix) + " " + std::string(command.name) + ": " +
                     std::string(command.summary) + "\n\nusage: " + std::string(prefix) + " " +
                     std::string(command.name);
  text += command.positionals.empty() ? "" : " " + std::string(command.positionals);
  text += " [options]\n\noptions:\n";
  std::vector<std::vector<std::string>> rows;
  for (const Option& option : all_options(command)) {
    std::string help(option.help);
    if (!option.fallback.empty()) {
      help += " (default " + std::string(option.fallback) + ")";
    }
    rows.push_back({"  " + std::string(option.name) +
                        (option.value.empty() ? "" : " " + std::string(option.value)),
                    help});
  }
  text += format_table("<<", rows);
  if (!command.examples.empty()) {
    text += "\nexamples:\n";
    for (const std::string_view example : command.examples) {
      text += "  " + std::string(example) + "\n";
    }
  }
  return text;
}

std::string program_help(std::string_view prefix,
                         std::string_view summary,
                         std::span<const Command> commands) {
  std::string text = std::string(prefix) + ": " + std::string(summary) + "\n\ncommands:\n";
  std::vector<std::vector<std::string>> rows;
  for (const Command& command : commands) {
    rows.push_back({"  " + std::string(prefix) + " " + std::string(command.name) +
                        (command.positionals.empty() ? "" : " " + std::string(command.positionals)),
                    std::string(command.summary)});
  }
  text += format_table("<<", rows);
  return text + "\n`" + std::string(prefix) + " COMMAND --help` explains a command.\n";
}

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
  Number value{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

void print_completions(std::span<const Command> commands, int argc, char** argv) {
  const std::string_view typed = argc > 2 ? argv[2] : "";
  for (const Command& command : commands) {
    if (command.name == typed) {
      for (const Option& option : all_options(command)) {
        std::printf("%s\n", std::string(option.name).c_str());
      }
      return;
    }
  }
  for (const Command& command : commands) {
    std::printf("%s\n", std::string(command.name).c_str());
  }
}

}  // namespace

class ArgsParser {
 public:
  ArgsParser(std::string_view prefix, const Command& command)
      : title_(std::string(prefix) + " " + std::string(command.name)),
        command_(command),
        options_(all_options(command)) {}

  Args parse(int argc, char** argv) {
    bool options_ended = false;
    for (int i = 0; i < argc; ++i) {
      const std::string_view word = argv[i];
      if (!options_ended && word == "--") {
        options_ended = true;
      } else if (!options_ended && word.size() > 1 && word[0] == '-' &&
                 !(word[1] >= '0' && word[1] <= '9')) {
        take_option(word, argc, argv, i);
      } else {
        args_.positionals_.emplace_back(word);
      }
    }
    if (!args_.has("--help")) {
      check_positionals();
    }
    for (const Option& option : options_) {
      if (!option.fallback.empty()) {
        args_.values_.emplace(option.name, option.fallback);
      }
    }
    return std::move(args_);
  }

 private:
  void take_option(std::string_view word, int argc, char** argv, int& i) {
    if (word == "-h") {
      word = "--help";
    }
    const size_t equals = word.substr(0, 2) == "--" ? word.find('=') : std::string_view::npos;
    const std::string_view name = word.substr(0, equals);
    const auto option = std::find_if(options_.begin(), options_.end(),
                                     [&](const Option& one) { return one.name == name; });
    if (option == options_.end()) {
      std::vector<std::string_view> known;
      for (const Option& one : options_) {
        known.push_back(one.name);
      }
      refuse(unknown_name("option", name, known), "see `" + title_ + " --help`");
    }
    std::string value;
    if (option->value.empty()) {
      if (equals != std::string_view::npos) {
        refuse(std::string(name) + " takes no value", "write " + std::string(name) + " alone");
      }
    } else if (equals != std::string_view::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < argc) {
      value = argv[++i];
    } else {
      refuse(std::string(name) + " needs a value",
             "write " + std::string(name) + " " + std::string(option->value));
    }
    if (!args_.values_.emplace(name, std::move(value)).second) {
      refuse(std::string(name) + " is given twice", "keep one of them");
    }
  }

  void check_positionals() const {
    const auto count = static_cast<int>(args_.positionals_.size());
    const std::string usage = title_ + " " + std::string(command_.positionals);
    if (count < command_.min_positionals) {
      refuse("expected " + std::string(command_.positionals) + ", got " + std::to_string(count) +
                 (count == 1 ? " argument" : " arguments"),
             "usage: " + usage);
    }
    if (command_.max_positionals >= 0 && count > command_.max_positionals) {
      refuse("unexpected argument \"" +
                 args_.positionals_[static_cast<size_t>(command_.max_positionals)] + "\"",
             "usage: " + usage);
    }
  }

  std::string title_;
  const Command& command_;
  std::vector<Option> options_;
  Args args_;
};

bool Args::has(std::string_view option) const {
  return values_.find(option) != values_.end();
}

std::string Args::text(std::string_view option) const {
  const auto value = values_.find(option);
  return value == values_.end() ? "" : value->second;
}

std::string Args::need(std::string_view option) const {
  if (text(option).empty()) {
    refuse("missing option " + std::string(option), "add " + std::string(option) + " VALUE");
  }
  return text(option);
}

int64_t Args::integer(std::string_view option, int64_t min, int64_t max) const {
  const std::string value = need(option);
  const auto number = parse_number<int64_t>(value);
  if (!number || *number < min || *number > max) {
    refuse(std::string(option) + " must be a whole number in " + std::to_string(min) + ".." +
               std::to_string(max) + ", got \"" + value + "\"",
           "correct the number");
  }
  return *number;
}

double Args::number(std::string_view option, double min, double max) const {
  const std::string value = need(option);
  const auto number = parse_number<double>(value);
  if (!number || !(*number >= min && *number <= max)) {
    char bounds[80];
    std::snprintf(bounds, sizeof bounds, "%g..%g", min, max);
    refuse(std::string(option) + " must be a number in " + bounds + ", got \"" + value + "\"",
           "correct the number");
  }
  return *number;
}

int run_program(std::string_view prefix,
                std::string_view summary,
                std::span<const Command> commands,
                int argc,
                char** argv) {
  const std::string_view verb = argc > 1 ? argv[1] : "--help";
  if (verb == "--help" || verb == "-h" || verb == "help") {
    std::fputs(program_help(prefix, summary, commands).c_str(), stdout);
    return 0;
  }
  if (verb == "--version") {
    std::printf("graft %s\n", GRAFT_VERSION);
    return 0;
  }
  if (verb == "--complete") {
    print_completions(commands, argc, argv);
    return 0;
  }
  for (const Command& command : commands) {
    if (command.name == verb) {
      const Args args = ArgsParser(prefix, command).parse(argc - 2, argv + 2);
      if (args.flag("--help")) {
        std::fputs(command_help(prefix, command).c_str(), stdout);
        return 0;
      }
      return command.run(args);
    }
  }
  std::vector<std::string_view> names;
  for (const Command& command : commands) {
    names.push_back(command.name);
  }
  refuse(unknown_name("command", verb, names), "see `" + std::string(prefix) + " --help`");
}

}  // namespace graft
