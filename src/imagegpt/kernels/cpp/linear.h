// Linear layers for few rows of inputs, with tiled weights that are read once, in order.
//
// Each output is a sum over the inputs, in an order that does not depend on the number of rows and threads. So the
// result of a row is the same, bit for bit, in any batch.

#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t TILE = 32;  // outputs computed together
constexpr int64_t VECTORS = TILE / LANES;
constexpr int64_t MAX_ROWS = std::max<int64_t>(1, (REGISTERS - 4) / VECTORS);  // whose sums fit into registers

enum DType : int64_t { FLOAT32, BFLOAT16, INT8 };

// y = x W * scale + bias. Float32 weights are (tiles, inputs, TILE), narrower ones (tiles, inputs / 2, TILE, 2), with
// two inputs of each output side by side. Outputs and, for narrow weights, inputs are padded with zeros.
struct Linear {
  const void* weight;
  const float* scale;  // (outputs), padded, or null
  const float* bias;   // (outputs), padded, or null
  int64_t inputs, outputs;
  DType dtype;
};

template <class T>
constexpr bool IS_PAIRED = !std::is_same_v<T, float>;

// With AVX-512 BF16, which multiplies pairs of bfloat16, the inputs for narrow weights are rounded to bfloat16.
#ifdef __AVX512BF16__
typedef uint16_t NarrowInput;
inline NarrowInput to_narrow_input(float x) { return to_bfloat16(x).bits; }
#else
typedef float NarrowInput;
inline NarrowInput to_narrow_input(float x) { return x; }
#endif

// Rows multiplied together: as many as fit into registers, then fewer.
struct RowChunk {
  int64_t first, rows;
};

inline std::vector<RowChunk> split_rows(int64_t num_rows) {
  std::vector<RowChunk> chunks;
  for (int64_t first = 0; first < num_rows;) {
    int64_t rows = MAX_ROWS;
    for (int64_t fewer : {int64_t{8}, int64_t{4}, int64_t{2}, int64_t{1}})
      if (rows > num_rows - first && fewer < MAX_ROWS) rows = fewer;
    chunks.push_back({first, rows});
    first += rows;
  }
  return chunks;
}

// Inputs of a linear layer, up to `width` per row, rearranged: the rows of a chunk are interleaved.
class PackedInputs {
 public:
  PackedInputs(const std::vector<RowChunk>& chunks, int64_t num_rows, int64_t width, DType dtype)
      : width_(dtype == FLOAT32 ? width : (width + 1) / 2 * 2), dtype_(dtype), chunk_of_row_(num_rows) {
    for (const RowChunk& chunk : chunks)
      for (int64_t row = 0; row < chunk.rows; row++) chunk_of_row_[chunk.first + row] = chunk;
    if (dtype == FLOAT32) wide_.reset(new float[num_rows * width_]);
    if (dtype != FLOAT32) narrow_.reset(new NarrowInput[num_rows * width_]());  // zeros: a last pair may be half full
  }

  // Write columns of a row. Threads may write different columns and rows at the same time.
  void write(int64_t row, int64_t column, const float* values, int64_t count) {
    const RowChunk chunk = chunk_of_row_[row];
    const int64_t place = row - chunk.first;
    if (dtype_ == FLOAT32) {
      float* target = wide_.get() + chunk.first * width_ + column * chunk.rows + place;
      if (chunk.rows == 1)
        std::memcpy(target, values, count * sizeof(float));
      else
        for (int64_t i = 0; i < count; i++) target[i * chunk.rows] = values[i];
      return;
    }
    NarrowInput* target = narrow_.get() + chunk.first * width_;
    for (int64_t i = column; i < column + count; i++)
      target[(i / 2 * chunk.rows + place) * 2 + i % 2] = to_narrow_input(values[i - column]);
  }

  DType dtype() const { return dtype_; }
  const float* float32_inputs(const RowChunk& chunk) const { return wide_.get() + chunk.first * width_; }
  const NarrowInput* narrow_inputs(const RowChunk& chunk) const { return narrow_.get() + chunk.first * width_; }

 private:
  int64_t width_;
  DType dtype_;
  std::vector<RowChunk> chunk_of_row_;
  std::unique_ptr<float[]> wide_;
  std::unique_ptr<NarrowInput[]> narrow_;
};

template <int64_t R>
inline void accumulate(const float* x, const float* weight, FloatVec (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    const FloatVec weights = load(weight + v * LANES);
    for (int64_t r = 0; r < R; r++) sums[r][v] += x[r] * weights;
  }
}

#ifdef __AVX512BF16__
inline __m512bh load_pairs(const BFloat16* source) {
  return bit_cast<__m512bh>(*reinterpret_cast<const Uint32Vec*>(source));
}

