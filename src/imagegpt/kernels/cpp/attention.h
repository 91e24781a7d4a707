// Attention of few queries over a long cache: each key and value is read once, as far as it is seen.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "tensors.h"
#include "vectors.h"

namespace {

// A vector of int8 is followed by the float32 with which its numbers are to be multiplied.
constexpr int64_t SCALE_BYTES = sizeof(float);

template <int64_t V, class T>
inline float scale_of(const T* vector) {
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, int8_t>) std::memcpy(&scale, vector + V * LANES, SCALE_BYTES);
  return scale;
}

// Queries that are answered together: worth it even where some of their sums do not find a register.
template <int64_t V>
constexpr int64_t together() {
  return V <= REGISTERS / 2 ? 4 : 1;
}

// Keys or values of one image and head, (positions, width) with a stride.
template <class T>
struct Rows {
  const T* first;
  int64_t stride, count;
};

// What Q queries see of them: the first of so many.
template <int64_t Q>
int64_t seen_by_all(const int64_t (&counts)[Q], int64_t multiple) {
  return *std::min_element(counts, counts + Q) / multiple * multiple;
}

// Sums of products with a query, each in an order that depends on neither the other queries nor the other keys.
template <int64_t V, int64_t Q, class T>
void score(const Floats (&queries)[Q][V], const Rows<T>& keys, const int64_t (&counts)[Q], float* const (&scores)[Q]) {
  const auto score_some = [&](auto some, int64_t first_query, int64_t s) {
    constexpr int64_t SOME = decltype(some)::value;
    Floats products[SOME][4];
    Four scales;
    for (int64_t k = 0; k < 4; k++) {
      const T* key = keys.first + (s + k) * keys.stride;
      if constexpr (std::is_same_v<T, int8_t>) ahead(key, V * LANES);  // of wider types it gains nothing
      Floats loaded[V];
      for (int64_t v = 0; v < V; v++) loaded[v] = load(key + v * LANES);
      for (int64_t q = 0; q < SOME; q++) {
        products[q][k] = queries[first_query + q][0] * loaded[0];
        for (int64_t v = 1; v < V; v++) products[q][k] += queries[first_query + q][v] * loaded[v];
      }
      scales[k] = scale_of<V>(key);
    }
    for (int64_t q = 0; q < SOME; q++) {
      const Four four = sums(products[q][0], products[q][1], products[q][2], products[q][3]) * scales;
      std::memcpy(scores[first_query + q] + s, &four, sizeof(four));
    }
  };
  const int64_t common = seen_by_all<Q>(counts, 4);
  for (int64_t s = 0; s < common; s += 4) score_some(std::integral_constant<int64_t, Q>(), 0, s);
  for (int64_t q = 0; q < Q; q++) {
    int64_t s = common;
    for (; s + 4 <= counts[q]; s += 4) score_some(std::integral_constant<int64_t, 1>(), q, s);
    for (; s < counts[q]; s++) {
      const T* key = keys.first + s * keys.stride;
      Floats products = queries[q][0] * load(key);
      for (int64_t v = 1; v < V; v++) products += queries[q][v] * load(key + v * LANES);
      scores[q][s] = sum(products) * scale_of<V>(key);
    }
  }
}

// Several positions at a time where heads are narrow: an addition takes four cycles, and others can begin meanwhile.
template <int64_t V, int64_t Q, class T>
void mix(float* const (&weights)[Q], const Rows<T>& values, const int64_t (&counts)[Q], Floats (&mixed)[Q][V]) {
  constexpr int64_t AT_ONCE = V < 4 ? 4 / V : 1;
  Floats parts[Q][AT_ONCE][V] = {};
  const auto add = [&](int64_t first_query, int64_t last_query, int64_t position, int64_t part) {
    const T* value = values.first + position * values.stride;
    if constexpr (std::is_same_v<T, int8_t>) ahead(value, V * LANES);
    const float scale = scale_of<V>(value);
    Floats loaded[V];
    for (int64_t v = 0; v < V; v++) loaded[v] = load(value + v * LANES);
    for (int64_t q = first_query; q <= last_query; q++) {
      const float weight = weights[q][position] * scale;
      for (int64_t v = 0; v < V; v++) parts[q][part][v] += weight * loaded[v];
    }
  };
  const int64_t common = seen_by_all<Q>(counts, AT_ONCE);
  for (int64_t s = 0; s < common; s += AT_ONCE)
    for (int64_t k = 0; k < AT_ONCE; k++) add(0, Q - 1, s + k, k);
  for (int64_t q = 0; q < Q; q++) {
    int64_t s = common;
    for (; s + AT_ONCE <= counts[q]; s += AT_ONCE)
      for (int64_t k = 0; k < AT_ONCE; k++) add(q, q, s + k, k);
    for (; s < counts[q]; s++) add(q, q, s, 0);
    for (int64_t k = 0; k < AT_ONCE; k++)
      for (int64_t v = 0; v < V; v++) mixed[q][v] += parts[q][k][v];
  }
}

