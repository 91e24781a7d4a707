// Attention of all positions at once, and its gradients, by blocks of queries and keys that stay in the cache
// ("FlashAttention-2", Dao, 2023, without its running maximum: the scores of a block of queries are kept whole).
// Blocks that a causal mask hides are left out. A thread has an image and head to itself, so that sums do not depend on
// the number of threads.

#pragma once

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"
#include "pointwise.h"
#include "tensors.h"
#include "tiles.h"

namespace {

constexpr int64_t BLOCK = 64;  // queries, and keys, at a time

inline int64_t rounded_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// What all images and heads have in common.
struct Problem {
  int64_t images, heads, queries, keys, width;
  float scale;
  bool is_causal;

  // How many keys a query sees: the first of them.
  int64_t seen_by(int64_t query) const { return is_causal ? std::min(keys, query + 1) : keys; }
};

// (B, H, positions, D), D without gaps.
template <class T>
struct Heads {
  T* first;
  int64_t image, head, position;
  Matrix<T> of(int64_t i, int64_t h) const { return {first + i * image + h * head, position}; }
};

template <class T>
Heads<const T> heads_of(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

// Of a new tensor (B, positions, H, D).
template <class T>
Heads<T> new_heads_of(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(2), x.stride(1)};
}

// Weights of a query, not yet divided by their sum, from scores; zeros from `count` to `padded`.
template <class T>
void weigh(float* scores, int64_t count, int64_t padded, float scale, T* weights, float& highest, float& total) {
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::infinity());
  Floats high = load(scores);
  for (int64_t s = LANES; s < count; s += LANES) {
    const Floats others = load(scores + s);
    high = others > high ? others : high;
  }
  highest = high[0];
  for (int64_t lane = 1; lane < LANES; lane++) highest = std::max(highest, high[lane]);
  Floats sums{};
  int64_t s = 0;
  for (; s < count; s += LANES) {
    const Floats score = load(scores + s), lower = (score - highest) * scale;
    const Floats some = score == -std::numeric_limits<float>::infinity() ? Floats{} : exponential(lower);
    sums += some;
    round_to(weights + s, some);
  }
  for (; s < padded; s += LANES) round_to(weights + s, Floats{});
  total = sum(sums);
}

template <class T>
void attend_to_all(const Problem& p, const Heads<const T>& query, const Heads<const T>& key,
                   const Heads<const T>& value, const Heads<T>& out, float* log_sums) {
  typedef typename Factors<T>::Unit Unit;
  constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t room = rounded_up(p.keys, BLOCK);
#pragma omp parallel
  {
    std::vector<Unit> keys(room * p.width / COUNT), values(room * p.width / COUNT);
    std::vector<float> scores(BLOCK * room), mixed(BLOCK * p.width);
    std::vector<T> weights(BLOCK * room);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t i = 0; i < p.images; i++)
      for (int64_t h = 0; h < p.heads; h++) {
        columns_first<T>(key.of(i, h), p.keys, p.width, keys.data(), room);
        rows_together<T>(value.of(i, h), p.keys, p.width, values.data(), room);
        const Matrix<const T> asked = query.of(i, h);
        const Matrix<T> answers = out.of(i, h);
        for (int64_t first = 0; first < p.queries; first += BLOCK) {
          const int64_t rows = std::min(BLOCK, p.queries - first), padded = rounded_up(p.seen_by(first + rows - 1), BLOCK);
          const auto left = left_of<T>(asked.row(first), asked.stride);
          for (int64_t s = 0; s < padded; s += BLOCK)
            multiply<false, Unit>(left, {keys.data() + s, room}, p.width / COUNT, {scores.data() + s, room}, rows, BLOCK);
          float totals[BLOCK];
          for (int64_t r = 0; r < rows; r++) {
            float highest;
            weigh(scores.data() + r * room, p.seen_by(first + r), padded, p.scale, weights.data() + r * room, highest,
                  totals[r]);
            log_sums[(i * p.heads + h) * p.queries + first + r] = highest * p.scale + std::log(totals[r]);
          }
          multiply<false, Unit>(left_of<T>(weights.data(), room), {values.data(), p.width}, padded / COUNT,
                                {mixed.data(), p.width}, rows, p.width);
          for (int64_t r = 0; r < rows; r++)
            for (int64_t d = 0; d < p.width; d += LANES)
              round_to(answers.row(first + r) + d, load(mixed.data() + r * p.width + d) / totals[r]);
        }
      }
  }
}

// The memory in which a thread computes gradients.
template <class T>
struct Workspace {
  typedef typename Factors<T>::Unit Unit;
  static constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t room;
  std::vector<Unit> keys, values, keys_together, queries, grads, weights, grads_of_scores;
  std::vector<T> rows_of_grads;
  std::vector<float> scores, grads_of_weights, for_queries, for_keys, for_values;

