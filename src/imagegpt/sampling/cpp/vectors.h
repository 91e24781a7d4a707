// Vectors of 16 numbers, by the extensions of GCC and Clang, which become AVX-512, AVX2 or NEON.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t PARALLEL_FROM = 1 << 16;  // multiplications below which waking a second thread takes longer

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));
typedef int16_t Shorts __attribute__((vector_size(32), aligned(2)));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1)));

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

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }

inline Floats load(const BFloat16* from) {
  return bits_as<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

inline Floats load(const int8_t* from) {
#ifdef __AVX512F__  // for which GCC would take two steps
  return bits_as<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
#endif
  const Shorts wider = __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Shorts);
  return __builtin_convertvector(__builtin_convertvector(wider, Ints), Floats);
}

inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

inline Floats all(float value) { return Floats{} + value; }

inline float sum(Floats x) {
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const Four four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[1]) + (four[2] + four[3]);
}


// The sums of four vectors, each in an order that does not depend on the others or on its place.
inline Four sums(Floats a, Floats b, Floats c, Floats d) {
#define PAIRS(x, y)                                                                                   \
  (__builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +          \
   __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31))
  const Floats ab = PAIRS(a, b), cd = PAIRS(c, d);
#undef PAIRS
  const Floats fours = __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                       __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  const Eight eight = __builtin_shufflevector(fours, fours, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(fours, fours, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
}

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

}  // namespace
