#include <cstddef>
#include <memory>

#include "kernels/cross_entropy.h"
#include "kernels/gemm.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Problem {
  int64_t tokens, dim, vocab;
  std::vector<float> x, w, weight;
  std::vector<int32_t> labels;
  graft_head head{};

  Problem(int64_t tokens_, int64_t dim_, int64_t vocab_)
      : tokens(tokens_),
        dim(dim_),
        vocab(vocab_),
        x(random_floats(tokens * dim, 1)),
        w(random_floats(vocab * dim, 2, 0.3f)),
        weight(at(tokens)),
        labels(at(tokens)) {
    for (size_t t = 0; t < labels.size(); ++t) {
      labels[t] = t % 3 == 1 ? GRAFT_IGNORED : static_cast<int32_t>(t * 31 % at(vocab));
      weight[t] = 0.5f + static_cast<float>(t % 4);
    }
    head = {x.data(), w.data(), labels.data(), weight.data(), tokens, dim, vocab, 0.01f, 5};
  }
  Problem(const Problem&) = delete;
};

struct Outcome {
  std::vector<float> row_loss, dx;
  graft_head_result result;
};

Outcome run(const Problem& problem, int64_t chunk_rows) {
  graft_head head = problem.head;
  head.chunk_rows = chunk_rows;
  const size_t bytes = graft_head_workspace_bytes(problem.dim, problem.vocab, chunk_rows);
  Guarded<unsigned char> workspace(bytes, 0);
  Guarded<float> row_loss(at(problem.tokens)), dx(problem.x.size(), 3);
  Outcome outcome;
  REQUIRE(graft_head_loss(&head, row_loss.data(), dx.data(), &outcome.result, workspace.data(),
                          bytes) == GRAFT_OK);
  REQUIRE((workspace.intact() && row_loss.intact() && dx.intact()));
  outcome.row_loss = row_loss.values();
  outcome.dx = dx.values();
  return outcome;
}

}  // namespace

TEST_CASE("head loss: every chunk size gives the same bits", "[kernels][cross_entropy]") {
  const Problem problem(53, 40, 700);
  const Outcome whole = run(problem, 53);
  const int64_t chunk_rows = GENERATE(1, 2, 7, 12, 35, 36, 1000);
  same_everywhere([&] {
    const Outcome outcome = run(problem, chunk_rows);
    REQUIRE(same_bits(outcome.row_loss, whole.row_loss));
    REQUIRE(same_bits(outcome.dx, whole.dx));
    REQUIRE(outcome.result.loss_sum == whole.result.loss_sum);
    REQUIRE(outcome.result.correct == whole.result.correct);
    REQUIRE(outcome.result.trained == 35);  // 53 less the 18 that are 1 of 3
    return outcome.dx;
  });
}

TEST_CASE("head loss: equals logits, cross entropy and the product with the head, row by row",
          "[kernels][cross_entropy]") {
  const Problem problem(29, 33, 130);
  const Outcome outcome = run(problem, 4);
  const oracle::GemmShape forward{false, true, problem.tokens, problem.vocab, problem.dim};
  const auto logits = oracle::gemm(forward, 1, widen(problem.x), widen(problem.w), 0,
                                   oracle::Array(at(problem.tokens * problem.vocab)));
  std::vector<int32_t> labels = problem.labels;
  std::vector<double> weight = widen(problem.weight);
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] != GRAFT_IGNORED) continue;
    labels[t] = 0;
    weight[t] = 0.0;
  }
  const auto expected = oracle::cross_entropy(logits, labels, weight, 0.01, problem.vocab);
  const oracle::GemmShape backward{false, false, problem.tokens, problem.dim, problem.vocab};
  const auto dx = oracle::gemm(backward, 1, expected.gradient, widen(problem.w), 0,
                               oracle::Array(problem.x.size()));
  double loss_sum = 0.0, weight_sum = 0.0;
  // Logits of 33 products of size about 1 err by 1e-5 of a unit; the exponential carries that to
  // the loss and the gradient relatively.
  std::vector<double> bound(dx.size(), 1e-6);
  CHECK(outside(outcome.dx, dx, bound) == "");
  for (size_t t = 0; t < labels.size(); ++t) {
    loss_sum += weight[t] * expected.row_loss[t];
    weight_sum += weight[t];
    if (problem.labels[t] == GRAFT_IGNORED) {
      CHECK(outcome.row_loss[t] == 0.0f);
    } else {
      CHECK(static_cast<double>(outcome.row_loss[t]) == Approx(expected.row_loss[t]).epsilon(1e-5));
    }
  }
  CHECK(outcome.result.loss_sum == Approx(loss_sum).epsilon(1e-6));
  CHECK(outcome.result.weight_sum == weight_sum);
}

TEST_CASE("head loss: the first largest logit is the prediction", "[kernels][cross_entropy]") {
  // The head is the identity, so that a token's logits are its own values.
  const std::vector<float> w = {1, 0, 0, 1}, x = {2, 1, 1, 2, 3, 3};
  const std::vector<int32_t> labels = {0, 0, 0};
  graft_head head{x.data(), w.data(), labels.data(), nullptr, 3, 2, 2, 1.0f, 2};
  const size_t bytes = graft_head_workspace_bytes(2, 2, 2);
  Guarded<unsigned char> workspace(bytes, 0);
  graft_head_result result;
  REQUIRE(graft_head_loss(&head, nullptr, nullptr, &result, workspace.data(), bytes) == GRAFT_OK);
  CHECK(result.correct == 2);  // the third is a tie, which goes to the first
  CHECK(result.trained == 3);
  // -log softmax: log(1 + e^-1), log(1 + e), log 2.
  CHECK(result.loss_sum == Approx(0.3132617 + 1.3132617 + 0.6931472).epsilon(1e-6));
}

