// Attention of all positions at once, and its gradients, by blocks of queries and keys that stay in the cache
// ("FlashAttention-2", Dao, 2023, without its running maximum: the scores of a block of queries are kept whole).
// Blocks that a causal mask hides are left out. A thread has an image and head to itself, so that sums do not depend on
// the number of threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t BLOCK = 64;  // queries, and keys, at a time

inline int64_t rounded_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// A tensor (B, H, positions, D): its first number, and the strides of all axes but D, whose numbers lie side by side.
struct Heads {
  void* first;
  int64_t image, head, position;

  template <class T>
  Matrix<T> of(int64_t i, int64_t h) const {
    return {static_cast<T*>(first) + i * image + h * head, position};
  }
};

// D is a multiple of 16, and numbers in bfloat16 are aligned in pairs.
struct Attention {
  int64_t images, heads, queries, keys, width, num_threads;
  float scale;
  bool is_causal, is_bfloat16;
  Heads query, key, value, out;
  float* log_sums;  // (B, H, queries): of each query the logarithm of the sum that divides its weights
  Heads grad, for_query, for_key, for_value;  // null in the forward pass

  // How many keys a query sees: the first of them.
  int64_t seen_by(int64_t query) const { return is_causal ? std::min(keys, query + 1) : keys; }
};

// Calls compute(workspace, image, head) for each head; every thread has a workspace. They are allocated here, since no
// exception may leave a parallel region.
template <class Workspace, class Compute>
void for_each_head(const Attention& a, Compute compute) {
  const int64_t num_heads = a.images * a.heads, num_threads = std::min(a.num_threads, num_heads);
  std::vector<Workspace> workspaces;
  for (int64_t thread = 0; thread < num_threads; thread++) workspaces.emplace_back(a);
  std::atomic<int64_t> next{0};
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(num_threads)) if (num_threads > 1)
  for (int64_t thread = 0; thread < num_threads; thread++)
    for (int64_t i; (i = next++) < num_heads;) compute(workspaces[thread], i / a.heads, i % a.heads);
}

template <class T>
using Memory = std::unique_ptr<T[]>;  // `new T[count]` leaves it as it is: its thread is the first to touch it

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
struct ForwardWorkspace {
  typedef typename Factors<T>::Unit Unit;
  static constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t room;
  Memory<Unit> keys, values;
  Memory<float> scores, mixed;
  Memory<T> weights;

  explicit ForwardWorkspace(const Attention& a)
      : room(rounded_up(a.keys, BLOCK)),
        keys(new Unit[room * a.width / COUNT]),
        values(new Unit[room * a.width / COUNT]),
        scores(new float[BLOCK * room]),
        mixed(new float[BLOCK * a.width]),
        weights(new T[BLOCK * room]) {}
};

// What the queries of a block get, from the first one on.
template <class T>
void attend_block(const Attention& a, const Matrix<const T>& query, int64_t first, int64_t rows, const Matrix<T>& out,
                  float* log_sums, ForwardWorkspace<T>& w) {
  typedef typename Factors<T>::Unit Unit;
  constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t padded = rounded_up(a.seen_by(first + rows - 1), BLOCK);
  for (int64_t s = 0; s < padded; s += BLOCK)
    multiply<false, Unit>(left_of(query.row(first), query.stride), {w.keys.get() + s, w.room}, a.width / COUNT,
                          {w.scores.get() + s, w.room}, rows, BLOCK);
  float totals[BLOCK];
  for (int64_t r = 0; r < rows; r++) {
    float highest;
    weigh(w.scores.get() + r * w.room, a.seen_by(first + r), padded, a.scale, w.weights.get() + r * w.room, highest,
          totals[r]);
    log_sums[first + r] = highest * a.scale + std::log(totals[r]);
  }
  multiply<false, Unit>(left_of<T>(w.weights.get(), w.room), {w.values.get(), a.width}, padded / COUNT,
                        {w.mixed.get(), a.width}, rows, a.width);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < a.width; d += LANES)
      round_to(out.row(first + r) + d, load(w.mixed.get() + r * a.width + d) / totals[r]);
}

template <class T>
void attend(const Attention& a) {
  for_each_head<ForwardWorkspace<T>>(a, [&](ForwardWorkspace<T>& w, int64_t i, int64_t h) {
    columns_first<T>(a.key.of<const T>(i, h), a.keys, a.width, w.keys.get(), w.room);
    rows_together<T>(a.value.of<const T>(i, h), a.keys, a.width, w.values.get(), w.room);
    for (int64_t first = 0; first < a.queries; first += BLOCK)
      attend_block(a, a.query.of<const T>(i, h), first, std::min(BLOCK, a.queries - first), a.out.of<T>(i, h),
                   a.log_sums + (i * a.heads + h) * a.queries, w);
  });
}

template <class T>
struct BackwardWorkspace {
  typedef typename Factors<T>::Unit Unit;
  static constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t room;
  Memory<Unit> keys, values, keys_together, queries, grads, weights, grads_of_scores;
  Memory<T> rows_of_grads;
  Memory<float> scores, grads_of_weights, for_queries, for_keys, for_values;

