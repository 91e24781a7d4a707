// Attention of few queries over a long cache: each key and value is read once, as far as it is seen.
//
// What a query gets does not depend, in any bit, on the queries and images beside it, nor on the number of threads.

#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "linear.h"
#include "vectors.h"

namespace {

#if PRECISION == 0
typedef float Stored;
#elif PRECISION == 1
typedef BFloat16 Stored;
#else
typedef int8_t Stored;
#endif

constexpr int64_t HEAD_VECTORS = HEAD_WIDTH / LANES;  // HEAD_WIDTH is a multiple of 16; narrower heads are filled with zeros
constexpr int64_t SCALE_BYTES = sizeof(float);        // behind a vector of int8: what its numbers are to be multiplied with
constexpr int64_t STRIDE = HEAD_WIDTH + (std::is_same_v<Stored, int8_t> ? SCALE_BYTES : 0);  // of vectors, in numbers

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

// Several sums where heads are narrow, of every second or fourth position: an addition takes four cycles, and others can
// begin meanwhile.
template <int64_t V, int64_t Q>
struct Parts {
  static constexpr int64_t AT_ONCE = V < 4 ? 4 / V : 1;
  Floats sums[Q][AT_ONCE][V] = {};
};

// Adds weighted values. Those of a prefix, whose length is a multiple of AT_ONCE, and then those behind it are added as
// if there were no border between them.
template <int64_t V, int64_t Q, class T>
void mix(float* const (&weights)[Q], const Rows<T>& values, const int64_t (&counts)[Q], Parts<V, Q>& parts) {
  constexpr int64_t AT_ONCE = Parts<V, Q>::AT_ONCE;
  const auto add = [&](int64_t first_query, int64_t last_query, int64_t position, int64_t part) {
    const T* value = values.first + position * values.stride;
    if constexpr (std::is_same_v<T, int8_t>) ahead(value, V * LANES);
    const float scale = scale_of<V>(value);
    Floats loaded[V];
    for (int64_t v = 0; v < V; v++) loaded[v] = load(value + v * LANES);
    for (int64_t q = first_query; q <= last_query; q++) {
      const float weight = weights[q][position] * scale;
      for (int64_t v = 0; v < V; v++) parts.sums[q][part][v] += weight * loaded[v];
    }
  };
  const int64_t common = seen_by_all<Q>(counts, AT_ONCE);
  for (int64_t s = 0; s < common; s += AT_ONCE)
    for (int64_t k = 0; k < AT_ONCE; k++) add(0, Q - 1, s + k, k);
  for (int64_t q = 0; q < Q; q++) {
    int64_t s = common;
    for (; s + AT_ONCE <= counts[q]; s += AT_ONCE)
      for (int64_t k = 0; k < AT_ONCE; k++) add(q, q, s + k, k);
    for (int64_t k = 0; k < AT_ONCE; k++)
      if (s + k < counts[q]) add(q, q, s + k, k);
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
  Floats queries[Q][V];
  Parts<V, Q> parts;
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
  mix<V, Q>(scores, shared_values, shared, parts);
  mix<V, Q>(own_scores, values, counts, parts);
  for (int64_t q = 0; q < Q; q++)
    for (int64_t v = 0; v < V; v++) {
      Floats mixed = parts.sums[q][0][v];
      for (int64_t k = 1; k < Parts<V, Q>::AT_ONCE; k++) mixed += parts.sums[q][k][v];
      store(out[q] + v * LANES, mixed / totals[q]);
    }
}

// What an image has cached: keys and values (blocks, 2, heads, room, STRIDE) of positions from `first` on, and those of
// the positions before, which images with the same prompt share.
struct Cache {
  Stored* own;
  int64_t room;
  const Stored* prefix;
  int64_t prefix_length;
};

inline int64_t place(int64_t heads_before, int64_t heads, int64_t is_value, int64_t head, int64_t room) {
  return (2 * heads_before + is_value * heads + head) * room * STRIDE;
}

inline void write(const float* from, int64_t width, float* to) {
  std::copy(from, from + width, to);
  std::fill(to + width, to + HEAD_WIDTH, 0.0f);
}

inline void write(const float* from, int64_t width, BFloat16* to) {
  for (int64_t i = 0; i < HEAD_WIDTH; i++) to[i] = rounded_to_bfloat16(i < width ? from[i] : 0.0f);
}

// The largest number becomes 127, and what is no number makes the whole vector none.
inline void write(const float* from, int64_t width, int8_t* to) {
  // Bits of numbers without their sign are ordered as the numbers are, and what is no number lies above them all.
  uint32_t highest = bits_as<uint32_t>(std::numeric_limits<float>::min());
  for (int64_t i = 0; i < width; i++) highest = std::max(highest, bits_as<uint32_t>(from[i]) & 0x7FFFFFFFu);
  const float largest = bits_as<float>(highest), round = 12582912.0f;  // what is added to 1.5 * 2^23 becomes whole
  const bool is_number = largest <= std::numeric_limits<float>::max();
  const float scale = is_number ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  std::fill(to + width, to + HEAD_WIDTH, 0);
  for (int64_t i = 0; i < width; i++)
    to[i] = is_number ? static_cast<int8_t>(bits_as<int32_t>(from[i] / scale + round) - bits_as<int32_t>(round)) : 0;
  std::memcpy(to + HEAD_WIDTH, &scale, SCALE_BYTES);
}

// The images of a call, of which some that are neighbours share a prefix.
struct Batch {
  const Cache* caches;
  const int64_t* positions;  // (images, queries)
  int64_t images, queries;
  std::vector<int64_t> groups;  // the first image of each group, and the number of images

  Batch(const Cache* caches, const int64_t* positions, int64_t images, int64_t queries)
      : caches(caches), positions(positions), images(images), queries(queries) {
    for (int64_t image = 0; image < images; image++)
      if (!image || !caches[image].prefix || caches[image].prefix != caches[image - 1].prefix) groups.push_back(image);
    groups.push_back(images);
  }

  int64_t room() const {  // for the scores of a query
    int64_t most = 0;
    for (int64_t i = 0; i < images; i++) most = std::max(most, caches[i].room + caches[i].prefix_length);
    return most + LANES;
  }
};

// The heads of a block, and where they are in the cache.
struct Heads {
  int64_t count, before, width;
  float factor;  // on the scores
};

// Put keys and values of an image and head into the cache. `qkv` has (rows, stride) numbers: queries, keys and values of
// all heads.
inline void write_cache(const Batch& batch, const Heads& heads, const float* qkv, int64_t stride, int64_t image,
                        int64_t head) {
  const Cache& cache = batch.caches[image];
  for (int64_t n = 0; n < batch.queries; n++) {
    const int64_t row = image * batch.queries + n, slot = batch.positions[row] - cache.prefix_length;
    for (int64_t is_value = 0; is_value < 2; is_value++)
      write(qkv + row * stride + ((1 + is_value) * heads.count + head) * heads.width, heads.width,
            cache.own + place(heads.before, heads.count, is_value, head, cache.room) + slot * STRIDE);
  }
}

// Some queries, neighbours, of an image and head. `scores` has room for those of `Q` queries.
template <int64_t Q>
void attend(const Batch& batch, const Heads& heads, const float* qkv, int64_t stride, int64_t image, int64_t head,
            int64_t first, float* scores, int64_t room, Packed& out) {
  const Cache& cache = batch.caches[image];
  const auto rows_of = [&](const Stored* from, int64_t is_value, int64_t of_room) {
    return Rows<Stored>{from + place(heads.before, heads.count, is_value, head, of_room), STRIDE, of_room};
  };
  const Rows<Stored> none{nullptr, 0, 0};
  const Rows<Stored> keys = rows_of(cache.own, 0, cache.room), values = rows_of(cache.own, 1, cache.room);
  const Rows<Stored> past_keys = cache.prefix ? rows_of(cache.prefix, 0, cache.prefix_length) : none;
  const Rows<Stored> past_values = cache.prefix ? rows_of(cache.prefix, 1, cache.prefix_length) : none;
  float queries[Q][HEAD_WIDTH] = {}, mixed[Q][HEAD_WIDTH];
  const float* from[Q];
  float *of[Q], *to[Q];
  int64_t counts[Q];
  for (int64_t q = 0; q < Q; q++) {
    const int64_t row = image * batch.queries + first + q;
    for (int64_t i = 0; i < heads.width; i++) queries[q][i] = qkv[row * stride + head * heads.width + i] * heads.factor;
    from[q] = queries[q], of[q] = scores + q * room, to[q] = mixed[q];
    counts[q] = batch.positions[row] - cache.prefix_length + 1;
  }
  attend_some<HEAD_VECTORS, Q, Stored>(from, past_keys, past_values, keys, values, counts, of, to);
  for (int64_t q = 0; q < Q; q++)
    out.put(image * batch.queries + first + q, head * heads.width, mixed[q], heads.width);
}

// Attention of a block; to be called by all threads of a team, each with room for scores of its own.
inline void attend_all(const Batch& batch, const Heads& heads, const float* qkv, int64_t stride, float* scores,
                       int64_t room, Packed& out) {
  constexpr int64_t Q = together<HEAD_VECTORS>();
  const int64_t groups = static_cast<int64_t>(batch.groups.size()) - 1;
#pragma omp for schedule(static)
  for (int64_t item = 0; item < groups * heads.count; item++) {
    const int64_t head = item % heads.count, first_image = batch.groups[item / heads.count];
    const int64_t last_image = batch.groups[item / heads.count + 1];
    for (int64_t image = first_image; image < last_image; image++) write_cache(batch, heads, qkv, stride, image, head);
    for (int64_t first = 0; first < batch.queries; first += Q)
      for (int64_t image = first_image; image < last_image; image++) {
        if (first + Q <= batch.queries)
          attend<Q>(batch, heads, qkv, stride, image, head, first, scores, room, out);
        else
          for (int64_t n = first; n < batch.queries; n++)
            attend<1>(batch, heads, qkv, stride, image, head, n, scores, room, out);
      }
  }
}

}  // namespace