// In place; gives the sum by which the weights must still be divided. There is room for whole vectors.
float unnormalised_softmax(float* scores, int64_t count) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::max());
  Floats high = load(scores);
  for (int64_t s = LANES; s < padded; s += LANES) {
    const Floats others = load(scores + s);
    high = others > high ? others : high;
  }
  float highest = high[0];
  for (int64_t lane = 1; lane < LANES; lane++) highest = std::max(highest, high[lane]);
  Floats total{};
  for (int64_t s = 0; s < padded; s += LANES) {
    const Floats weights = exponential(load(scores + s) - highest);
    store(scores + s, weights);
    total += weights;
  }
  return sum(total);
}

// Queries of one image and head, which the memory has to bring keys and values for once.
template <int64_t V, int64_t Q, class T>
void attend_some(const float* const (&from)[Q], const Rows<T>& shared_keys, const Rows<T>& shared_values,
                 const Rows<T>& keys, const Rows<T>& values, const int64_t (&counts)[Q], float* const (&scores)[Q],
                 float* const (&out)[Q]) {
  Floats queries[Q][V], mixed[Q][V] = {};
  int64_t shared[Q];
  float *own_scores[Q], totals[Q];
  for (int64_t q = 0; q < Q; q++) {
    for (int64_t v = 0; v < V; v++) queries[q][v] = load(from[q] + v * LANES);
    shared[q] = shared_keys.count;
    own_scores[q] = scores[q] + shared_keys.count;
  }
  score<V, Q>(queries, shared_keys, shared, scores);
  score<V, Q>(queries, keys, counts, own_scores);
  for (int64_t q = 0; q < Q; q++) totals[q] = unnormalised_softmax(scores[q], shared[q] + counts[q]);
  mix<V, Q>(scores, shared_values, shared, mixed);
  mix<V, Q>(own_scores, values, counts, mixed);
  for (int64_t q = 0; q < Q; q++)
    for (int64_t v = 0; v < V; v++) store(out[q] + v * LANES, mixed[q][v] / totals[q]);
}

// The rows of image i and head h of a (B, H, S, D) tensor.
template <class T>
Rows<T> rows_of(const Tensor& x, int64_t i, int64_t h, int64_t count) {
  return {static_cast<const T*>(x.const_data_ptr()) + i * x.stride(0) + h * x.stride(1), x.stride(2), count};
}

template <int64_t V, class T>
void attend(const Tensor& query, const Tensor& keys, const Tensor& values, const int64_t* lengths,
            const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values, float* out) {
  const int64_t images = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  const int64_t prompts = shared_keys ? shared_keys->size(0) : images, group = images / prompts;
  const int64_t shared = shared_keys ? shared_keys->size(2) : 0, room = shared + keys.size(2) + LANES;
  const bool large = images * heads * queries * room * width > PARALLEL_FROM;
  constexpr int64_t Q = together<V>();
  const int64_t blocks = (queries + Q - 1) / Q;
#pragma omp parallel if (large)
  {
    std::vector<float> scores(Q * room);
    const auto attend_to = [&](auto some, int64_t image, int64_t head, int64_t first, const Rows<T>& past_keys,
                                 const Rows<T>& past_values) {
      constexpr int64_t SOME = decltype(some)::value;
      const float* from[SOME];
      int64_t counts[SOME];
      float *of[SOME], *to[SOME];
      for (int64_t q = 0; q < SOME; q++) {
        const int64_t n = first + q;
        from[q] = floats(query) + image * query.stride(0) + head * query.stride(1) + n * query.stride(2);
        counts[q] = lengths[image * queries + n];
        of[q] = scores.data() + q * room;
        to[q] = out + ((image * queries + n) * heads + head) * width;
      }
      attend_some<V, SOME, T>(from, past_keys, past_values, rows_of<T>(keys, image, head, keys.size(2)),
                              rows_of<T>(values, image, head, keys.size(2)), counts, of, to);
    };
#pragma omp for schedule(static)
    for (int64_t item = 0; item < prompts * heads * blocks; item++) {
      const int64_t prompt = item / (heads * blocks), head = item / blocks % heads, first = item % blocks * Q;
      const Rows<T> none{nullptr, 0, 0};
      const Rows<T> past_keys = shared ? rows_of<T>(*shared_keys, prompt, head, shared) : none;
      const Rows<T> past_values = shared ? rows_of<T>(*shared_values, prompt, head, shared) : none;
      for (int64_t image = prompt * group; image < (prompt + 1) * group; image++) {
        if (first + Q <= queries) {
          attend_to(std::integral_constant<int64_t, Q>(), image, head, first, past_keys, past_values);
          continue;
        }
        for (int64_t n = first; n < queries; n++)
          attend_to(std::integral_constant<int64_t, 1>(), image, head, n, past_keys, past_values);
      }
    }
  }
}