  explicit BackwardWorkspace(const Attention& a)
      : room(rounded_up(a.keys, BLOCK)),
        keys(new Unit[room * a.width / COUNT]),
        values(new Unit[room * a.width / COUNT]),
        keys_together(new Unit[room * a.width / COUNT]),
        queries(new Unit[BLOCK * a.width / COUNT]),
        grads(new Unit[BLOCK * a.width / COUNT]),
        weights(new Unit[BLOCK * BLOCK / COUNT]),
        grads_of_scores(new Unit[BLOCK * BLOCK / COUNT]),
        rows_of_grads(new T[BLOCK * BLOCK]),
        scores(new float[BLOCK * BLOCK]),
        grads_of_weights(new float[BLOCK * BLOCK]),
        for_queries(new float[BLOCK * a.width]),
        for_keys(new float[room * a.width]),
        for_values(new float[room * a.width]) {}
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
void gradients_of_scores(const Attention& a, const Asked<T>& asked, int64_t first_key, BackwardWorkspace<T>& w) {
  constexpr int64_t COUNT = Factors<T>::COUNT;
  for (int64_t r = 0; r < asked.rows; r += COUNT)
    for (int64_t s = 0; s < BLOCK; s += LANES) {
      Floats weights[COUNT] = {}, grads[COUNT] = {};
      for (int64_t i = 0; i < std::min(COUNT, asked.rows - r); i++) {
        const int64_t row = r + i, seen = a.seen_by(asked.first + row) - first_key - s;
        const Floats logs = load(w.scores.get() + row * BLOCK + s) * a.scale - asked.log_sums[row];
        weights[i] = exponential(logs > 0 ? all(0) : logs);
        for (int64_t lane = std::max<int64_t>(seen, 0); lane < LANES; lane++) weights[i][lane] = 0;
        grads[i] = weights[i] * (load(w.grads_of_weights.get() + row * BLOCK + s) - asked.along[row]) * a.scale;
        round_to(w.rows_of_grads.get() + row * BLOCK + s, grads[i]);
      }
      side_by_side(w.weights.get() + r / COUNT * BLOCK + s, weights);
      side_by_side(w.grads_of_scores.get() + r / COUNT * BLOCK + s, grads);
    }
}

// What a block of queries adds to the gradients.
template <class T>
void gradients_of_block(const Attention& a, const Asked<T>& asked, BackwardWorkspace<T>& w) {
  typedef typename Factors<T>::Unit Unit;
  constexpr int64_t COUNT = Factors<T>::COUNT;
  const int64_t even = rounded_up(asked.rows, COUNT), steps = a.width / COUNT;
  rows_together<T>(asked.queries, asked.rows, a.width, w.queries.get(), even);
  rows_together<T>(asked.grads, asked.rows, a.width, w.grads.get(), even);
  std::fill_n(w.for_queries.get(), BLOCK * a.width, 0.0f);
  for (int64_t s = 0; s < a.seen_by(asked.first + asked.rows - 1); s += BLOCK) {
    multiply<false, Unit>(left_of(asked.queries.first, asked.queries.stride), {w.keys.get() + s, w.room}, steps,
                          {w.scores.get(), BLOCK}, asked.rows, BLOCK);
    multiply<false, Unit>(left_of(asked.grads.first, asked.grads.stride), {w.values.get() + s, w.room}, steps,
                          {w.grads_of_weights.get(), BLOCK}, asked.rows, BLOCK);
    gradients_of_scores(a, asked, s, w);
    multiply<true, Unit>({w.weights.get(), 1, BLOCK}, {w.grads.get(), a.width}, even / COUNT,
                         {w.for_values.get() + s * a.width, a.width}, BLOCK, a.width);
    multiply<true, Unit>({w.grads_of_scores.get(), 1, BLOCK}, {w.queries.get(), a.width}, even / COUNT,
                         {w.for_keys.get() + s * a.width, a.width}, BLOCK, a.width);
    multiply<true, Unit>(left_of<T>(w.rows_of_grads.get(), BLOCK),
                         {w.keys_together.get() + s / COUNT * a.width, a.width}, BLOCK / COUNT,
                         {w.for_queries.get(), a.width}, asked.rows, a.width);
  }
}

template <class T>
void give(const Memory<float>& from, const Matrix<T>& to, int64_t first, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d += LANES) round_to(to.row(first + r) + d, load(from.get() + r * width + d));
}

template <class T>
void attend_backward(const Attention& a) {
  for_each_head<BackwardWorkspace<T>>(a, [&](BackwardWorkspace<T>& w, int64_t i, int64_t h) {
    const Matrix<const T> keys = a.key.of<const T>(i, h), queries = a.query.of<const T>(i, h);
    const Matrix<const T> grads = a.grad.of<const T>(i, h), answers = a.out.of<const T>(i, h);
    columns_first<T>(keys, a.keys, a.width, w.keys.get(), w.room);
    columns_first<T>(a.value.of<const T>(i, h), a.keys, a.width, w.values.get(), w.room);
    rows_together<T>(keys, a.keys, a.width, w.keys_together.get(), w.room);
    std::fill_n(w.for_keys.get(), w.room * a.width, 0.0f);
    std::fill_n(w.for_values.get(), w.room * a.width, 0.0f);
    for (int64_t first = 0; first < a.queries; first += BLOCK) {
      Asked<T> asked{first,
                     std::min(BLOCK, a.queries - first),
                     {queries.row(first), queries.stride},
                     {grads.row(first), grads.stride},
                     a.log_sums + (i * a.heads + h) * a.queries + first,
                     {}};
      for (int64_t r = 0; r < asked.rows; r++) {
        Floats products{};
        for (int64_t d = 0; d < a.width; d += LANES)
          products += load(asked.grads.row(r) + d) * load(answers.row(first + r) + d);
        asked.along[r] = sum(products);
      }
      gradients_of_block(a, asked, w);
      give(w.for_queries, a.for_query.of<T>(i, h), first, asked.rows, a.width);
    }
    give(w.for_keys, a.for_key.of<T>(i, h), 0, a.keys, a.width);
    give(w.for_values, a.for_value.of<T>(i, h), 0, a.keys, a.width);
  });
}

}  // namespace