  explicit Workspace(const Problem& p)
      : room(rounded_up(p.keys, BLOCK)),
        keys(room * p.width / COUNT),
        values(room * p.width / COUNT),
        keys_together(room * p.width / COUNT),
        queries(BLOCK * p.width / COUNT),
        grads(BLOCK * p.width / COUNT),
        weights(BLOCK * BLOCK / COUNT),
        grads_of_scores(BLOCK * BLOCK / COUNT),
        rows_of_grads(BLOCK * BLOCK),
        scores(BLOCK * BLOCK),
        grads_of_weights(BLOCK * BLOCK),
        for_queries(BLOCK * p.width),
        for_keys(room * p.width),
        for_values(room * p.width) {}
};

// Queries of an image and head, from the first of a block on.
template <class T>
struct Asked {
  int64_t first, rows;
  Matrix<const T> queries, grads;
  const float* log_sums;  // of each of them
  float along[BLOCK];     // of the gradient and what attention gave: the sum of their products
};

// From scores and gradients of weights in a block: the weights anew, and the gradients of the scores.
template <class T>
void gradients_of_scores(const Problem& p, const Asked<T>& asked, int64_t first_key, Workspace<T>& w) {
  constexpr int64_t COUNT = Factors<T>::COUNT;
  for (int64_t r = 0; r < asked.rows; r += COUNT)
    for (int64_t s = 0; s < BLOCK; s += LANES) {
      Floats weights[COUNT] = {}, grads[COUNT] = {};
      for (int64_t i = 0; i < std::min(COUNT, asked.rows - r); i++) {
        const int64_t row = r + i, seen = p.seen_by(asked.first + row) - first_key - s;
        const Floats logs = load(w.scores.data() + row * BLOCK + s) * p.scale - asked.log_sums[row];
        weights[i] = exponential(logs > 0 ? all(0) : logs);
        for (int64_t lane = std::max<int64_t>(seen, 0); lane < LANES; lane++) weights[i][lane] = 0;
        grads[i] = weights[i] * (load(w.grads_of_weights.data() + row * BLOCK + s) - asked.along[row]) * p.scale;
        round_to(w.rows_of_grads.data() + row * BLOCK + s, grads[i]);
      }
      side_by_side(w.weights.data() + r / COUNT * BLOCK + s, weights);
      side_by_side(w.grads_of_scores.data() + r / COUNT * BLOCK + s, grads);
    }
}

// What a block of queries adds to the gradients.
template <class T>
void gradients_of_block(const Problem& p, const Asked<T>& asked, Workspace<T>& w) {
  typedef typename Factors<T>::Unit Unit;
  constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t even = rounded_up(asked.rows, COUNT), steps = p.width / COUNT;
  rows_together<T>(asked.queries, asked.rows, p.width, w.queries.data(), even);
  rows_together<T>(asked.grads, asked.rows, p.width, w.grads.data(), even);
  std::fill(w.for_queries.begin(), w.for_queries.end(), 0.0f);
  for (int64_t s = 0; s < p.seen_by(asked.first + asked.rows - 1); s += BLOCK) {
    multiply<false, Unit>(left_of<T>(asked.queries.first, asked.queries.stride), {w.keys.data() + s, w.room}, steps, {w.scores.data(), BLOCK},
                          asked.rows, BLOCK);
    multiply<false, Unit>(left_of<T>(asked.grads.first, asked.grads.stride), {w.values.data() + s, w.room}, steps,
                          {w.grads_of_weights.data(), BLOCK}, asked.rows, BLOCK);
    gradients_of_scores(p, asked, s, w);
    multiply<true, Unit>({w.weights.data(), 1, BLOCK}, {w.grads.data(), p.width}, even / COUNT,
                         {w.for_values.data() + s * p.width, p.width}, BLOCK, p.width);
    multiply<true, Unit>({w.grads_of_scores.data(), 1, BLOCK}, {w.queries.data(), p.width}, even / COUNT,
                         {w.for_keys.data() + s * p.width, p.width}, BLOCK, p.width);
    multiply<true, Unit>(left_of<T>(w.rows_of_grads.data(), BLOCK),
                         {w.keys_together.data() + s / COUNT * p.width, p.width}, BLOCK / COUNT,
                         {w.for_queries.data(), p.width}, asked.rows, p.width);
  }
}

template <class T>
void give(const std::vector<float>& from, const Matrix<T>& to, int64_t first, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d += LANES) round_to(to.row(first + r) + d, load(from.data() + r * width + d));
}

