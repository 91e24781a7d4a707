// Attention over whole sequences and its gradients, in blocks of queries and keys that fit into the CPU cache
// ("FlashAttention-2", Dao, 2023, but without its running maximum: all scores of a block of queries are stored).
// Blocks that the causal mask hides are skipped. One thread computes a whole head of an image, so sums do not depend on
// the number of threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "matmul.h"

namespace {

constexpr int64_t BLOCK = 64;  // queries per block, and keys

inline int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// A tensor (B, H, positions, D): its address, and the strides of all axes except D, which is contiguous.
struct HeadsTensor {
  void* data;
  int64_t image_stride, head_stride, position_stride;

  template <class T>
  Matrix<T> head(int64_t i, int64_t h) const {
    return {static_cast<T*>(data) + i * image_stride + h * head_stride, position_stride};
  }
};

// D is a multiple of 16, and bfloat16 values are aligned in pairs.
struct Attention {
  int64_t images, heads, queries, keys, width, num_threads;
  float scale;
  bool is_causal, is_bfloat16;
  HeadsTensor query, key, value, out;
  float* logsumexp;                                        // (B, H, queries): of the scaled scores of each query
  HeadsTensor out_grad, query_grad, key_grad, value_grad;  // unused in the forward pass

  // A query attends to the first keys, as many as this.
  int64_t num_visible_keys(int64_t query) const { return is_causal ? std::min(keys, query + 1) : keys; }
};

// Calls compute(workspace, image, head) for each head, with one workspace per thread. Workspaces are allocated here
// because no exception may leave a parallel region.
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
using Buffer = std::unique_ptr<T[]>;  // `new T[count]` does not touch the memory: the thread that uses it does

// Softmax weights of a query before normalisation, from its scores; zeros from `count` to `padded`.
template <class T>
void softmax_row(float* scores, int64_t count, int64_t padded, float scale, T* weights, float& max_score,
                 float& sum_of_weights) {
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::infinity());
  FloatVec max_vector = load(scores);
  for (int64_t s = LANES; s < count; s += LANES) {
    const FloatVec vector = load(scores + s);
    max_vector = vector > max_vector ? vector : max_vector;
  }
  max_score = max_vector[0];
  for (int64_t lane = 1; lane < LANES; lane++) max_score = std::max(max_score, max_vector[lane]);
  FloatVec sums{};
  int64_t s = 0;
  for (; s < count; s += LANES) {
    const FloatVec score = load(scores + s), shifted = (score - max_score) * scale;
    const FloatVec weights_vector =
        score == -std::numeric_limits<float>::infinity() ? FloatVec{} : exp_nonpositive(shifted);
    sums += weights_vector;
    store_rounded(weights + s, weights_vector);
  }
  for (; s < padded; s += LANES) store_rounded(weights + s, FloatVec{});
  sum_of_weights = sum(sums);
}

template <class T>
struct ForwardWorkspace {
  typedef typename Operand<T>::Element Element;
  static constexpr int64_t PACKING = Operand<T>::PACKING;
  const int64_t padded_keys, width;
  Buffer<Element> keys{new Element[padded_keys * width / PACKING]};
  Buffer<Element> values{new Element[padded_keys * width / PACKING]};
  Buffer<float> scores{new float[BLOCK * padded_keys]};
  Buffer<float> outputs{new float[BLOCK * width]};
  Buffer<T> weights{new T[BLOCK * padded_keys]};

  explicit ForwardWorkspace(const Attention& a) : padded_keys(round_up(a.keys, BLOCK)), width(a.width) {}
};

// The forward pass of one block of queries, from `first` on.
template <class T>
void attend_block(const Attention& a, const Matrix<const T>& query, int64_t first, int64_t rows, const Matrix<T>& out,
                  float* logsumexp, ForwardWorkspace<T>& w) {
  typedef typename Operand<T>::Element Element;
  constexpr int64_t PACKING = Operand<T>::PACKING;
  const int64_t padded = round_up(a.num_visible_keys(first + rows - 1), BLOCK);
  for (int64_t s = 0; s < padded; s += BLOCK)
    multiply<false, Element>(left_matrix(query.row(first), query.stride), {w.keys.get() + s, w.padded_keys},
                             a.width / PACKING, {w.scores.get() + s, w.padded_keys}, rows, BLOCK);
  float weight_sums[BLOCK];
  for (int64_t r = 0; r < rows; r++) {
    float max_score;
    softmax_row(w.scores.get() + r * w.padded_keys, a.num_visible_keys(first + r), padded, a.scale,
                w.weights.get() + r * w.padded_keys, max_score, weight_sums[r]);
    logsumexp[first + r] = max_score * a.scale + std::log(weight_sums[r]);
  }
  multiply<false, Element>(left_matrix<T>(w.weights.get(), w.padded_keys), {w.values.get(), a.width}, padded / PACKING,
                           {w.outputs.get(), a.width}, rows, a.width);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < a.width; d += LANES)
      store_rounded(out.row(first + r) + d, load(w.outputs.get() + r * a.width + d) / weight_sums[r]);
}

