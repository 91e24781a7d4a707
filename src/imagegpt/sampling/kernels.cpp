// What a pixel costs: matrix products with few inputs, and attention of few queries over a long cache. Both read much
// and compute little with it, so what counts is to read everything once, in order, with all lanes of the processor.
//
// Written with the vector extensions of GCC and Clang, which become AVX-512, AVX2 or NEON; and with torch's stable
// interface, which compiles in two seconds. Sums are taken in float32, in an order that does not depend on the number
// of threads or of other inputs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t TILE = 2 * LANES;      // outputs that are computed together
constexpr int64_t ROWS = 8;              // inputs that are: with TILE, their sums fill half of AVX-512's registers
constexpr int64_t PARALLEL_FROM = 1 << 16;  // multiplications below which waking a second thread takes longer

typedef float Floats __attribute__((vector_size(64), aligned(4)));
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
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const Four four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[1]) + (four[2] + four[3]);
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

const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

// ---------------------------------------------------------------- products

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
inline void add_pairs(const Pair* x, const T* weight, Floats (&sums)[R][2]) {
  for (int64_t half = 0; half < 2; half++) {
    const __m512bh weights = pairs(weight + half * TILE);
    for (int64_t r = 0; r < R; r++) {
      const __m512bh inputs = bits_as<__m512bh>(_mm512_set1_epi32(x[r]));
      sums[r][half] = bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(sums[r][half]), weights, inputs));
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
inline void add_pairs(const Pair* x, const T* weight, Floats (&sums)[R][2]) {
  for (int64_t half = 0; half < 2; half++) {
    Floats first, second;
    split(weight + half * TILE, first, second);
    for (int64_t r = 0; r < R; r++) sums[r][half] += x[r].first * first + x[r].second * second;
  }
}
#endif

// The inputs, ROWS of them at a time, so that those that meet the same weight lie side by side.
template <class T>
auto side_by_side(const float* x, int64_t num_rows, int64_t width) {
  typedef std::conditional_t<IN_PAIRS<T>, Pair, float> Input;
  const int64_t step = IN_PAIRS<T> ? 2 : 1, inputs = width / step;
  std::vector<Input> out(num_rows * inputs);
  for (int64_t first = 0; first < num_rows; first += ROWS) {
    const int64_t rows = std::min(ROWS, num_rows - first);
    Input* to = out.data() + first * inputs;
    for (int64_t i = 0; i < inputs; i++) {
      for (int64_t row = first; row < first + rows; row++) {
        const float* from = x + row * width + i * step;
        if constexpr (IN_PAIRS<T>)
          *to++ = pair_of(from[0], from[1]);
        else
          *to++ = from[0];
      }
    }
  }
  return out;
}

// Sums of R inputs times TILE outputs.
template <int64_t R, class T, class Input>
inline void tile(const Input* x, const T* weight, int64_t width, Floats (&sums)[R][2]) {
  for (auto& row : sums) row[0] = row[1] = Floats{};
  if constexpr (IN_PAIRS<T>) {
    for (int64_t i = 0; i < width / 2; i++) add_pairs<R>(x + i * R, weight + i * 2 * TILE, sums);
  } else {
    for (int64_t i = 0; i < width; i++) {
      const Floats low = load(weight + i * TILE), high = load(weight + i * TILE + LANES);
      for (int64_t r = 0; r < R; r++) {
        sums[r][0] += x[i * R + r] * low;
        sums[r][1] += x[i * R + r] * high;
      }
    }
  }
}

template <int64_t R, class T, class Input>
void rows_of_tile(const Input* x, const T* weight, int64_t width, const float* scale, float* out, int64_t stride,
                  int64_t num_outputs) {
  Floats sums[R][2];
  tile<R>(x, weight, width, sums);
  for (int64_t r = 0; r < R; r++) {
    float whole[TILE];
    for (int64_t half = 0; half < 2; half++) store(whole + half * LANES, sums[r][half]);
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
      const auto* from = inputs.data() + row * inputs_of_row;
      float* to = out + row * num_outputs + first;
      const float* scales = scale ? scale + first : nullptr;
      switch (std::min(ROWS, num_rows - row)) {
#define CASE(R) \
  case R: rows_of_tile<R>(from, mine, width, scales, to, num_outputs, outputs); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
      }
    }
  }
}

// x (M, I) in float32, the weight in tiles; gives (M, O).
Tensor tiled_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale, int64_t num_outputs) {
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
  else
    product(floats(in), static_cast<const BFloat16*>(from), scales, to, num_rows, width, num_outputs);
  return out;
}

// ---------------------------------------------------------------- attention

// Keys or values of one image and head, (positions, width) with a stride.
template <class T>
struct Rows {
  const T* first;
  int64_t stride, count;
};

template <int64_t V, class T>
void score(const Floats (&query)[V], const Rows<T>& keys, float* scores) {
  for (int64_t s = 0; s < keys.count; s++) {
    const T* key = keys.first + s * keys.stride;
    Floats products = query[0] * load(key);
    for (int64_t v = 1; v < V; v++) products += query[v] * load(key + v * LANES);
    scores[s] = sum(products);
  }
}

