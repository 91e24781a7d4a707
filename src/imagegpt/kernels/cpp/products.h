// Matrix products of few inputs with a weight in tiles: every weight is read once, in order.

#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>

#include "checks.h"
#include "tensors.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE = 32;  // outputs that are computed together
constexpr int64_t VECTORS = TILE / LANES;
constexpr int64_t ROWS = (REGISTERS - 4) / VECTORS;  // inputs that are: their sums stay in registers

// Weights of float32 lie as (tiles, width, TILE). Of narrower types two weights of an output are neighbours, (tiles,
// width / 2, TILE, 2): AVX-512 multiplies such pairs of bfloat16, two inputs at a time, and adds both to a float32 sum.
// Inputs are rounded to bfloat16 for that, in batches of any size, so that a batch does not decide what comes out.
template <class T>
constexpr bool IN_PAIRS = !std::is_same_v<T, float>;

#ifdef __AVX512BF16__
typedef uint32_t Pair;

inline Pair pair_of(float first, float second) {
  const auto rounded = [](float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    return x != x ? 0x7FC0u : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  };
  return rounded(first) | rounded(second) << 16;
}

inline __m512bh pairs(const BFloat16* from) { return bits_as<__m512bh>(*reinterpret_cast<const Words*>(from)); }

inline __m512bh pairs(const int8_t* from) {
  return _mm512_cvtne2ps_pbh(bits_as<__m512>(load(from + LANES)), bits_as<__m512>(load(from)));
}

template <int64_t R, class T>
inline void add_pairs(const Pair* x, const T* weight, Floats (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    const __m512bh weights = pairs(weight + 2 * v * LANES);
    for (int64_t r = 0; r < R; r++) {
      const __m512bh inputs = bits_as<__m512bh>(_mm512_set1_epi32(x[r]));
      sums[r][v] = bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(sums[r][v]), weights, inputs));
    }
  }
}
#else
struct Pair {
  float first, second;
};

inline Pair pair_of(float first, float second) { return {first, second}; }

inline void split(const BFloat16* from, Floats& first, Floats& second) {
  const Words both = *reinterpret_cast<const Words*>(from);
  first = bits_as<Floats>(both << 16), second = bits_as<Floats>(both & 0xFFFF0000u);
}

inline void split(const int8_t* from, Floats& first, Floats& second) {
  const Ints both = __builtin_convertvector(*reinterpret_cast<const Shorts*>(from), Ints);
  first = __builtin_convertvector(both << 24 >> 24, Floats), second = __builtin_convertvector(both >> 8, Floats);
}

template <int64_t R, class T>
inline void add_pairs(const Pair* x, const T* weight, Floats (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    Floats first, second;
    split(weight + 2 * v * LANES, first, second);
    for (int64_t r = 0; r < R; r++) sums[r][v] += x[r].first * first + x[r].second * second;
  }
}
#endif

// Calls a function with a number from 1 to ROWS that the compiler knows.
template <class Function>
inline void with_rows(int64_t rows, Function function) {
  switch (rows) {
#define CASE(R) \
  case R: function(std::integral_constant<int64_t, std::min<int64_t>(R, ROWS)>()); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
    default: refuse("multiplies 1 to 14 inputs at a time, not " + std::to_string(rows));
  }
  static_assert(ROWS <= 14);
}

// The inputs, ROWS of them at a time, so that those that meet the same weight lie side by side.
template <class T>
auto side_by_side(const float* x, int64_t num_rows, int64_t width) {
  typedef std::conditional_t<IN_PAIRS<T>, Pair, float> Input;
  const int64_t step = IN_PAIRS<T> ? 2 : 1, inputs = width / step;
  std::unique_ptr<Input[]> out(new Input[num_rows * inputs]);
  for (int64_t first = 0; first < num_rows; first += ROWS) {
    with_rows(std::min(ROWS, num_rows - first), [&](auto rows) {
      const float* from = x + first * width;
      Input* to = out.get() + first * inputs;
      for (int64_t i = 0; i < inputs; i++, from += step) {
        for (int64_t row = 0; row < rows; row++) {
          if constexpr (IN_PAIRS<T>)
            *to++ = pair_of(from[row * width], from[row * width + 1]);
          else
            *to++ = from[row * width];
        }
      }
    });
  }
  return out;
}