template <class T>
void attend(const Attention& a) {
  for_each_head<ForwardWorkspace<T>>(a, [&](ForwardWorkspace<T>& w, int64_t i, int64_t h) {
    pack_transposed<T>(a.key.head<const T>(i, h), a.keys, a.width, w.keys.get(), w.padded_keys);
    pack_rows<T>(a.value.head<const T>(i, h), a.keys, a.width, w.values.get(), w.padded_keys);
    for (int64_t first = 0; first < a.queries; first += BLOCK)
      attend_block(a, a.query.head<const T>(i, h), first, std::min(BLOCK, a.queries - first), a.out.head<T>(i, h),
                   a.logsumexp + (i * a.heads + h) * a.queries, w);
  });
}

template <class T>
struct BackwardWorkspace {
  typedef typename Operand<T>::Element Element;
  static constexpr int64_t PACKING = Operand<T>::PACKING;
  const int64_t padded_keys, width;
  Buffer<Element> keys{new Element[padded_keys * width / PACKING]};
  Buffer<Element> values{new Element[padded_keys * width / PACKING]};
  Buffer<Element> keys_by_row{new Element[padded_keys * width / PACKING]};
  Buffer<Element> queries{new Element[BLOCK * width / PACKING]};
  Buffer<Element> grads{new Element[BLOCK * width / PACKING]};
  Buffer<Element> weights{new Element[BLOCK * BLOCK / PACKING]};
  Buffer<Element> score_grads{new Element[BLOCK * BLOCK / PACKING]};
  Buffer<T> score_grad_rows{new T[BLOCK * BLOCK]};
  Buffer<float> scores{new float[BLOCK * BLOCK]};
  Buffer<float> weight_grads{new float[BLOCK * BLOCK]};
  Buffer<float> query_grads{new float[BLOCK * width]};
  Buffer<float> key_grads{new float[padded_keys * width]};
  Buffer<float> value_grads{new float[padded_keys * width]};

  explicit BackwardWorkspace(const Attention& a) : padded_keys(round_up(a.keys, BLOCK)), width(a.width) {}
};

// A block of queries of one head.
template <class T>
struct QueryBlock {
  int64_t first, rows;
  Matrix<const T> queries, grads;
  const float* logsumexp;
  float delta[BLOCK];  // of each query: the dot product of its output and the gradient of its output
};

// Recompute the weights of a block of keys from the scores, and compute the gradients of the scores.
template <class T>
void compute_score_grads(const Attention& a, const QueryBlock<T>& block, int64_t first_key, BackwardWorkspace<T>& w) {
  constexpr int64_t PACKING = Operand<T>::PACKING;
  for (int64_t r = 0; r < block.rows; r += PACKING)
    for (int64_t s = 0; s < BLOCK; s += LANES) {
      FloatVec weights[PACKING] = {}, grads[PACKING] = {};
      for (int64_t i = 0; i < std::min(PACKING, block.rows - r); i++) {
        const int64_t row = r + i, num_visible = a.num_visible_keys(block.first + row) - first_key - s;
        const FloatVec log_weights = load(w.scores.get() + row * BLOCK + s) * a.scale - block.logsumexp[row];
        weights[i] = exp_nonpositive(log_weights > 0 ? broadcast(0) : log_weights);
        for (int64_t lane = std::max<int64_t>(num_visible, 0); lane < LANES; lane++) weights[i][lane] = 0;
        grads[i] = weights[i] * (load(w.weight_grads.get() + row * BLOCK + s) - block.delta[row]) * a.scale;
        store_rounded(w.score_grad_rows.get() + row * BLOCK + s, grads[i]);
      }
      store_interleaved(w.weights.get() + r / PACKING * BLOCK + s, weights);
      store_interleaved(w.score_grads.get() + r / PACKING * BLOCK + s, grads);
    }
}