// Several positions at a time where heads are narrow: an addition takes four cycles, and others can begin meanwhile.
template <int64_t V, class T>
void mix(const float* weights, const Rows<T>& values, Floats (&mixed)[V]) {
  constexpr int64_t AT_ONCE = V < 4 ? 4 / V : 1;
  Floats parts[AT_ONCE][V] = {};
  int64_t s = 0;
  for (; s + AT_ONCE <= values.count; s += AT_ONCE)
    for (int64_t k = 0; k < AT_ONCE; k++)
      for (int64_t v = 0; v < V; v++)
        parts[k][v] += weights[s + k] * load(values.first + (s + k) * values.stride + v * LANES);
  for (; s < values.count; s++)
    for (int64_t v = 0; v < V; v++) parts[0][v] += weights[s] * load(values.first + s * values.stride + v * LANES);
  for (int64_t k = 0; k < AT_ONCE; k++)
    for (int64_t v = 0; v < V; v++) mixed[v] += parts[k][v];
}

// In place; gives the sum by which the weights must still be divided. There is room for whole vectors.
float unnormalised_softmax(float* scores, int64_t count) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::max());
  const float highest = *std::max_element(scores, scores + count);
  Floats total{};
  for (int64_t s = 0; s < padded; s += LANES) {
    const Floats weights = exponential(load(scores + s) - highest);
    store(scores + s, weights);
    total += weights;
  }
  return sum(total);
}

template <int64_t V, class T>
void attend_one(const float* query, const Rows<T>& shared_keys, const Rows<T>& shared_values, const Rows<T>& keys,
                const Rows<T>& values, float* scores, float* out) {
  Floats q[V], mixed[V];
  for (int64_t v = 0; v < V; v++) {
    q[v] = load(query + v * LANES);
    mixed[v] = Floats{};
  }
  score<V>(q, shared_keys, scores);
  score<V>(q, keys, scores + shared_keys.count);
  const float total = unnormalised_softmax(scores, shared_keys.count + keys.count);
  mix<V>(scores, shared_values, mixed);
  mix<V>(scores + shared_values.count, values, mixed);
  for (int64_t v = 0; v < V; v++) store(out + v * LANES, mixed[v] / total);
}

// The rows of image i and head h of a (B, H, S, D) tensor.
template <class T>
Rows<T> rows_of(const Tensor& x, int64_t i, int64_t h, int64_t count) {
  return {static_cast<const T*>(x.const_data_ptr()) + i * x.stride(0) + h * x.stride(1), x.stride(2), count};
}

template <int64_t V, class T>
void attend(const Tensor& query, const Tensor& keys, const Tensor& values, const int64_t* lengths,
            const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values, float* out) {
  const int64_t images = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  const int64_t prompts = shared_keys ? shared_keys->size(0) : images, group = images / prompts;
  const int64_t shared = shared_keys ? shared_keys->size(2) : 0, room = shared + keys.size(2) + LANES;
  const bool large = images * heads * queries * room * width > PARALLEL_FROM;
#pragma omp parallel if (large)
  {
    std::vector<float> scores(room);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < prompts * heads; item++) {
      const int64_t prompt = item / heads, head = item % heads;
      const Rows<T> none{nullptr, 0, 0};
      const Rows<T> past_keys = shared ? rows_of<T>(*shared_keys, prompt, head, shared) : none;
      const Rows<T> past_values = shared ? rows_of<T>(*shared_values, prompt, head, shared) : none;
      for (int64_t image = prompt * group; image < (prompt + 1) * group; image++)
        for (int64_t n = 0; n < queries; n++) {
          const int64_t length = lengths[image * queries + n];
          const float* q =
              floats(query) + image * query.stride(0) + head * query.stride(1) + n * query.stride(2);
          attend_one<V>(q, past_keys, past_values, rows_of<T>(keys, image, head, length),
                        rows_of<T>(values, image, head, length), scores.data(),
                        out + ((image * queries + n) * heads + head) * width);
        }
    }
  }
}

template <class T>
void attend_any_width(const Tensor& query, const Tensor& keys, const Tensor& values, const int64_t* lengths,
                      const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values,
                      float* out) {
  switch (query.size(3) / LANES) {
#define CASE(V) \
  case V: attend<V, T>(query, keys, values, lengths, shared_keys, shared_values, out); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(12)
#undef CASE
  }
}

// Query (B, H, n, D), scaled, in float32; keys and values (B, H, S, D) in float32 or bfloat16, of which each query sees
// the first `lengths` (B, n); and those of G prompts, (G, H, P, D), seen whole by B / G images each. Gives (B, n, H, D).
Tensor cached_attention(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& lengths,
                        const std::optional<Tensor>& shared_keys, const std::optional<Tensor>& shared_values) {
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(2), query.size(1), query.size(3)});
  const Tensor counts = torch::stable::contiguous(lengths);
  const int64_t* count = static_cast<const int64_t*>(counts.const_data_ptr());
  float* to = static_cast<float*>(out.mutable_data_ptr());
  if (keys.scalar_type() == ScalarType::Float)
    attend_any_width<float>(query, keys, values, count, shared_keys, shared_values, to);
  else
    attend_any_width<BFloat16>(query, keys, values, count, shared_keys, shared_values, to);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(imagegpt, m) {
  m.def("tiled_linear(Tensor x, Tensor weight, Tensor? scale, int num_outputs) -> Tensor");
  m.def(
      "cached_attention(Tensor query, Tensor keys, Tensor values, Tensor lengths, Tensor? shared_keys, "
      "Tensor? shared_values) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(imagegpt, CPU, m) {
  m.impl("tiled_linear", TORCH_BOX(&tiled_linear));
  m.impl("cached_attention", TORCH_BOX(&cached_attention));
}
