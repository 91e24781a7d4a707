// Matrix products of which all parts lie in the cache: sums of many inputs times many outputs stay in registers.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace {

// What is multiplied at once: numbers of float32, or, where AVX-512 knows how, pairs of bfloat16, whose two products are
// added to one sum of float32.
template <class T>
struct Factors;

template <>
struct Factors<float> {
  typedef float Unit;
  static constexpr int64_t COUNT = 1;
};

inline Floats many(const float* from) { return load(from); }

inline Floats add_products(Floats sums, float one, Floats others) { return sums + one * others; }

inline void round_to(float* to, Floats values) { store(to, values); }

inline void side_by_side(float* to, const Floats (&rows)[1]) { store(to, rows[0]); }

#ifdef __AVX512BF16__
template <>
struct Factors<BFloat16> {
  typedef uint32_t Unit;
  static constexpr int64_t COUNT = 2;
};

inline __m512bh many(const uint32_t* from) { return bits_as<__m512bh>(*reinterpret_cast<const Words*>(from)); }

inline Floats add_products(Floats sums, uint32_t one, __m512bh others) {
  const __m512bh ones = bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(one)));
  return bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(sums), others, ones));
}

inline void round_to(BFloat16* to, Floats values) {
  const __m256bh rounded = _mm512_cvtneps_pbh(bits_as<__m512>(values));
  std::memcpy(to, &rounded, sizeof(rounded));
}

inline void side_by_side(uint32_t* to, const Floats (&rows)[2]) {
  Words words[2];
  for (int64_t row = 0; row < 2; row++)
    words[row] = __builtin_convertvector(bits_as<Halves>(_mm512_cvtneps_pbh(bits_as<__m512>(rows[row]))), Words);
  *reinterpret_cast<Words*>(to) = words[0] | words[1] << 16;
}
#endif

// Rows of numbers, of which the next begins after `stride`.
template <class T>
struct Matrix {
  T* first;
  int64_t stride;
  T* row(int64_t index) const { return first + index * stride; }
};

// Units of the left side of a product, by row and by what is summed over.
template <class Unit>
struct Left {
  const Unit* first;
  int64_t row, step;
};

template <class T>
inline Left<typename Factors<T>::Unit> left_of(const T* first, int64_t stride) {
  return {reinterpret_cast<const typename Factors<T>::Unit*>(first), stride / Factors<T>::COUNT, 1};
}

constexpr int64_t HEIGHT = REGISTERS == 32 ? 8 : 4, WIDTH = 2;  // of a tile, in rows and in vectors

template <int64_t R, int64_t V, bool ADD, class Unit>
inline void tile_of(const Left<Unit>& left, const Matrix<const Unit>& right, int64_t steps, const Matrix<float>& out) {
  Floats sums[R][V];
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < V; v++) sums[r][v] = ADD ? load(out.row(r) + v * LANES) : Floats{};
  for (int64_t step = 0; step < steps; step++) {
    decltype(many(right.first)) others[V];
    for (int64_t v = 0; v < V; v++) others[v] = many(right.row(step) + v * LANES);
    for (int64_t r = 0; r < R; r++)
      for (int64_t v = 0; v < V; v++)
        sums[r][v] = add_products(sums[r][v], left.first[r * left.row + step * left.step], others[v]);
  }
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < V; v++) store(out.row(r) + v * LANES, sums[r][v]);
}

template <int64_t R, bool ADD, class Unit>
inline void row_of_tiles(const Left<Unit>& left, const Matrix<const Unit>& right, int64_t steps,
                         const Matrix<float>& out, int64_t width) {
  int64_t n = 0;
  for (; n + WIDTH * LANES <= width; n += WIDTH * LANES)
    tile_of<R, WIDTH, ADD, Unit>(left, {right.first + n, right.stride}, steps, {out.first + n, out.stride});
  for (; n < width; n += LANES)
    tile_of<R, 1, ADD, Unit>(left, {right.first + n, right.stride}, steps, {out.first + n, out.stride});
}

// out (rows, width) = left (rows, steps) right (steps, width), or added to it; the width is a multiple of LANES. The sums
// of a row do not depend on the others.
template <bool ADD, class Unit>
[[gnu::noinline]] void multiply(const Left<Unit>& left, const Matrix<const Unit>& right, int64_t steps, const Matrix<float>& out,
                     int64_t rows, int64_t width) {
  const auto some = [&](auto count, int64_t r) {
    constexpr int64_t R = decltype(count)::value;
    row_of_tiles<R, ADD, Unit>({left.first + r * left.row, left.row, left.step}, right, steps,
                               {out.row(r), out.stride}, width);
  };
  int64_t r = 0;
  for (; r + HEIGHT <= rows; r += HEIGHT) some(std::integral_constant<int64_t, HEIGHT>(), r);
  for (; r < rows; r++) some(std::integral_constant<int64_t, 1>(), r);
}

// The right side of a product that sums over the columns of x: (columns / COUNT, room) units, zeros behind the last row.
template <class T>
void columns_first(const Matrix<const T>& x, int64_t rows, int64_t columns, typename Factors<T>::Unit* to,
                   int64_t room) {
  typedef typename Factors<T>::Unit Unit;
  for (int64_t first = 0; first < room; first += LANES)
    for (int64_t column = 0; column < columns / Factors<T>::COUNT; column++)
      for (int64_t row = first; row < first + LANES; row++) {
        Unit unit{};
        if (row < rows) std::memcpy(&unit, x.row(row) + column * Factors<T>::COUNT, sizeof(unit));
        to[column * room + row] = unit;
      }
}

// And of one that sums over its rows: (room / COUNT, columns) units.
template <class T>
void rows_together(const Matrix<const T>& x, int64_t rows, int64_t columns, typename Factors<T>::Unit* to,
                   int64_t room) {
  constexpr int64_t COUNT = Factors<T>::COUNT;
  for (int64_t row = 0; row < room; row += COUNT, to += columns)
    for (int64_t column = 0; column < columns; column++) {
      T together[COUNT] = {};
      for (int64_t i = 0; i < std::min(COUNT, rows - row); i++) together[i] = x.row(row + i)[column];
      std::memcpy(to + column, together, sizeof(together));
    }
}

}  // namespace
