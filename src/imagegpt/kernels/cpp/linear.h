// Matrix products of few inputs with a weight stored in tiles: every weight is read once, in order.
//
// Each output is one sum over the inputs, taken in the same order whatever the number of rows and threads. So a row's
// result does not depend, in any bit, on the rows that are computed with it.

#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t TILE = 32;  // outputs that are computed together
constexpr int64_t VECTORS = TILE / LANES;
constexpr int64_t MOST_ROWS = std::max<int64_t>(1, (REGISTERS - 4) / VECTORS);  // whose sums stay in registers

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8 };

// y = x W * scale + bias. Float32 weights lie as (tiles, inputs, TILE), narrower ones as (tiles, inputs / 2, TILE, 2),
// two inputs of an output side by side; outputs and, for narrow weights, inputs are padded with zeros.
struct Linear {
  const void* weight;
  const float* scale;  // of each output, padded; null if there is none
  const float* bias;   // likewise
  int64_t inputs, outputs;
  Kind kind;
};

template <class T>
constexpr bool IN_PAIRS = !std::is_same_v<T, float>;

// Where the processor multiplies pairs of bfloat16 (AVX-512 BF16), the inputs of narrow weights are rounded to it.
#ifdef __AVX512BF16__
typedef uint16_t Narrow;
inline Narrow narrowed(float x) { return rounded_to_bfloat16(x).bits; }
#else
typedef float Narrow;
inline Narrow narrowed(float x) { return x; }
#endif

// Rows are multiplied some at a time: as many as fit into the registers, then fewer.
struct Chunk {
  int64_t first, rows;
};

inline std::vector<Chunk> chunks_of(int64_t num_rows) {
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < num_rows;) {
    int64_t rows = MOST_ROWS;
    for (int64_t fewer : {int64_t{8}, int64_t{4}, int64_t{2}, int64_t{1}})
      if (rows > num_rows - first && fewer < MOST_ROWS) rows = fewer;
    chunks.push_back({first, rows});
    first += rows;
  }
  return chunks;
}

// Inputs of products, `width` at most: those of a chunk's rows that meet the same weight lie side by side.
class Packed {
 public:
  Packed(const std::vector<Chunk>& chunks, int64_t num_rows, int64_t width, Kind kind)
      : width_(kind == FLOAT32 ? width : (width + 1) / 2 * 2), kind_(kind), chunk_of_row_(num_rows) {
    for (const Chunk& chunk : chunks)
      for (int64_t row = 0; row < chunk.rows; row++) chunk_of_row_[chunk.first + row] = chunk;
    if (kind == FLOAT32) wide_.reset(new float[num_rows * width_]);
    if (kind != FLOAT32) narrow_.reset(new Narrow[num_rows * width_]());  // the last pair may have one input only
  }

  // Set some columns of a row. Different columns and rows may be set by different threads.
  void put(int64_t row, int64_t column, const float* values, int64_t count) {
    const Chunk chunk = chunk_of_row_[row];
    const int64_t among = row - chunk.first;
    if (kind_ == FLOAT32) {
      float* to = wide_.get() + chunk.first * width_ + column * chunk.rows + among;
      if (chunk.rows == 1) std::memcpy(to, values, count * sizeof(float));
      else
        for (int64_t i = 0; i < count; i++) to[i * chunk.rows] = values[i];
      return;
    }
    Narrow* to = narrow_.get() + chunk.first * width_;
    for (int64_t i = column; i < column + count; i++)
      to[(i / 2 * chunk.rows + among) * 2 + i % 2] = narrowed(values[i - column]);
  }

  Kind kind() const { return kind_; }
  const float* wide(const Chunk& chunk) const { return wide_.get() + chunk.first * width_; }
  const Narrow* narrow(const Chunk& chunk) const { return narrow_.get() + chunk.first * width_; }

 private:
  int64_t width_;
  Kind kind_;
  std::vector<Chunk> chunk_of_row_;
  std::unique_ptr<float[]> wide_;
  std::unique_ptr<Narrow[]> narrow_;
};

template <int64_t R>
inline void add(const float* x, const float* weight, Floats (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    const Floats weights = load(weight + v * LANES);
    for (int64_t r = 0; r < R; r++) sums[r][v] += x[r] * weights;
  }
}

#ifdef __AVX512BF16__
inline __m512bh pairs(const BFloat16* from) { return bits_as<__m512bh>(*reinterpret_cast<const Words*>(from)); }

inline __m512bh pairs(const int8_t* from) {
  return _mm512_cvtne2ps_pbh(bits_as<__m512>(load(from + LANES)), bits_as<__m512>(load(from)));
}

