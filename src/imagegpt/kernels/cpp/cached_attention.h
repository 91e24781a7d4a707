// Attention of a few queries to a long KV cache: each key and value is read once.
//
// The result of a query is the same, bit for bit, in any batch and with any number of threads.

#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kv_cache.h"
#include "linear.h"
#include "simd.h"

namespace {

// Queries computed together: worth it even if some of their sums do not fit into registers.
template <int64_t V>
constexpr int64_t queries_per_pass() {
  return V <= REGISTERS / 2 ? 4 : 1;
}

// The number of positions that all Q queries attend to, rounded down to a multiple.
template <int64_t Q>
int64_t common_count(const int64_t (&counts)[Q], int64_t multiple) {
  return *std::min_element(counts, counts + Q) / multiple * multiple;
}

// Dot products of queries and keys, each in an order that does not depend on the other queries and keys.
template <int64_t V, int64_t Q, class T>
void compute_scores(const FloatVec (&queries)[Q][V], const CacheRows<T>& keys, const int64_t (&counts)[Q],
                    float* const (&scores)[Q]) {
  const auto score_four_keys = [&](auto num_queries, int64_t first_query, int64_t s) {
    constexpr int64_t NUM = decltype(num_queries)::value;
    FloatVec products[NUM][4];
    Float4 scales;
    for (int64_t k = 0; k < 4; k++) {
      const T* key = keys.first + (s + k) * keys.stride;
      if constexpr (std::is_same_v<T, int8_t>) prefetch(key, V * LANES);  // no gain for wider types
      FloatVec loaded[V];
      for (int64_t v = 0; v < V; v++) loaded[v] = load(key + v * LANES);
      for (int64_t q = 0; q < NUM; q++) {
        products[q][k] = queries[first_query + q][0] * loaded[0];
        for (int64_t v = 1; v < V; v++) products[q][k] += queries[first_query + q][v] * loaded[v];
      }
      scales[k] = load_scale<V>(key);
    }
    for (int64_t q = 0; q < NUM; q++) {
      const Float4 four = sums(products[q][0], products[q][1], products[q][2], products[q][3]) * scales;
      std::memcpy(scores[first_query + q] + s, &four, sizeof(four));
    }
  };
  const int64_t common = common_count<Q>(counts, 4);
  for (int64_t s = 0; s < common; s += 4) score_four_keys(std::integral_constant<int64_t, Q>(), 0, s);
  for (int64_t q = 0; q < Q; q++) {
    int64_t s = common;
    for (; s + 4 <= counts[q]; s += 4) score_four_keys(std::integral_constant<int64_t, 1>(), q, s);
    for (; s < counts[q]; s++) {
      const T* key = keys.first + s * keys.stride;
      FloatVec products = queries[q][0] * load(key);
      for (int64_t v = 1; v < V; v++) products += queries[q][v] * load(key + v * LANES);
      scores[q][s] = sum(products) * load_scale<V>(key);
    }
  }
}

// Partial sums of weighted values. Narrow heads have several, each over every second or fourth position: an addition
// has a latency of four cycles, and independent ones overlap.
template <int64_t V, int64_t Q>
struct PartialSums {
  static constexpr int64_t NUM_SUMS = V < 4 ? 4 / V : 1;
  FloatVec sums[Q][NUM_SUMS][V] = {};
};

// Accumulate weighted values. The length of a prefix is a multiple of NUM_SUMS, so adding the values of the prefix and
// then those after it gives the same sums as adding them in one pass.
template <int64_t V, int64_t Q, class T>
void accumulate_values(float* const (&weights)[Q], const CacheRows<T>& values, const int64_t (&counts)[Q],
                       PartialSums<V, Q>& partial) {
  constexpr int64_t NUM_SUMS = PartialSums<V, Q>::NUM_SUMS;
  const auto accumulate = [&](int64_t first_query, int64_t last_query, int64_t position, int64_t index) {
    const T* value = values.first + position * values.stride;
    if constexpr (std::is_same_v<T, int8_t>) prefetch(value, V * LANES);
    const float scale = load_scale<V>(value);
    FloatVec loaded[V];
    for (int64_t v = 0; v < V; v++) loaded[v] = load(value + v * LANES);
    for (int64_t q = first_query; q <= last_query; q++) {
      const float weight = weights[q][position] * scale;
      for (int64_t v = 0; v < V; v++) partial.sums[q][index][v] += weight * loaded[v];
    }
  };
  const int64_t common = common_count<Q>(counts, NUM_SUMS);
  for (int64_t s = 0; s < common; s += NUM_SUMS)
    for (int64_t k = 0; k < NUM_SUMS; k++) accumulate(0, Q - 1, s + k, k);
  for (int64_t q = 0; q < Q; q++) {
    int64_t s = common;
    for (; s + NUM_SUMS <= counts[q]; s += NUM_SUMS)
      for (int64_t k = 0; k < NUM_SUMS; k++) accumulate(q, q, s + k, k);
    for (int64_t k = 0; k < NUM_SUMS; k++)
      if (s + k < counts[q]) accumulate(q, q, s + k, k);
  }
}

// Exponentiate scores in place and return the sum to divide them by. There is space for whole vectors.
float softmax_weights(float* scores, int64_t count) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::max());
  FloatVec max_vector = load(scores);
  for (int64_t s = LANES; s < padded; s += LANES) {
    const FloatVec vector = load(scores + s);
    max_vector = vector > max_vector ? vector : max_vector;
  }
  float max_score = max_vector[0];
  for (int64_t lane = 1; lane < LANES; lane++) max_score = std::max(max_score, max_vector[lane]);
  FloatVec weight_sum{};
  for (int64_t s = 0; s < padded; s += LANES) {
    const FloatVec weights = exp_nonpositive(load(scores + s) - max_score);
    store(scores + s, weights);
    weight_sum += weights;
  }
  return sum(weight_sum);
}

