// Matrix multiplication for operands that fit into the CPU cache: the sums of a tile of outputs stay in registers.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace {

// The elements of operands: one float32, or, with AVX-512 BF16, a pair of bfloat16 whose two products are added to one
// float32 sum. PACKING is the number of values per element.
template <class T>
struct Operand;

template <>
struct Operand<float> {
  typedef float Element;
  static constexpr int64_t PACKING = 1;
};

inline FloatVec load_elements(const float* source) { return load(source); }

inline FloatVec multiply_add(FloatVec sums, float a_value, FloatVec b_values) { return sums + a_value * b_values; }

inline void store_rounded(float* to, FloatVec values) { store(to, values); }

inline void store_interleaved(float* to, const FloatVec (&rows)[1]) { store(to, rows[0]); }

#ifdef __AVX512BF16__
template <>
struct Operand<BFloat16> {
  typedef uint32_t Element;
  static constexpr int64_t PACKING = 2;
};

inline __m512bh load_elements(const uint32_t* source) {
  return bit_cast<__m512bh>(*reinterpret_cast<const Uint32Vec*>(source));
}

inline FloatVec multiply_add(FloatVec sums, uint32_t a_value, __m512bh b_values) {
  const __m512bh ones = bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(a_value)));
  return bit_cast<FloatVec>(_mm512_dpbf16_ps(bit_cast<__m512>(sums), b_values, ones));
}

inline void store_rounded(BFloat16* to, FloatVec values) {
  const __m256bh rounded = _mm512_cvtneps_pbh(bit_cast<__m512>(values));
  std::memcpy(to, &rounded, sizeof(rounded));
}

inline void store_interleaved(uint32_t* to, const FloatVec (&rows)[2]) {
  Uint32Vec words[2];
  for (int64_t row = 0; row < 2; row++)
    words[row] =
        __builtin_convertvector(bit_cast<Uint16Vec>(_mm512_cvtneps_pbh(bit_cast<__m512>(rows[row]))), Uint32Vec);
  *reinterpret_cast<Uint32Vec*>(to) = words[0] | words[1] << 16;
}
#endif

// A row-major matrix; consecutive rows are `stride` apart.
template <class T>
struct Matrix {
  T* first;
  int64_t stride;
  T* row(int64_t index) const { return first + index * stride; }
};

// The left operand, with a stride for its rows and one for the dimension that is summed over.
template <class Element>
struct LeftMatrix {
  const Element* first;
  int64_t row_stride, step_stride;
};

template <class T>
inline LeftMatrix<typename Operand<T>::Element> left_matrix(const T* first, int64_t stride) {
  return {reinterpret_cast<const typename Operand<T>::Element*>(first), stride / Operand<T>::PACKING, 1};
}

constexpr int64_t TILE_ROWS = REGISTERS == 32 ? 8 : 4, TILE_VECTORS = 2;  // of a register tile

template <int64_t R, int64_t V, bool ADD, class Element>
inline void multiply_tile(const LeftMatrix<Element>& a, const Matrix<const Element>& b, int64_t steps,
                          const Matrix<float>& out) {
  FloatVec sums[R][V];
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < V; v++) sums[r][v] = ADD ? load(out.row(r) + v * LANES) : FloatVec{};
  for (int64_t step = 0; step < steps; step++) {
    decltype(load_elements(b.first)) b_values[V];
    for (int64_t v = 0; v < V; v++) b_values[v] = load_elements(b.row(step) + v * LANES);
    for (int64_t r = 0; r < R; r++)
      for (int64_t v = 0; v < V; v++)
        sums[r][v] = multiply_add(sums[r][v], a.first[r * a.row_stride + step * a.step_stride], b_values[v]);
  }
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < V; v++) store(out.row(r) + v * LANES, sums[r][v]);
}

template <int64_t R, bool ADD, class Element>
inline void multiply_rows(const LeftMatrix<Element>& a, const Matrix<const Element>& b, int64_t steps,
                          const Matrix<float>& out, int64_t width) {
  int64_t n = 0;
  for (; n + TILE_VECTORS * LANES <= width; n += TILE_VECTORS * LANES)
    multiply_tile<R, TILE_VECTORS, ADD, Element>(a, {b.first + n, b.stride}, steps, {out.first + n, out.stride});
  for (; n < width; n += LANES)
    multiply_tile<R, 1, ADD, Element>(a, {b.first + n, b.stride}, steps, {out.first + n, out.stride});
}

// out (rows, width) = a (rows, steps) @ b (steps, width), or += if ADD; the width is a multiple of LANES. The result of
// a row does not depend on the other rows.
template <bool ADD, class Element>
[[gnu::noinline]] void multiply(const LeftMatrix<Element>& a, const Matrix<const Element>& b, int64_t steps,
                                const Matrix<float>& out, int64_t rows, int64_t width) {
  const auto multiply_chunk = [&](auto count, int64_t r) {
    constexpr int64_t R = decltype(count)::value;
    multiply_rows<R, ADD, Element>({a.first + r * a.row_stride, a.row_stride, a.step_stride}, b, steps,
                                   {out.row(r), out.stride}, width);
  };
  int64_t r = 0;
  for (; r + TILE_ROWS <= rows; r += TILE_ROWS) multiply_chunk(std::integral_constant<int64_t, TILE_ROWS>(), r);
  for (; r < rows; r++) multiply_chunk(std::integral_constant<int64_t, 1>(), r);
}

// Pack x^T as a right operand, which sums over the columns of x: (columns / PACKING, padded) elements, with zeros after
// the last row.
template <class T>
void pack_transposed(const Matrix<const T>& x, int64_t rows, int64_t columns, typename Operand<T>::Element* to,
                     int64_t padded) {
  typedef typename Operand<T>::Element Element;
  for (int64_t first = 0; first < padded; first += LANES)
    for (int64_t column = 0; column < columns / Operand<T>::PACKING; column++)
      for (int64_t row = first; row < first + LANES; row++) {
        Element element{};
        if (row < rows) std::memcpy(&element, x.row(row) + column * Operand<T>::PACKING, sizeof(element));
        to[column * padded + row] = element;
      }
}

// Pack x as a right operand, which sums over its rows: (padded / PACKING, columns) elements.
template <class T>
void pack_rows(const Matrix<const T>& x, int64_t rows, int64_t columns, typename Operand<T>::Element* to,
               int64_t padded) {
  constexpr int64_t PACKING = Operand<T>::PACKING;
  for (int64_t row = 0; row < padded; row += PACKING, to += columns)
    for (int64_t column = 0; column < columns; column++) {
      T packed[PACKING] = {};
      for (int64_t i = 0; i < std::min(PACKING, rows - row); i++) packed[i] = x.row(row + i)[column];
      std::memcpy(to + column, packed, sizeof(packed));
    }
}

}  // namespace
