// AdamW over several tensors, with float32 and with 8-bit state.
#include <algorithm>
#include <iostream>

#include "core/json.h"
#include "kernels/optimizer.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/nf4_golden.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// A tensor with its state; every array between guard bytes.
struct Tensor8 {
  Guarded<float> param;
  Guarded<uint8_t> m, v;
  Guarded<float> m_absmax, v_absmax;

  explicit Tensor8(const std::vector<float>& values)
      : param(values),
        m(std::vector<uint8_t>(values.size(), 127)),
        v(std::vector<uint8_t>(values.size(), 0)),
        m_absmax(std::vector<float>((values.size() + 255) / 256)),
        v_absmax(std::vector<float>((values.size() + 255) / 256)) {}
  graft_adamw_tensor view(const std::vector<float>& grad) {
    return {param.data(), grad.data(),     static_cast<int64_t>(grad.size()),
            nullptr,      nullptr,         m.data(),
            v.data(),     m_absmax.data(), v_absmax.data()};
  }
  bool intact() const {
    return param.intact() && m.intact() && v.intact() && m_absmax.intact() && v_absmax.intact();
  }
};

constexpr graft_adamw kOptions{1e-3f, 0.9f, 0.999f, 1e-8f, 0.01f, 1, 1.0f};

// kernels.md's synthetic run: gradients N(0, 1) of a size exp(sigma N(0, 1)) for each parameter, 50
// steps; the error of the whole update against float32 state, relative to that update.
double update_error(graft_map8 map, float sigma) {
  constexpr int64_t kCount = 65536;
  const std::vector<float> start(kCount, 0.0f), sizes = random_floats(kCount, 100, sigma);
  Tensor8 eight(start);
  std::vector<float> param = start, m(kCount), v(kCount);
  graft_adamw options = kOptions;
  options.weight_decay = 0.0f;
  for (options.step = 1; options.step <= 50; ++options.step) {
    std::vector<float> grad = random_floats(kCount, static_cast<uint32_t>(options.step));
    for (size_t i = 0; i < grad.size(); ++i) grad[i] *= std::exp(sizes[i]);
    const graft_adamw_tensor tensor = eight.view(grad);
    REQUIRE(graft_adamw_step_all(&tensor, 1, &options, map) == GRAFT_OK);
    REQUIRE(graft_adamw_step(param.data(), grad.data(), m.data(), v.data(), kCount, &options) ==
            GRAFT_OK);
  }
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < param.size(); ++i) {
    const double exact = static_cast<double>(param[i]);
    const double difference = static_cast<double>(eight.param[i]) - exact;
    error += difference * difference;
    size += exact * exact;
  }
  return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("adamw8: the update's error against float32 state is within its bound",
          "[kernels][adamw8]") {
  struct Row {
    graft_map8 map;
    float sigma;
    double bound;
  };
  const Row row =
      GENERATE(Row{GRAFT_MAP_LOG2, 0.0f, 0.06}, Row{GRAFT_MAP_LOG2, 1.0f, 0.06},
               Row{GRAFT_MAP_LOG2, 2.0f, 0.15}, Row{GRAFT_MAP_DYNAMIC_UNSIGNED, 1.0f, 0.12},
               Row{GRAFT_MAP_DYNAMIC_UNSIGNED, 2.0f, 0.42});
  const double error = update_error(row.map, row.sigma);
  std::cout << "8-bit AdamW, " << (row.map == GRAFT_MAP_LOG2 ? "log2" : "compatible")
            << " map, sigma " << row.sigma << ": update error " << error << " of at most "
            << row.bound << "\n";
  CHECK(error <= row.bound);
}