template <class T>
void attend_any_width(const Tensor& query, const Tensor& keys, const Tensor& values, const int64_t* lengths,
                      const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values,
                      float* out) {
  switch (query.size(3) / 16) {
#define CASE(W) \
  case W: attend<W * 16 / LANES, T>(query, keys, values, lengths, shared_keys, shared_values, out); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(12)
#undef CASE
    default: refuse("has no loops for heads " + std::to_string(query.size(3)) + " wide");
  }
}

// Keys or values: (images, heads, positions, width), of one type.
void check_cached(const Tensor& x, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  check_type(x, name, {type});
  check_shape(x, name, shape);
  check_last_axis(x, name);
}

void check_cache(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& lengths,
                 const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values) {
  check_type(query, "query", {ScalarType::Float});
  check_shape(query, "query", {ANY, ANY, ANY, ANY});
  check_last_axis(query, "query");
  const int64_t images = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  check_multiple(width, 16, "heads");
  check_type(keys, "keys", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char});
  const ScalarType type = keys.scalar_type();
  const int64_t stored = width + (type == ScalarType::Char ? SCALE_BYTES : 0);
  check_cached(keys, "keys", type, {images, heads, ANY, stored});
  check_cached(values, "values", type, {images, heads, keys.size(2), stored});
  check_type(lengths, "lengths", {ScalarType::Long});
  check_shape(lengths, "lengths", {images, queries});
  if (shared_keys.has_value() != shared_values.has_value()) refuse("was given shared keys or shared values: it takes both or none");
  if (!shared_keys) return;
  const int64_t prompts = shared_keys->dim() ? shared_keys->size(0) : 0;
  if (prompts < 1 || images % prompts)
    refuse("was given " + std::to_string(prompts) + " prompts for " + std::to_string(images) + " images: it takes a divisor");
  check_cached(*shared_keys, "shared_keys", type, {prompts, heads, ANY, stored});
  check_cached(*shared_values, "shared_values", type, {prompts, heads, shared_keys->size(2), stored});
}

// Query (B, H, n, D), scaled, in float32; keys and values (B, H, S, D) in float32 or bfloat16, or (B, H, S, D + 4) as
// `quantized_rows` makes them, of which each query sees the first `lengths` (B, n); and those of G prompts, (G, H, P, D),
// seen whole by B / G images each. Gives (B, n, H, D).
Tensor cached_attention(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& lengths,
                        const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values) {
  check_cache(query, keys, values, lengths, shared_keys, shared_values);
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(2), query.size(1), query.size(3)});
  const Tensor counts = torch::stable::contiguous(lengths);
  const int64_t* count = static_cast<const int64_t*>(counts.const_data_ptr());
  check_lengths(count, counts.numel(), keys.size(2));
  float* to = static_cast<float*>(out.mutable_data_ptr());
  if (keys.scalar_type() == ScalarType::Float)
    attend_any_width<float>(query, keys, values, count, shared_keys, shared_values, to);
  else if (keys.scalar_type() == ScalarType::Char)
    attend_any_width<int8_t>(query, keys, values, count, shared_keys, shared_values, to);
  else  // bfloat16: there is no other
    attend_any_width<BFloat16>(query, keys, values, count, shared_keys, shared_values, to);
  return out;
}

// Vectors (..., D) of float32 as int8, the largest number of each becoming 127, and behind them its scale: (..., D + 4).
Tensor quantized_rows(const Tensor& x) {
  check_type(x, "x", {ScalarType::Float});
  if (x.dim() < 1) refuse("was given x without axes: it takes vectors, (..., width)");
  const Tensor in = torch::stable::contiguous(x);
  const int64_t width = in.size(in.dim() - 1), num = in.numel() / std::max<int64_t>(width, 1);
  std::vector<int64_t> shape;
  for (int64_t axis = 0; axis < in.dim() - 1; axis++) shape.push_back(in.size(axis));
  shape.push_back(width + SCALE_BYTES);
  Tensor out = torch::stable::new_empty(in, shape, ScalarType::Char);
  int8_t* to = static_cast<int8_t*>(out.mutable_data_ptr());
  const float* from = floats(in);
  for (int64_t row = 0; row < num; row++, from += width, to += width + SCALE_BYTES) {
    // Bits of numbers without their sign are ordered as the numbers are, and what is no number lies above them all.
    uint32_t highest = bits_as<uint32_t>(std::numeric_limits<float>::min());
    for (int64_t i = 0; i < width; i++) highest = std::max(highest, bits_as<uint32_t>(from[i]) & 0x7FFFFFFFu);
    const float largest = bits_as<float>(highest), round = 12582912.0f;  // what is added to 1.5 * 2^23 becomes whole
    const bool is_number = largest <= std::numeric_limits<float>::max();
    const float scale = is_number ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = 0; i < width; i++)
      to[i] = is_number ? static_cast<int8_t>(bits_as<int32_t>(from[i] / scale + round) - bits_as<int32_t>(round)) : 0;
    std::memcpy(to + width, &scale, SCALE_BYTES);
  }
  return out;
}

}  // namespace
