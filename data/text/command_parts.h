// What the files of graft-data's text commands share, and the commands that commands.cpp puts into
// its table.
#pragma once

#include <string_view>

#include "core/args.h"
#include "core/json.h"

namespace graft::data {

// To stdout. Errors: kIo.
void print(std::string_view text);
void print_json(const Json& value);  // and a line end
void flush_stdout();

// Each runs one command and gives the exit code.
int run_encode(const Args& args);
int run_decode(const Args& args);
int run_render(const Args& args);
int run_tokenize(const Args& args);
int run_show(const Args& args);
int run_extend(const Args& args);

}  // namespace graft::data
