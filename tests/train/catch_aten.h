// Catch2 beside ATen: LibTorch's logging defines a CHECK of its own, which must come first so that
// Catch's is the one in force; in the other order a failed CHECK ends the test program.
#pragma once

// clang-format off
#include <ATen/ATen.h>
#undef CHECK
#include <catch2/catch.hpp>
// clang-format on