inline __m512bh load_pairs(const int8_t* source) {
  return _mm512_cvtne2ps_pbh(bit_cast<__m512>(load(source + LANES)), bit_cast<__m512>(load(source)));
}

template <int64_t R, class T>
inline void accumulate(const NarrowInput* x, const T* weight, FloatVec (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    const __m512bh weights = load_pairs(weight + 2 * v * LANES);
    for (int64_t r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, x + 2 * r, sizeof(pair));
      const __m512bh inputs = bit_cast<__m512bh>(_mm512_set1_epi32(pair));
      sums[r][v] = bit_cast<FloatVec>(_mm512_dpbf16_ps(bit_cast<__m512>(sums[r][v]), weights, inputs));
    }
  }
}
#else
inline void load_split(const BFloat16* source, FloatVec& first, FloatVec& second) {
  const Uint32Vec both = *reinterpret_cast<const Uint32Vec*>(source);
  first = bit_cast<FloatVec>(both << 16), second = bit_cast<FloatVec>(both & 0xFFFF0000u);
}

inline void load_split(const int8_t* source, FloatVec& first, FloatVec& second) {
  const IntVec both = __builtin_convertvector(*reinterpret_cast<const Int16Vec*>(source), IntVec);
  first = __builtin_convertvector(both << 24 >> 24, FloatVec), second = __builtin_convertvector(both >> 8, FloatVec);
}

template <int64_t R, class T>
inline void accumulate(const NarrowInput* x, const T* weight, FloatVec (&sums)[R][VECTORS]) {
  for (int64_t v = 0; v < VECTORS; v++) {
    FloatVec first, second;
    load_split(weight + 2 * v * LANES, first, second);
    for (int64_t r = 0; r < R; r++) {
      sums[r][v] += x[2 * r] * first;
      sums[r][v] += x[2 * r + 1] * second;
    }
  }
}
#endif

// R rows times a tile of weights: (R, TILE) outputs.
template <int64_t R, class T, class Input>
void tile_sums(const Input* x, const T* weight, int64_t inputs, float* out) {
  constexpr int64_t STEP = IS_PAIRED<T> ? 2 : 1;
  FloatVec sums[R][VECTORS] = {};
  for (int64_t i = 0; i < inputs; i += STEP) {
    prefetch(weight + i * TILE, STEP * TILE);
    accumulate<R>(x + i * R, weight + i * TILE, sums);
  }
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < VECTORS; v++) store(out + r * TILE + v * LANES, sums[r][v]);
}

template <class T, class Input>
inline void dispatch_tile_sums(int64_t rows, const Input* x, const T* weight, int64_t inputs, float* out) {
  if (rows == MAX_ROWS) return tile_sums<MAX_ROWS>(x, weight, inputs, out);
  if constexpr (MAX_ROWS > 8)
    if (rows == 8) return tile_sums<8>(x, weight, inputs, out);
  if constexpr (MAX_ROWS > 4)
    if (rows == 4) return tile_sums<4>(x, weight, inputs, out);
  if (rows == 2) return tile_sums<2>(x, weight, inputs, out);
  tile_sums<1>(x, weight, inputs, out);
}

inline void multiply_tile(const Linear& linear, int64_t tile, const PackedInputs& x, const RowChunk& chunk,
                          float* out) {
#if PRECISION == 1
  const auto* weight = static_cast<const BFloat16*>(linear.weight);
#elif PRECISION == 2
  const auto* weight = static_cast<const int8_t*>(linear.weight);
#endif
#if PRECISION
  const int64_t padded_inputs = (linear.inputs + 1) / 2 * 2;
  if (linear.dtype != FLOAT32)
    return dispatch_tile_sums(chunk.rows, x.narrow_inputs(chunk), weight + tile * TILE * padded_inputs, padded_inputs,
                              out);
#endif
  const float* float32_weight = static_cast<const float*>(linear.weight);
  dispatch_tile_sums(chunk.rows, x.float32_inputs(chunk), float32_weight + tile * TILE * linear.inputs, linear.inputs,
                     out);
}

// Multiply all rows. Call it from all threads of a team, which divide the tiles. `finish(row, output, values)`
// receives TILE values at a time, from `output` on; those beyond the last output are zeros.
template <class Finish>
void multiply(const Linear& linear, const std::vector<RowChunk>& chunks, const PackedInputs& x, const Finish& finish) {
  const int64_t num_tiles = (linear.outputs + TILE - 1) / TILE;
#pragma omp for schedule(static)
  for (int64_t tile = 0; tile < num_tiles; tile++) {
    for (const RowChunk& chunk : chunks) {
      float sums[MAX_ROWS * TILE];
      multiply_tile(linear, tile, x, chunk, sums);
      for (int64_t row = 0; row < chunk.rows; row++) {
        float* values = sums + row * TILE;
        for (int64_t o = 0; o < TILE; o += LANES) {
          FloatVec value = load(values + o);
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