template <class T>
struct Gradients {
  Heads<T> queries, keys, values;
};

template <class T>
void attend_backwards(const Problem& p, const Heads<const T>& query, const Heads<const T>& key,
                      const Heads<const T>& value, const Heads<const T>& out, const Heads<const T>& grad,
                      const float* log_sums, const Gradients<T>& to) {
#pragma omp parallel
  {
    Workspace<T> w(p);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t i = 0; i < p.images; i++)
      for (int64_t h = 0; h < p.heads; h++) {
        columns_first<T>(key.of(i, h), p.keys, p.width, w.keys.data(), w.room);
        columns_first<T>(value.of(i, h), p.keys, p.width, w.values.data(), w.room);
        rows_together<T>(key.of(i, h), p.keys, p.width, w.keys_together.data(), w.room);
        std::fill(w.for_keys.begin(), w.for_keys.end(), 0.0f);
        std::fill(w.for_values.begin(), w.for_values.end(), 0.0f);
        const Matrix<const T> queries = query.of(i, h), grads = grad.of(i, h), answers = out.of(i, h);
        for (int64_t first = 0; first < p.queries; first += BLOCK) {
          Asked<T> asked{first,
                         std::min(BLOCK, p.queries - first),
                         {queries.row(first), queries.stride},
                         {grads.row(first), grads.stride},
                         log_sums + (i * p.heads + h) * p.queries + first,
                         {}};
          for (int64_t r = 0; r < asked.rows; r++) {
            Floats products{};
            for (int64_t d = 0; d < p.width; d += LANES)
              products += load(asked.grads.row(r) + d) * load(answers.row(first + r) + d);
            asked.along[r] = sum(products);
          }
          gradients_of_block(p, asked, w);
          give(w.for_queries, to.queries.of(i, h), first, asked.rows, p.width);
        }
        give(w.for_keys, to.keys.of(i, h), 0, p.keys, p.width);
        give(w.for_values, to.values.of(i, h), 0, p.keys, p.width);
      }
  }
}

Problem problem_of(const Tensor& query, const Tensor& key, double scale, bool is_causal) {
  return {query.size(0), query.size(1), query.size(2), key.size(2), query.size(3), static_cast<float>(scale), is_causal};
}

// Query (B, H, N, D), key and value (B, H, S, D), the last axis without gaps, D a multiple of 16. Gives (B, N, H, D), and
// of each query the logarithm of the sum by which its weights were divided, (B, H, N) in float32.
std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                                     bool is_causal) {
  check_attention(query, key, value, is_causal);
  const Problem p = problem_of(query, key, scale, is_causal);
  Tensor out = torch::stable::new_empty(query, {p.images, p.queries, p.heads, p.width});
  Tensor log_sums = torch::stable::new_empty(query, {p.images, p.heads, p.queries}, ScalarType::Float);
  with_type(query, [&](auto number) {
    typedef decltype(number) T;
    attend_to_all<T>(p, heads_of<T>(query), heads_of<T>(key), heads_of<T>(value), new_heads_of<T>(out),
                     static_cast<float*>(log_sums.mutable_data_ptr()));
  });
  return {out, log_sums};
}

// The gradient (B, H, N, D) of what `attention` gave, and that, likewise. Gives gradients (B, N, H, D), (B, S, H, D) twice.
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Tensor& out, const Tensor& log_sums,
                                                      double scale, bool is_causal) {
  check_attention(query, key, value, is_causal);
  const Problem p = problem_of(query, key, scale, is_causal);
  check_heads(grad, "grad", query.scalar_type(), {p.images, p.heads, p.queries, p.width});
  check_heads(out, "out", query.scalar_type(), {p.images, p.heads, p.queries, p.width});
  check_type(log_sums, "log_sums", {ScalarType::Float});
  check_shape(log_sums, "log_sums", {p.images, p.heads, p.queries});
  check_contiguous(log_sums, "log_sums");
  Tensor for_queries = torch::stable::new_empty(query, {p.images, p.queries, p.heads, p.width});
  Tensor for_keys = torch::stable::new_empty(query, {p.images, p.keys, p.heads, p.width});
  Tensor for_values = torch::stable::new_empty(query, {p.images, p.keys, p.heads, p.width});
  with_type(query, [&](auto number) {
    typedef decltype(number) T;
    const Gradients<T> to{new_heads_of<T>(for_queries), new_heads_of<T>(for_keys), new_heads_of<T>(for_values)};
    attend_backwards<T>(p, heads_of<T>(query), heads_of<T>(key), heads_of<T>(value), heads_of<T>(out),
                        heads_of<T>(grad), floats(log_sums), to);
  });
  return {for_queries, for_keys, for_values};
}

}  // namespace