TEST_CASE("adamw8: the reference trajectory of three steps", "[kernels][adamw8]") {
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) return;
  const graft::Json golden = graft::read_json_file(shared + "/data/nf4_golden.json");
  const graft::Json& c = golden.at("adamw8bit_ref_3steps");
  const int64_t count = c.at("n").as_int();
  // The reference has 512 parameters, fewer than graft_adamw_step_all takes with 8-bit state:
  // zeros fill the tensor up to 4,096 and, being other blocks, change nothing.
  const auto padded = [&](const graft::Json& seed) {
    std::vector<float> values = shared_input(static_cast<uint32_t>(seed.as_int()), count, false);
    values.resize(GRAFT_ADAMW8_LEAST);
    return values;
  };
  Tensor8 tensor(padded(c.at("p_seed")));
  graft_adamw options = kOptions;
  options.lr = static_cast<float>(c.at("lr").as_double());
  options.weight_decay = static_cast<float>(c.at("wd").as_double());
  for (options.step = 1; options.step <= 3; ++options.step) {
    const std::vector<float> grad = padded(c.at("grad_seeds").as_array()[at(options.step - 1)]);
    const graft_adamw_tensor view = tensor.view(grad);
    REQUIRE(graft_adamw_step_all(&view, 1, &options, GRAFT_MAP_DYNAMIC_UNSIGNED) == GRAFT_OK);
  }
  // The file's own tolerance: parameters 1e-6, and codes one off on at most 1 % of the entries.
  const std::vector<float> first = floats_of_hex(c.at("p_f32_first16").as_string());
  for (size_t i = 0; i < first.size(); ++i) CHECK(std::fabs(tensor.param[i] - first[i]) <= 1e-6f);
  double sum = 0.0;
  for (size_t i = 0; i < at(count); ++i) sum += static_cast<double>(tensor.param[i]);
  CHECK(sum == Approx(c.at("p_sum_f64").as_double()).margin(512 * 1e-6));
  const auto different = [&](Guarded<uint8_t>& codes, const std::string& hex) {
    const std::vector<uint8_t> expected = bytes_of_hex(hex);
    int64_t found = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(std::abs(codes[i] - expected[i]) <= 1);
      found += codes[i] != expected[i];
    }
    return found;
  };
  CHECK(different(tensor.m, c.at("state1_hex").as_string()) <= count / 100);
  CHECK(different(tensor.v, c.at("state2_hex").as_string()) <= count / 100);
  // The reference's betas are doubles: 0.999 as a float is up to 2^-25 off, 3e-5 of 1 - beta2.
  const auto absmax = [&](const char* key) { return floats_of_hex(c.at(key).as_string()); };
  for (size_t i = 0; i < 2; ++i) {
    CHECK(tensor.m_absmax[i] == Approx(absmax("absmax1")[i]).epsilon(1e-6));
    CHECK(tensor.v_absmax[i] == Approx(absmax("absmax2")[i]).epsilon(3e-5));
  }
}

TEST_CASE("adamw8: a step is the float32 step on the decoded state, then the nearest codes",
          "[kernels][adamw8]") {
  const int64_t count = GENERATE(4096, 4097, 20000 + 13);
  const graft_map8 map = GENERATE(GRAFT_MAP_LOG2, GRAFT_MAP_DYNAMIC_UNSIGNED);
  const std::vector<float> start = random_floats(count, 1), grad1 = random_floats(count, 2, 1e-3f),
                           grad2 = random_floats(count, 3, 1e-3f);
  std::vector<uint8_t> m8, v8;
  std::vector<float> param, m_absmax, v_absmax;
  same_everywhere([&] {
    Tensor8 tensor(start);
    graft_adamw options = kOptions;
    graft_adamw_tensor view = tensor.view(grad1);
    REQUIRE(graft_adamw_step_all(&view, 1, &options, map) == GRAFT_OK);
    // The state after one step, decoded, gives the second step's expectation.
    std::vector<float> m(at(count)), v(at(count)), p = tensor.param.values();
    REQUIRE(graft_quant8_decode(GRAFT_MAP_DYNAMIC_SIGNED, tensor.m.data(), tensor.m_absmax.data(),
                                count, 256, m.data()) == GRAFT_OK);
    REQUIRE(graft_quant8_decode(map, tensor.v.data(), tensor.v_absmax.data(), count, 256,
                                v.data()) == GRAFT_OK);
    options.step = 2;
    view = tensor.view(grad2);
    REQUIRE(graft_adamw_step_all(&view, 1, &options, map) == GRAFT_OK);
    REQUIRE(graft_adamw_step(p.data(), grad2.data(), m.data(), v.data(), count, &options) ==
            GRAFT_OK);
    const auto expected_m =
        oracle::quant8_quantize(m, graft_map8_values(GRAFT_MAP_DYNAMIC_SIGNED), 256);
    auto expected_v = oracle::quant8_quantize(v, graft_map8_values(map), 256);
    for (size_t i = 0; i < v.size(); ++i) {
      if (expected_v.codes[i] == 0 && v[i] > 0.0f) expected_v.codes[i] = 1;
    }
    REQUIRE(tensor.intact());
    CHECK(tensor.m.values() == expected_m.codes);
    CHECK(tensor.v.values() == expected_v.codes);
    CHECK(same_bits(tensor.m_absmax.values(), expected_m.absmax));
    CHECK(same_bits(tensor.v_absmax.values(), expected_v.absmax));
    // The divisor is rounded once less: two units of the update, and the parameter's own.
    for (size_t i = 0; i < p.size(); ++i) {
      const double bound = kUnit * (2.0 * std::fabs(static_cast<double>(p[i])) + 8.0 * 1e-2);
      REQUIRE(std::fabs(static_cast<double>(tensor.param[i] - p[i])) <= bound);
    }
    return tensor.param.values();
  });
}

