// Vectors as wide as the processor's registers, by the extensions of GCC and Clang. They must not be wider: GCC puts
// those together in memory, number by number, which was seen to take 30 times as long.

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

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1)));

struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Ask for what will be needed some microseconds later. The processor foresees it by itself, but too late where much is
// computed with each number: with 8 inputs iGPT-S's projections took up to twice as long.
template <class T>
inline void ahead(const T* from, int64_t count) {
  const char* first = reinterpret_cast<const char*>(from) + PREFETCHED_BYTES;
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(first + byte);
}

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }

inline Floats load(const BFloat16* from) {
  return bits_as<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)  // for which GCC would take two steps
  return bits_as<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
#elif defined(__AVX2__)
  return bits_as<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
#else
  const Shorts wider = __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Shorts);
  return __builtin_convertvector(__builtin_convertvector(wider, Ints), Floats);
#endif
}

// To the nearest, of two equally near ones to the even one, as torch rounds.
inline BFloat16 rounded_to_bfloat16(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  return {static_cast<uint16_t>(x != x ? 0x7FC0u : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

inline Floats all(float value) { return Floats{} + value; }

// Of two vectors: sums of neighbours, those of x and of y by turns of two. And a vector's quarters of 4 lanes, added up.
#if defined(__AVX512F__)
inline Floats neighbours(Floats x, Floats y) {
  return __builtin_shufflevector(x, y, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(x, y, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}

inline Four quarters(Floats x) {
  typedef float Eight __attribute__((vector_size(32)));
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
}
#elif defined(__AVX2__)
inline Floats neighbours(Floats x, Floats y) {
  return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
}

inline Four quarters(Floats x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
#else
inline Floats neighbours(Floats x, Floats y) {
  return __builtin_shufflevector(x, y, 0, 2, 4, 6) + __builtin_shufflevector(x, y, 1, 3, 5, 7);
}

inline Four quarters(Floats x) { return bits_as<Four>(x); }
#endif

// The sums of four vectors, each in an order that does not depend on the others or on its place.
inline Four sums(Floats a, Floats b, Floats c, Floats d) {
  return quarters(neighbours(neighbours(a, b), neighbours(c, d)));
}

inline float sum(Floats x) { return sums(x, Floats{}, Floats{}, Floats{})[0]; }

// e^x for x <= 0 to 2e-7: 2^n from the bits of n, times the series of e^r with |r| <= ln(2) / 2.
inline Floats exponential(Floats x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes whole
  x = x < -87.0f ? all(-87.0f) : x;
  const Floats shifted = x * 1.44269504f + round, n = shifted - round;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats series = all(1.0f / 5040);
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = series * r + factor;
  const Ints power = bits_as<Ints>(shifted) - bits_as<int32_t>(round);
  return series * bits_as<Floats>((power + 127) << 23);
}

constexpr float QUICK_GELU_FACTOR = 1.702f;

// 1 / (1 + e^-x), and 0 where `exponential` ends: times numbers below -1e30 its last value would be something.
inline Floats sigmoid(Floats x) {
  const Floats power = exponential(x < 0 ? x : -x);
  return (x < -87.0f ? Floats{} : x < 0 ? power : all(1)) / (power + 1);
}

inline Floats activated(Floats x) { return x * sigmoid(x * QUICK_GELU_FACTOR); }

}  // namespace
