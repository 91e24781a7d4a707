// The KV cache of a step: its layout, and writing to it in float32, bfloat16 or int8.

#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

#if PRECISION == 0
typedef float CacheValue;
#elif PRECISION == 1
typedef BFloat16 CacheValue;
#else
typedef int8_t CacheValue;
#endif

// HEAD_WIDTH is a multiple of 16; narrower heads are padded with zeros. Each int8 vector is followed by its scale.
constexpr int64_t HEAD_VECTORS = HEAD_WIDTH / LANES;
constexpr int64_t SCALE_BYTES = sizeof(float);
constexpr int64_t STRIDE = HEAD_WIDTH + (std::is_same_v<CacheValue, int8_t> ? SCALE_BYTES : 0);

template <int64_t V, class T>
inline float load_scale(const T* vector) {
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, int8_t>) std::memcpy(&scale, vector + V * LANES, SCALE_BYTES);
  return scale;
}

// Keys or values of one image and head: (positions, width), with a stride.
template <class T>
struct CacheRows {
  const T* first;
  int64_t stride, count;
};

// The cache of an image: a prefix, which images with the same prompt share, then keys and values of its own. Both are
// (blocks, 2, heads, positions, STRIDE).
struct Cache {
  CacheValue* own;
  int64_t capacity;
  const CacheValue* prefix;
  int64_t prefix_length;
};

inline int64_t cache_offset(int64_t heads_before, int64_t heads, int64_t is_value, int64_t head, int64_t capacity) {
  return (2 * heads_before + is_value * heads + head) * capacity * STRIDE;
}

inline void write_vector(const float* source, int64_t width, float* target) {
  std::copy(source, source + width, target);
  std::fill(target + width, target + HEAD_WIDTH, 0.0f);
}

inline void write_vector(const float* source, int64_t width, BFloat16* target) {
  for (int64_t i = 0; i < HEAD_WIDTH; i++) target[i] = to_bfloat16(i < width ? source[i] : 0.0f);
}

// Quantise with a scale that maps the largest absolute value to 127. NaN or infinity makes the scale NaN.
inline void write_vector(const float* source, int64_t width, int8_t* target) {
  // Without the sign, the bits of floats are ordered as the floats are, with infinity and NaN above all numbers.
  uint32_t max_bits = bit_cast<uint32_t>(std::numeric_limits<float>::min());
  for (int64_t i = 0; i < width; i++) max_bits = std::max(max_bits, bit_cast<uint32_t>(source[i]) & 0x7FFFFFFFu);
  const float max_abs = bit_cast<float>(max_bits);
  const float rounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const bool is_number = max_abs <= std::numeric_limits<float>::max();
  const float scale = is_number ? max_abs / 127 : std::numeric_limits<float>::quiet_NaN();
  std::fill(target + width, target + HEAD_WIDTH, 0);
  for (int64_t i = 0; i < width; i++) {
    const int32_t quantised = bit_cast<int32_t>(source[i] / scale + rounding) - bit_cast<int32_t>(rounding);
    target[i] = is_number ? static_cast<int8_t>(quantised) : 0;
  }
  std::memcpy(target + HEAD_WIDTH, &scale, SCALE_BYTES);
}

// The images of a call; consecutive ones may share a prefix.
struct BatchLayout {
  const Cache* caches;
  const int64_t* positions;  // (images, queries)
  int64_t images, queries;
  std::vector<int64_t> groups;  // the first image of each group that shares a prefix, then the number of images

  BatchLayout(const Cache* caches, const int64_t* positions, int64_t images, int64_t queries)
      : caches(caches), positions(positions), images(images), queries(queries) {
    for (int64_t image = 0; image < images; image++)
      if (!image || !caches[image].prefix || caches[image].prefix != caches[image - 1].prefix) groups.push_back(image);
    groups.push_back(images);
  }

  int64_t capacity() const {  // of a buffer for the scores of a query
    int64_t longest = 0;
    for (int64_t i = 0; i < images; i++) longest = std::max(longest, caches[i].capacity + caches[i].prefix_length);
    return longest + LANES;
  }
};

// The heads of a block, and the number of heads in the blocks before it.
struct HeadsLayout {
  int64_t count, heads_before, width;
  float scale;  // of the scores
};

// Write the keys and values of an image and head. `qkv` is (rows, stride): queries, keys and values of all heads.
inline void write_cache(const BatchLayout& batch, const HeadsLayout& heads, const float* qkv, int64_t stride,
                        int64_t image, int64_t head) {
  const Cache& cache = batch.caches[image];
  for (int64_t n = 0; n < batch.queries; n++) {
    const int64_t row = image * batch.queries + n, position = batch.positions[row] - cache.prefix_length;
    for (int64_t is_value = 0; is_value < 2; is_value++)
      write_vector(qkv + row * stride + ((1 + is_value) * heads.count + head) * heads.width, heads.width,
                   cache.own + cache_offset(heads.heads_before, heads.count, is_value, head, cache.capacity) +
                       position * STRIDE);
  }
}

}  // namespace
