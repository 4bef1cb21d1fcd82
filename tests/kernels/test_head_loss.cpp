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
