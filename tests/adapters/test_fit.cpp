// An adapter under the names and in the layout of another model: B A is the same for every row.
#include <map>

#include <catch2/catch.hpp>

#include "adapters/fit.h"
#include "core/error.h"

using namespace graft::adapters;

namespace {

using Shapes = std::map<std::string, LinearShape>;

FindLinear finder(const Shapes& shapes) {
  return [&](const std::string& name) -> std::optional<LinearShape> {
    const auto found = shapes.find(name);
    return found == shapes.end() ? std::nullopt : std::optional(found->second);
  };
}

// Small whole numbers, so that every sum of products is exact.
AdapterModule module_of(const std::string& name, int64_t out, int64_t in, int64_t rank, int seed) {
  AdapterModule module;
  module.name = name;
  module.out = out;
  module.in = in;
  module.rank = rank;
  module.scale = 2;
  for (int64_t i = 0; i < rank * in; ++i) {
    module.a.push_back(static_cast<float>((i * 7 + seed) % 11 - 5));
  }
  for (int64_t i = 0; i < out * rank; ++i) {
    module.b.push_back(static_cast<float>((i * 5 + 3 * seed) % 13 - 6));
  }
  return module;
}

// scale * B A, [out, in].
std::vector<double> delta(const AdapterModule& m) {
  std::vector<double> product(static_cast<size_t>(m.out * m.in));
  for (int64_t o = 0; o < m.out; ++o) {
    for (int64_t i = 0; i < m.in; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < m.rank; ++r) {
        sum += static_cast<double>(m.b[static_cast<size_t>(o * m.rank + r)]) *
               static_cast<double>(m.a[static_cast<size_t>(r * m.in + i)]);
      }
      product[static_cast<size_t>(o * m.in + i)] = m.scale * sum;
    }
  }
  return product;
}

std::vector<double> rows(const std::vector<double>& matrix,
                         int64_t in,
                         int64_t begin,
                         int64_t end) {
  return {matrix.begin() + begin * in, matrix.begin() + end * in};
}

Adapter adapter_of(std::vector<AdapterModule> modules, int64_t rank) {
  Adapter adapter;
  adapter.spec.r = rank;
  adapter.spec.lora_alpha = 2.0 * static_cast<double>(rank);
  adapter.modules = std::move(modules);
  return adapter;
}

std::string refusal(const Adapter& adapter, const Shapes& shapes) {
  try {
    fit_adapter(adapter, finder(shapes), "model");
  } catch (const graft::Error& error) {
    return error.what();
  }
  return "";
}

const std::string kAttention = "model.layers.0.self_attn.";

}  // namespace

TEST_CASE("fit: a joined pair becomes the pairs of its parts", "[adapters][fit]") {
  const Shapes shapes = {{kAttention + "q_proj", {6, 5}},
                         {kAttention + "k_proj", {2, 5}},
                         {kAttention + "v_proj", {2, 5}}};
  const AdapterModule joined = module_of(kAttention + "qkv_proj", 10, 5, 3, 1);
  const Adapter fitted = fit_adapter(adapter_of({joined}, 3), finder(shapes), "model");
  REQUIRE(fitted.modules.size() == 3);
  const std::vector<double> whole = delta(joined);
  CHECK(fitted.modules[0].name == kAttention + "k_proj");
  CHECK(delta(fitted.modules[0]) == rows(whole, 5, 6, 8));
  CHECK(delta(fitted.modules[1]) == rows(whole, 5, 0, 6));
  CHECK(delta(fitted.modules[2]) == rows(whole, 5, 8, 10));
}

TEST_CASE("fit: pairs of parts become one of the joined weight", "[adapters][fit]") {
  const Shapes shapes = {{kAttention + "qkv_proj", {10, 5}}};
  const AdapterModule q = module_of(kAttention + "q_proj", 6, 5, 3, 1);
  AdapterModule v = module_of(kAttention + "v_proj", 2, 5, 3, 4);
  v.scale = 4;  // an alpha_pattern
  const Adapter fitted = fit_adapter(adapter_of({q, v}, 3), finder(shapes), "model");
  REQUIRE(fitted.modules.size() == 1);
  CHECK(fitted.modules[0].name == kAttention + "qkv_proj");
  CHECK(fitted.modules[0].rank == 6);
  const std::vector<double> whole = delta(fitted.modules[0]);
  CHECK(rows(whole, 5, 0, 6) == delta(q));
  CHECK(rows(whole, 5, 6, 8) == std::vector<double>(10, 0.0));
  CHECK(rows(whole, 5, 8, 10) == delta(v));
}