// Q queries of one image and head, which share each read of keys and values.
template <int64_t V, int64_t Q, class T>
void attend_queries(const float* const (&source)[Q], const CacheRows<T>& prefix_keys, const CacheRows<T>& prefix_values,
                    const CacheRows<T>& keys, const CacheRows<T>& values, const int64_t (&counts)[Q],
                    float* const (&scores)[Q], float* const (&out)[Q]) {
  FloatVec queries[Q][V];
  PartialSums<V, Q> partial;
  int64_t prefix_counts[Q];
  float *own_scores[Q], weight_sums[Q];
  for (int64_t q = 0; q < Q; q++) {
    for (int64_t v = 0; v < V; v++) queries[q][v] = load(source[q] + v * LANES);
    prefix_counts[q] = prefix_keys.count;
    own_scores[q] = scores[q] + prefix_keys.count;
  }
  compute_scores<V, Q>(queries, prefix_keys, prefix_counts, scores);
  compute_scores<V, Q>(queries, keys, counts, own_scores);
  for (int64_t q = 0; q < Q; q++) weight_sums[q] = softmax_weights(scores[q], prefix_counts[q] + counts[q]);
  accumulate_values<V, Q>(scores, prefix_values, prefix_counts, partial);
  accumulate_values<V, Q>(own_scores, values, counts, partial);
  for (int64_t q = 0; q < Q; q++)
    for (int64_t v = 0; v < V; v++) {
      FloatVec outputs = partial.sums[q][0][v];
      for (int64_t k = 1; k < PartialSums<V, Q>::NUM_SUMS; k++) outputs += partial.sums[q][k][v];
      store(out[q] + v * LANES, outputs / weight_sums[q]);
    }
}

// Q consecutive queries of an image and head. `scores` has `capacity` elements for each of them.
template <int64_t Q>
void attend(const BatchLayout& batch, const HeadsLayout& heads, const float* qkv, int64_t stride, int64_t image,
            int64_t head, int64_t first, float* scores, int64_t capacity, PackedInputs& out) {
  const Cache& cache = batch.caches[image];
  const auto rows_of = [&](const CacheValue* source, int64_t is_value, int64_t num_positions) {
    return CacheRows<CacheValue>{source + cache_offset(heads.heads_before, heads.count, is_value, head, num_positions),
                                 STRIDE, num_positions};
  };
  const CacheRows<CacheValue> none{nullptr, 0, 0};
  const CacheRows<CacheValue> keys = rows_of(cache.own, 0, cache.capacity);
  const CacheRows<CacheValue> values = rows_of(cache.own, 1, cache.capacity);
  const CacheRows<CacheValue> prefix_keys = cache.prefix ? rows_of(cache.prefix, 0, cache.prefix_length) : none;
  const CacheRows<CacheValue> prefix_values = cache.prefix ? rows_of(cache.prefix, 1, cache.prefix_length) : none;
  float queries[Q][HEAD_WIDTH] = {}, outputs[Q][HEAD_WIDTH];
  const float* source[Q];
  float *query_scores[Q], *target[Q];
  int64_t counts[Q];
  for (int64_t q = 0; q < Q; q++) {
    const int64_t row = image * batch.queries + first + q;
    for (int64_t i = 0; i < heads.width; i++) queries[q][i] = qkv[row * stride + head * heads.width + i] * heads.scale;
    source[q] = queries[q], query_scores[q] = scores + q * capacity, target[q] = outputs[q];
    counts[q] = batch.positions[row] - cache.prefix_length + 1;
  }
  attend_queries<HEAD_VECTORS, Q, CacheValue>(source, prefix_keys, prefix_values, keys, values, counts, query_scores,
                                              target);
  for (int64_t q = 0; q < Q; q++)
    out.write(image * batch.queries + first + q, head * heads.width, outputs[q], heads.width);
}

// Attention of a block. Call it from all threads of a team, each with its own buffer for scores.
inline void attend_batch(const BatchLayout& batch, const HeadsLayout& heads, const float* qkv, int64_t stride,
                         float* scores, int64_t capacity, PackedInputs& out) {
  constexpr int64_t Q = queries_per_pass<HEAD_VECTORS>();
  const int64_t groups = static_cast<int64_t>(batch.groups.size()) - 1;
#pragma omp for schedule(static)
  for (int64_t item = 0; item < groups * heads.count; item++) {
    const int64_t head = item % heads.count, first_image = batch.groups[item / heads.count];
    const int64_t last_image = batch.groups[item / heads.count + 1];
    for (int64_t image = first_image; image < last_image; image++) write_cache(batch, heads, qkv, stride, image, head);
    for (int64_t first = 0; first < batch.queries; first += Q)
      for (int64_t image = first_image; image < last_image; image++) {
        if (first + Q <= batch.queries)
          attend<Q>(batch, heads, qkv, stride, image, head, first, scores, capacity, out);
        else
          for (int64_t n = first; n < batch.queries; n++)
            attend<1>(batch, heads, qkv, stride, image, head, n, scores, capacity, out);
      }
  }
}

}  // namespace