TEST_CASE("adamw: all tensors in one call equal one call each", "[kernels][adamw]") {
  const std::vector<int64_t> counts = {1, 17, 4096, 0, 40000, 16384, 3};
  std::vector<std::vector<float>> start, grad;
  for (size_t t = 0; t < counts.size(); ++t) {
    start.push_back(random_floats(counts[t], static_cast<uint32_t>(t) + 1));
    grad.push_back(random_floats(counts[t], static_cast<uint32_t>(t) + 50));
  }
  std::vector<float> expected;
  for (size_t t = 0; t < counts.size(); ++t) {
    std::vector<float> p = start[t], m(p.size()), v(p.size());
    REQUIRE(graft_adamw_step(p.data(), grad[t].data(), m.data(), v.data(), counts[t], &kOptions) ==
            GRAFT_OK);
    for (const auto* part : {&p, &m, &v}) {
      expected.insert(expected.end(), part->begin(), part->end());
    }
  }
  const std::vector<float> got = same_everywhere([&] {
    std::vector<std::vector<float>> p = start, m, v;
    for (const auto& values : start) {
      m.emplace_back(values.size());
      v.emplace_back(values.size());
    }
    std::vector<graft_adamw_tensor> tensors;
    for (size_t t = 0; t < counts.size(); ++t) {
      graft_adamw_tensor tensor{};
      tensor.param = p[t].data();
      tensor.grad = grad[t].data();
      tensor.count = counts[t];
      tensor.m = m[t].data();
      tensor.v = v[t].data();
      tensors.push_back(tensor);
    }
    REQUIRE(graft_adamw_step_all(tensors.data(), static_cast<int64_t>(tensors.size()), &kOptions,
                                 GRAFT_MAP_LOG2) == GRAFT_OK);
    std::vector<float> all;
    for (size_t t = 0; t < counts.size(); ++t) {
      for (const auto* part : {&p[t], &m[t], &v[t]}) {
        all.insert(all.end(), part->begin(), part->end());
      }
    }
    return all;
  });
  CHECK(same_bits(got, expected));
}

TEST_CASE("adamw8: converting second moments takes the nearest value and never zero",
          "[kernels][adamw8]") {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const graft_map8 from = GENERATE(GRAFT_MAP_LOG2, GRAFT_MAP_DYNAMIC_UNSIGNED);
  const graft_map8 to = from == GRAFT_MAP_LOG2 ? GRAFT_MAP_DYNAMIC_UNSIGNED : GRAFT_MAP_LOG2;
  REQUIRE(graft_adamw8_convert(from, to, 256, codes.data()) == GRAFT_OK);
  const float* const source = graft_map8_values(from);
  const float* const target = graft_map8_values(to);
  CHECK(codes[0] == 0);
  for (size_t i = 1; i < 256; ++i) {
    size_t nearest = 1;
    for (size_t j = 1; j < 255; ++j) {
      if (std::fabs(target[j] - source[i]) < std::fabs(target[nearest] - source[i])) nearest = j;
    }
    if (std::fabs(target[255] - source[i]) < std::fabs(target[nearest] - source[i])) nearest = 255;
    INFO(i);
    CHECK(static_cast<size_t>(codes[i]) == nearest);
  }
  CHECK(graft_adamw8_convert(GRAFT_MAP_DYNAMIC_SIGNED, to, 1, codes.data()) == GRAFT_BAD_ARGUMENT);
}

TEST_CASE("adamw8: tensors that no step takes are refused", "[kernels][adamw8]") {
  const std::vector<float> values(4095, 1.0f);
  Tensor8 small(values);
  graft_adamw_tensor tensor = small.view(values);
  const auto step = [&] { return graft_adamw_step_all(&tensor, 1, &kOptions, GRAFT_MAP_LOG2); };
  CHECK(step() == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("expected at least 4096") != std::string::npos);
  tensor.m8 = nullptr;
  CHECK(step() == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("neither of m and m8") != std::string::npos);
  CHECK(graft_adamw_step_all(&tensor, 1, &kOptions, GRAFT_MAP_DYNAMIC_SIGNED) ==
        GRAFT_BAD_ARGUMENT);
}