TEST_CASE("fit: the pairs of all experts become one for each expert", "[adapters][fit]") {
  // Three experts of width 4 on a hidden size of 5, rank 2.
  const std::string block = "model.layers.0.block_sparse_moe.experts.";
  Shapes shapes;
  for (const char* expert : {"0", "1", "2"}) {
    shapes[block + expert + ".w1"] = {4, 5};
    shapes[block + expert + ".w3"] = {4, 5};
    shapes[block + expert + ".w2"] = {5, 4};
  }
  AdapterModule up = module_of("model.layers.0.mlp.experts.base_layer", 8, 5, 6, 1);
  AdapterModule down = module_of("model.layers.0.mlp.experts", 5, 4, 6, 2);
  up.all_experts = down.all_experts = true;
  const Adapter fitted = fit_adapter(adapter_of({down, up}, 2), finder(shapes), "model");
  REQUIRE(fitted.modules.size() == 9);
  for (const AdapterModule& one : fitted.modules) {
    CAPTURE(one.name);
    CHECK(one.rank == 2);
    CHECK(one.scale == 2);
    const auto expert = static_cast<int64_t>(one.name[block.size()] - '0');
    const std::string linear = one.name.substr(one.name.rfind('.') + 1);
    const AdapterModule& all = linear == "w2" ? down : up;
    const int64_t first = linear == "w3" ? 4 : 0;
    // PEFT: A[expert * rank + r], B[out][r * experts + expert].
    for (int64_t o = 0; o < one.out; ++o) {
      for (int64_t i = 0; i < one.in; ++i) {
        double expected = 0;
        for (int64_t r = 0; r < 2; ++r) {
          const float a = all.a[static_cast<size_t>((expert * 2 + r) * all.in + i)];
          const float b = all.b[static_cast<size_t>((first + o) * 6 + r * 3 + expert)];
          expected += 2 * static_cast<double>(a) * static_cast<double>(b);
        }
        REQUIRE(delta(one)[static_cast<size_t>(o * one.in + i)] == expected);
      }
    }
  }
  SECTION("a rank that the settings do not give is refused") {
    CHECK_THAT(refusal(adapter_of({down}, 3), shapes), Catch::Contains("rank 2 for each of 3"));
  }
}

TEST_CASE("fit: a linear is found under its other names", "[adapters][fit]") {
  const auto fits = [](const std::string& from, const std::string& to) {
    const Shapes shapes = {{to, {6, 5}}};
    const Adapter fitted =
        fit_adapter(adapter_of({module_of(from, 6, 5, 2, 1)}, 2), finder(shapes), "model");
    return fitted.modules.at(0).name == to;
  };
  CHECK(fits("model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"));
  CHECK(fits("model.language_model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"));
  CHECK(fits("model.layers.1.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj"));
  CHECK(fits("model.layers.1.mlp.experts.3.gate_proj",
             "model.layers.1.block_sparse_moe.experts.3.w1"));
  CHECK(fits("model.layers.1.block_sparse_moe.experts.3.w2",
             "model.layers.1.mlp.experts.3.down_proj"));
  CHECK(fits("model.layers.1.mlp.gate", "model.layers.1.block_sparse_moe.gate"));
}

TEST_CASE("fit: what the model cannot hold is refused by name", "[adapters][fit]") {
  const Shapes shapes = {{kAttention + "qkv_proj", {10, 5}}, {kAttention + "o_proj", {5, 6}}};
  CHECK_THAT(refusal(adapter_of({module_of("model.layers.7.mlp.up_proj", 6, 5, 2, 1)}, 2), shapes),
             Catch::Contains("layers.7.mlp.up_proj"));
  CHECK_THAT(refusal(adapter_of({module_of(kAttention + "o_proj", 5, 7, 2, 1)}, 2), shapes),
             Catch::Contains("[5, 6]") && Catch::Contains("[5, 7]"));
  CHECK_THAT(refusal(adapter_of({module_of(kAttention + "q_proj", 6, 7, 2, 1)}, 2), shapes),
             Catch::Contains("q_proj") && Catch::Contains("[6, 7]"));
  // Taller than all of the joined weight.
  CHECK_THAT(refusal(adapter_of({module_of(kAttention + "q_proj", 20, 5, 2, 1)}, 2), shapes),
             Catch::Contains("[20, 5]"));
  CHECK_THAT(
      refusal(adapter_of({module_of(kAttention + "o_proj", 5, 6, 2, 1),
                          module_of("model.language_model.layers.0.self_attn.o_proj", 5, 6, 2, 1)},
                         2),
              shapes),
      Catch::Contains("two modules for one linear"));
}