// Sums of R inputs times TILE outputs.
template <int64_t R, class T, class Input>
inline void tile(const Input* x, const T* weight, int64_t width, Floats (&sums)[R][VECTORS]) {
  for (auto& row : sums)
    for (auto& part : row) part = Floats{};
  if constexpr (IN_PAIRS<T>) {
    for (int64_t i = 0; i < width / 2; i++) {
      ahead(weight + i * 2 * TILE, 2 * TILE);
      add_pairs<R>(x + i * R, weight + i * 2 * TILE, sums);
    }
  } else {
    for (int64_t i = 0; i < width; i++) {
      ahead(weight + i * TILE, TILE);
      Floats weights[VECTORS];
      for (int64_t v = 0; v < VECTORS; v++) weights[v] = load(weight + i * TILE + v * LANES);
      for (int64_t r = 0; r < R; r++)
        for (int64_t v = 0; v < VECTORS; v++) sums[r][v] += x[i * R + r] * weights[v];
    }
  }
}

template <int64_t R, class T, class Input>
void rows_of_tile(const Input* x, const T* weight, int64_t width, const float* scale, float* out, int64_t stride,
                  int64_t num_outputs) {
  Floats sums[R][VECTORS];
  tile<R>(x, weight, width, sums);
  for (int64_t r = 0; r < R; r++) {
    float whole[TILE];
    for (int64_t v = 0; v < VECTORS; v++) store(whole + v * LANES, sums[r][v]);
    for (int64_t o = 0; o < num_outputs; o++) out[r * stride + o] = scale ? whole[o] * scale[o] : whole[o];
  }
}

template <class T>
void product(const float* x, const T* weight, const float* scale, float* out, int64_t num_rows, int64_t width,
             int64_t num_outputs) {
  const auto inputs = side_by_side<T>(x, num_rows, width);
  const int64_t inputs_of_row = width / (IN_PAIRS<T> ? 2 : 1);
  const int64_t num_tiles = (num_outputs + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) if (num_rows * width * num_outputs > PARALLEL_FROM)
  for (int64_t t = 0; t < num_tiles; t++) {
    const int64_t first = t * TILE, outputs = std::min(TILE, num_outputs - first);
    const T* mine = weight + first * width;
    for (int64_t row = 0; row < num_rows; row += ROWS) {
      const auto* from = inputs.get() + row * inputs_of_row;
      float* to = out + row * num_outputs + first;
      const float* scales = scale ? scale + first : nullptr;
      with_rows(std::min(ROWS, num_rows - row), [&](auto rows) {
        rows_of_tile<rows>(from, mine, width, scales, to, num_outputs, outputs);
      });
    }
  }
}

void check_product(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale, int64_t num_outputs) {
  check_type(x, "x", {ScalarType::Float});
  check_shape(x, "x", {ANY, ANY});
  check_type(weight, "weight", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char});
  const int64_t width = x.size(1), num_tiles = (num_outputs + TILE - 1) / TILE;
  if (num_outputs < 1) refuse("was asked for " + std::to_string(num_outputs) + " outputs: it takes at least 1");
  if (weight.scalar_type() == ScalarType::Float) {
    check_shape(weight, "weight", {num_tiles, width, TILE});
  } else {
    check_multiple(width, 2, "x");
    check_shape(weight, "weight", {num_tiles, width / 2, TILE, 2});
  }
  check_contiguous(weight, "weight");
  if (!scale) return;
  check_type(*scale, "scale", {ScalarType::Float});
  check_shape(*scale, "scale", {num_outputs});
  check_contiguous(*scale, "scale");
}

// x (M, I) in float32, the weight in tiles; gives (M, O).
Tensor tiled_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale, int64_t num_outputs) {
  check_product(x, weight, scale, num_outputs);
  const int64_t num_rows = x.size(0), width = x.size(1);
  const Tensor in = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(in, {num_rows, num_outputs});
  const float* scales = scale ? floats(*scale) : nullptr;
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const void* from = weight.const_data_ptr();
  if (weight.scalar_type() == ScalarType::Float)
    product(floats(in), static_cast<const float*>(from), scales, to, num_rows, width, num_outputs);
  else if (weight.scalar_type() == ScalarType::Char)
    product(floats(in), static_cast<const int8_t*>(from), scales, to, num_rows, width, num_outputs);
  else  // bfloat16: there is no other
    product(floats(in), static_cast<const BFloat16*>(from), scales, to, num_rows, width, num_outputs);
  return out;
}

}  // namespace