template <int64_t R, class T>
inline void add(const Narrow* x, const T* weight, Floats (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    const __m512bh weights = pairs(weight + 2 * v * LANES);
    for (int64_t r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, x + 2 * r, sizeof(pair));
      const __m512bh inputs = bits_as<__m512bh>(_mm512_set1_epi32(pair));
      sums[r][v] = bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(sums[r][v]), weights, inputs));
    }
  }
}
#else
inline void split(const BFloat16* from, Floats& first, Floats& second) {
  const Words both = *reinterpret_cast<const Words*>(from);
  first = bits_as<Floats>(both << 16), second = bits_as<Floats>(both & 0xFFFF0000u);
}

inline void split(const int8_t* from, Floats& first, Floats& second) {
  const Ints both = __builtin_convertvector(*reinterpret_cast<const Shorts*>(from), Ints);
  first = __builtin_convertvector(both << 24 >> 24, Floats), second = __builtin_convertvector(both >> 8, Floats);
}

template <int64_t R, class T>
inline void add(const Narrow* x, const T* weight, Floats (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    Floats first, second;
    split(weight + 2 * v * LANES, first, second);
    for (int64_t r = 0; r < R; r++) {
      sums[r][v] += x[2 * r] * first;
      sums[r][v] += x[2 * r + 1] * second;
    }
  }
}
#endif

// Sums of R rows times TILE outputs, (R, TILE).
template <int64_t R, class T, class Input>
void tile_sums(const Input* x, const T* weight, int64_t inputs, float* out) {
  constexpr int64_t STEP = IN_PAIRS<T> ? 2 : 1;
  Floats sums[R][VECTORS] = {};
  for (int64_t i = 0; i < inputs; i += STEP) {
    ahead(weight + i * TILE, STEP * TILE);
    add<R>(x + i * R, weight + i * TILE, sums);
  }
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < VECTORS; v++) store(out + r * TILE + v * LANES, sums[r][v]);
}

template <class T, class Input>
inline void tile_sums_of(int64_t rows, const Input* x, const T* weight, int64_t inputs, float* out) {
  if (rows == MOST_ROWS) return tile_sums<MOST_ROWS>(x, weight, inputs, out);
  if constexpr (MOST_ROWS > 8)
    if (rows == 8) return tile_sums<8>(x, weight, inputs, out);
  if constexpr (MOST_ROWS > 4)
    if (rows == 4) return tile_sums<4>(x, weight, inputs, out);
  if (rows == 2) return tile_sums<2>(x, weight, inputs, out);
  tile_sums<1>(x, weight, inputs, out);
}

inline void tile_of(const Linear& linear, int64_t tile, const Packed& x, const Chunk& chunk, float* out) {
#if PRECISION == 1
  const auto* weight = static_cast<const BFloat16*>(linear.weight);
#elif PRECISION == 2
  const auto* weight = static_cast<const int8_t*>(linear.weight);
#endif
#if PRECISION
  const int64_t narrow_inputs = (linear.inputs + 1) / 2 * 2;
  if (linear.kind != FLOAT32)
    return tile_sums_of(chunk.rows, x.narrow(chunk), weight + tile * TILE * narrow_inputs, narrow_inputs, out);
#endif
  const float* wide = static_cast<const float*>(linear.weight);
  tile_sums_of(chunk.rows, x.wide(chunk), wide + tile * TILE * linear.inputs, linear.inputs, out);
}

// Multiplies all rows; to be called by all threads of a team, which share the tiles. `finish(row, output, values)` gets
// TILE values at a time, from `output` on; of the last tile those beyond the outputs are zeros.
template <class Finish>
void multiply(const Linear& linear, const std::vector<Chunk>& chunks, const Packed& x, const Finish& finish) {
  const int64_t num_tiles = (linear.outputs + TILE - 1) / TILE;
#pragma omp for schedule(static)
  for (int64_t tile = 0; tile < num_tiles; tile++) {
    for (const Chunk& chunk : chunks) {
      float sums[MOST_ROWS * TILE];
      tile_of(linear, tile, x, chunk, sums);
      for (int64_t row = 0; row < chunk.rows; row++) {
        float* values = sums + row * TILE;
        for (int64_t o = 0; o < TILE; o += LANES) {
          Floats value = load(values + o);
          if (linear.scale) value *= load(linear.scale + tile * TILE + o);
          if (linear.bias) value += load(linear.bias + tile * TILE + o);
          store(values + o, value);
        }
        finish(chunk.first + row, tile * TILE, values);
      }
    }
  }
}

}  // namespace
