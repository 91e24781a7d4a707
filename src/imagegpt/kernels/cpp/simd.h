// SIMD vectors as wide as the registers, with the vector extensions of GCC and Clang. Wider vectors are a trap: GCC
// assembles them in memory, element by element, which took 30 times as long.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int64_t LANES = 4, REGISTERS = 32;
#else
constexpr int64_t LANES = 4, REGISTERS = 16;
#endif
constexpr int64_t PREFETCHED_BYTES = 2048;

typedef float FloatVec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Uint32Vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Uint16Vec __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int16_t Int16Vec __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int8_t Int8Vec __attribute__((vector_size(LANES), aligned(1)));

struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From source) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &source, sizeof(to));
  return to;
}

// Prefetch data that is needed in some microseconds. The hardware prefetcher is too late where each element is used
// many times: with 8 inputs, iGPT-S's projections took up to twice as long.
template <class T>
inline void prefetch(const T* source, int64_t count) {
  const char* first = reinterpret_cast<const char*>(source) + PREFETCHED_BYTES;
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(first + byte);
}

inline FloatVec load(const float* source) { return *reinterpret_cast<const FloatVec*>(source); }

inline FloatVec load(const BFloat16* source) {
  return bit_cast<FloatVec>(__builtin_convertvector(*reinterpret_cast<const Uint16Vec*>(source), Uint32Vec) << 16);
}

inline FloatVec load(const int8_t* source) {
#if defined(__AVX512F__)  // GCC would generate two steps for the vector conversion below
  return bit_cast<FloatVec>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)))));
#elif defined(__AVX2__)
  return bit_cast<FloatVec>(
      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source)))));
#else
  const Int16Vec shorts = __builtin_convertvector(*reinterpret_cast<const Int8Vec*>(source), Int16Vec);
  return __builtin_convertvector(__builtin_convertvector(shorts, IntVec), FloatVec);
#endif
}

// Rounds to nearest even, as torch does.
inline BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>(x != x ? 0x7FC0u : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline void store(float* to, FloatVec values) { *reinterpret_cast<FloatVec*>(to) = values; }

inline FloatVec broadcast(float value) { return FloatVec{} + value; }

// add_neighbours: pairwise sums of x and of y, interleaved in groups of two. add_quarters: the sum of a vector's groups
// of 4 lanes.
#if defined(__AVX512F__)
inline FloatVec add_neighbours(FloatVec x, FloatVec y) {
  return __builtin_shufflevector(x, y, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(x, y, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}

inline Float4 add_quarters(FloatVec x) {
  typedef float Eight __attribute__((vector_size(32)));
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
}
#elif defined(__AVX2__)
inline FloatVec add_neighbours(FloatVec x, FloatVec y) {
  return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
}

inline Float4 add_quarters(FloatVec x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
#else
inline FloatVec add_neighbours(FloatVec x, FloatVec y) {
  return __builtin_shufflevector(x, y, 0, 2, 4, 6) + __builtin_shufflevector(x, y, 1, 3, 5, 7);
}

inline Float4 add_quarters(FloatVec x) { return bit_cast<Float4>(x); }
#endif

// The sums of four vectors. The order of each sum does not depend on the other vectors, nor on its position.
inline Float4 sums(FloatVec a, FloatVec b, FloatVec c, FloatVec d) {
  return add_quarters(add_neighbours(add_neighbours(a, b), add_neighbours(c, d)));
}

inline float sum(FloatVec x) { return sums(x, FloatVec{}, FloatVec{}, FloatVec{})[0]; }

// e^x for x <= 0 with a relative error of 2e-7: 2^n from the bits of n, times the series of e^r with |r| <= ln(2) / 2.
inline FloatVec exp_nonpositive(FloatVec x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? broadcast(-87.0f) : x;
  const FloatVec shifted = x * 1.44269504f + round, n = shifted - round;
  const FloatVec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  FloatVec series = broadcast(1.0f / 5040);
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = series * r + factor;
  const IntVec power = bit_cast<IntVec>(shifted) - bit_cast<int32_t>(round);
  return series * bit_cast<FloatVec>((power + 127) << 23);
}

constexpr float QUICK_GELU_FACTOR = 1.702f;

// 1 / (1 + e^-x), and 0 below the range of `exp_nonpositive`, whose last value times x < -1e30 would not be small.
inline FloatVec sigmoid(FloatVec x) {
  const FloatVec power = exp_nonpositive(x < 0 ? x : -x);
  return (x < -87.0f ? FloatVec{} : x < 0 ? power : broadcast(1)) / (power + 1);
}

inline FloatVec quick_gelu(FloatVec x) { return x * sigmoid(x * QUICK_GELU_FACTOR); }

}  // namespace