// The backward pass of one block of queries.
template <class T>
void attend_block_backward(const Attention& a, const QueryBlock<T>& block, BackwardWorkspace<T>& w) {
  typedef typename Operand<T>::Element Element;
  constexpr int64_t PACKING = Operand<T>::PACKING;
  const int64_t padded_rows = round_up(block.rows, PACKING), steps = a.width / PACKING;
  pack_rows<T>(block.queries, block.rows, a.width, w.queries.get(), padded_rows);
  pack_rows<T>(block.grads, block.rows, a.width, w.grads.get(), padded_rows);
  std::fill_n(w.query_grads.get(), BLOCK * a.width, 0.0f);
  for (int64_t s = 0; s < a.num_visible_keys(block.first + block.rows - 1); s += BLOCK) {
    multiply<false, Element>(left_matrix(block.queries.first, block.queries.stride), {w.keys.get() + s, w.padded_keys},
                             steps, {w.scores.get(), BLOCK}, block.rows, BLOCK);
    multiply<false, Element>(left_matrix(block.grads.first, block.grads.stride), {w.values.get() + s, w.padded_keys},
                             steps, {w.weight_grads.get(), BLOCK}, block.rows, BLOCK);
    compute_score_grads(a, block, s, w);
    multiply<true, Element>({w.weights.get(), 1, BLOCK}, {w.grads.get(), a.width}, padded_rows / PACKING,
                            {w.value_grads.get() + s * a.width, a.width}, BLOCK, a.width);
    multiply<true, Element>({w.score_grads.get(), 1, BLOCK}, {w.queries.get(), a.width}, padded_rows / PACKING,
                            {w.key_grads.get() + s * a.width, a.width}, BLOCK, a.width);
    multiply<true, Element>(left_matrix<T>(w.score_grad_rows.get(), BLOCK),
                            {w.keys_by_row.get() + s / PACKING * a.width, a.width}, BLOCK / PACKING,
                            {w.query_grads.get(), a.width}, block.rows, a.width);
  }
}

template <class T>
void store_gradients(const Buffer<float>& from, const Matrix<T>& to, int64_t first, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d += LANES) store_rounded(to.row(first + r) + d, load(from.get() + r * width + d));
}

template <class T>
void attend_backward(const Attention& a) {
  for_each_head<BackwardWorkspace<T>>(a, [&](BackwardWorkspace<T>& w, int64_t i, int64_t h) {
    const Matrix<const T> keys = a.key.head<const T>(i, h), queries = a.query.head<const T>(i, h);
    const Matrix<const T> grads = a.out_grad.head<const T>(i, h), outputs = a.out.head<const T>(i, h);
    pack_transposed<T>(keys, a.keys, a.width, w.keys.get(), w.padded_keys);
    pack_transposed<T>(a.value.head<const T>(i, h), a.keys, a.width, w.values.get(), w.padded_keys);
    pack_rows<T>(keys, a.keys, a.width, w.keys_by_row.get(), w.padded_keys);
    std::fill_n(w.key_grads.get(), w.padded_keys * a.width, 0.0f);
    std::fill_n(w.value_grads.get(), w.padded_keys * a.width, 0.0f);
    for (int64_t first = 0; first < a.queries; first += BLOCK) {
      QueryBlock<T> block{first,
                          std::min(BLOCK, a.queries - first),
                          {queries.row(first), queries.stride},
                          {grads.row(first), grads.stride},
                          a.logsumexp + (i * a.heads + h) * a.queries + first,
                          {}};
      for (int64_t r = 0; r < block.rows; r++) {
        FloatVec products{};
        for (int64_t d = 0; d < a.width; d += LANES)
          products += load(block.grads.row(r) + d) * load(outputs.row(first + r) + d);
        block.delta[r] = sum(products);
      }
      attend_block_backward(a, block, w);
      store_gradients(w.query_grads, a.query_grad.head<T>(i, h), first, block.rows, a.width);
    }
    store_gradients(w.key_grads, a.key_grad.head<T>(i, h), 0, a.keys, a.width);
    store_gradients(w.value_grads, a.value_grad.head<T>(i, h), 0, a.keys, a.width);
  });
}

}  // namespace