TEST_CASE("head loss: all tokens ignored gives zero loss and zero gradient",
          "[kernels][cross_entropy]") {
  Problem problem(6, 8, 10);
  std::fill(problem.labels.begin(), problem.labels.end(), GRAFT_IGNORED);
  const Outcome outcome = run(problem, 4);
  CHECK(outcome.result.loss_sum == 0.0);
  CHECK(outcome.result.trained == 0);
  CHECK(outcome.dx == std::vector<float>(48, 0.0f));
}

TEST_CASE("head loss: wrong arguments are refused before anything is written",
          "[kernels][cross_entropy]") {
  Problem problem(4, 8, 10);
  const size_t bytes = graft_head_workspace_bytes(8, 10, 5);
  Guarded<unsigned char> workspace(bytes, 0);
  graft_head_result result;
  std::vector<float> dx(32, 5.0f);
  const auto attempt = [&](size_t room) {
    return graft_head_loss(&problem.head, nullptr, dx.data(), &result, workspace.data(), room);
  };
  CHECK(attempt(bytes - 1) == GRAFT_BAD_SHAPE);
  problem.labels[3] = GENERATE(10, -1);
  CHECK(attempt(bytes) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("labels[3]") != std::string::npos);
  CHECK(dx == std::vector<float>(32, 5.0f));
  CHECK(graft_head_workspace_bytes(0, 10, 5) == 0);
}

TEST_CASE("head loss: named rows give the bits of the loss over all tokens",
          "[kernels][cross_entropy]") {
  const Problem problem(53, 40, 700);
  const Outcome all_tokens = run(problem, 7);
  std::vector<int32_t> rows, labels;
  std::vector<float> weight;
  for (int32_t token = 0; token < 53; ++token) {
    if (problem.labels[at(token)] == GRAFT_IGNORED) continue;
    rows.push_back(token);
    labels.push_back(problem.labels[at(token)]);
    weight.push_back(problem.weight[at(token)]);
  }
  graft_head_rows head{};
  head.x = problem.x.data();
  head.w = problem.w.data();
  head.rows = rows.data();
  head.labels = labels.data();
  head.weight = weight.data();
  head.count = static_cast<int64_t>(rows.size());
  head.tokens = 53;
  head.dim = 40;
  head.vocab = 700;
  head.scale = 0.01f;
  head.chunk_rows = GENERATE(1, 8, 100);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const size_t bytes = graft_head_rows_workspace_bytes(&head);
  Guarded<unsigned char> workspace(bytes, 0);
  Guarded<float> row_loss(rows.size()), dx(problem.x.size());
  Guarded<uint8_t> correct(rows.size());
  double sums[3] = {1.0, 2.0, 3.0};
  REQUIRE(graft_head_rows_loss(&head, row_loss.data(), correct.data(), dx.data(), sums,
                               workspace.data(), bytes, device) == GRAFT_OK);
  CHECK((workspace.intact() && row_loss.intact() && dx.intact() && correct.intact()));
  for (size_t i = 0; i < rows.size(); ++i) {
    CHECK(row_loss[i] == all_tokens.row_loss[at(rows[i])]);
    for (int64_t j = 0; j < 40; ++j) {
      REQUIRE(dx[at(rows[i] * 40 + j)] == all_tokens.dx[at(rows[i] * 40 + j)]);
    }
  }
  // Added to what was there, 35 sums of a few units in another order.
  CHECK(sums[0] == Approx(1.0 + all_tokens.result.loss_sum).epsilon(1e-12));
  CHECK(sums[1] == 2.0 + all_tokens.result.weight_sum);
  CHECK(sums[2] == 3.0 + static_cast<double>(all_tokens.result.correct));
}

TEST_CASE("head loss: named rows are checked before anything is written",
          "[kernels][cross_entropy]") {
  const std::vector<float> x(4 * 8), w(10 * 8);
  std::vector<int32_t> rows = {0, 3}, labels = {1, 9};
  graft_head_rows head{};
  head.x = x.data();
  head.w = w.data();
  head.rows = rows.data();
  head.labels = labels.data();
  head.count = 2;
  head.tokens = 4;
  head.dim = 8;
  head.vocab = 10;
  head.chunk_rows = 2;
  const size_t bytes = graft_head_rows_workspace_bytes(&head);
  Guarded<unsigned char> workspace(bytes, 0);
  std::vector<float> loss(2, 5.0f);
  std::vector<uint8_t> correct(2);
  const auto attempt = [&](size_t room) {
    return graft_head_rows_loss(&head, loss.data(), correct.data(), nullptr, nullptr,
                                workspace.data(), room);
  };
  CHECK(attempt(bytes - 1) == GRAFT_BAD_SHAPE);
  rows[1] = 4;
  CHECK(attempt(bytes) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("rows[1] is 4, expected 0..3") != std::string::npos);
  rows[1] = 3;
  labels[0] = -100;
  CHECK(attempt(bytes) == GRAFT_BAD_ARGUMENT);
  CHECK(loss == std::vector<float>(2, 5.0f));
  head.logits_type = GRAFT_BF16;
  CHECK(graft_head_rows_workspace_bytes(&head) == 0);
}
