// The norm and the activation with their gradients, in one pass where torch takes one for each operation.

#pragma once

#include <cmath>
#include <tuple>
#include <vector>

#include "checks.h"
#include "tensors.h"
#include "tiles.h"

namespace {

constexpr int64_t ROWS_TOGETHER = 32;  // whose part of the weight's gradient is summed first: not the threads decide
constexpr int64_t FEW_NUMBERS = 1 << 14;  // below which waking a second thread takes longer

// By the type of the numbers, if there are kernels for it: training.py asks before.
template <class Function>
void with_type(const Tensor& x, Function function) {
  if (x.scalar_type() == ScalarType::Float) return function(float());
#ifdef __AVX512BF16__
  if (x.scalar_type() == ScalarType::BFloat16) return function(BFloat16());
#endif
  refuse(std::string("for ") + name_of(x.scalar_type()) + " does not exist on this processor: convert to float32");
}

inline float scale_of_row(const float* x, int64_t width, double eps) {
  Floats squares{};
  for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
  return static_cast<float>(1 / std::sqrt(static_cast<double>(sum(squares)) / width + eps));
}

// x (rows, width) in float32, without gaps, the width a multiple of 16; gives x * rsqrt(mean(x^2) + eps) * weight.
Tensor norm(const Tensor& x, const Tensor& weight, double eps, Tensor out) {
  check_norm(x, weight);
  check_like(out, "out", x, out.scalar_type());
  const int64_t rows = x.size(0), width = x.size(1);
  const float *from = floats(x), *weights = floats(weight);
  with_type(out, [&](auto number) {
    auto* to = static_cast<decltype(number)*>(out.mutable_data_ptr());
#pragma omp parallel for schedule(static) if (rows * width > FEW_NUMBERS)
    for (int64_t row = 0; row < rows; row++) {
      const float scale = scale_of_row(from + row * width, width, eps);
      for (int64_t i = 0; i < width; i += LANES)
        round_to(to + row * width + i, load(from + row * width + i) * scale * load(weights + i));
    }
  });
  return out;
}

// A norm does not change when x grows, so that of its gradient what points along x is taken out.
template <class T>
void norm_backwards(const T* grads, const float* from, const float* weights, int64_t rows, int64_t width, double eps,
                    float* to, float* to_weight) {
  const int64_t parts = (rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
  std::vector<float> of_parts(parts * width, 0.0f);
#pragma omp parallel for schedule(static) if (rows * width > FEW_NUMBERS)
  for (int64_t part = 0; part < parts; part++) {
    float* of_part = of_parts.data() + part * width;
    for (int64_t row = part * ROWS_TOGETHER; row < std::min(rows, (part + 1) * ROWS_TOGETHER); row++) {
      const float* given = from + row * width;
      const T* g = grads + row * width;
      const float scale = scale_of_row(given, width, eps);
      Floats products{};
      for (int64_t i = 0; i < width; i += LANES) {
        const Floats product = load(g + i) * load(given + i);
        store(of_part + i, load(of_part + i) + product * scale);
        products += product * load(weights + i);
      }
      const float along = sum(products) * scale * scale / static_cast<float>(width);
      for (int64_t i = 0; i < width; i += LANES)
        store(to + row * width + i, (load(g + i) * load(weights + i) - load(given + i) * along) * scale);
    }
  }
  for (int64_t i = 0; i < width; i += LANES) {
    Floats total{};
    for (int64_t part = 0; part < parts; part++) total += load(of_parts.data() + part * width + i);
    store(to_weight + i, total);
  }
}

// The gradients of x and weight.
std::tuple<Tensor, Tensor> norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, double eps) {
  check_norm(x, weight);
  check_like(grad, "grad", x, grad.scalar_type());
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor for_x = torch::stable::new_empty(x, {rows, width}), for_weight = torch::stable::new_empty(weight, {width});
  with_type(grad, [&](auto number) {
    norm_backwards(static_cast<const decltype(number)*>(grad.const_data_ptr()), floats(x), floats(weight), rows, width,
                   eps, static_cast<float*>(for_x.mutable_data_ptr()),
                   static_cast<float*>(for_weight.mutable_data_ptr()));
  });
  return {for_x, for_weight};
}

// `function` of all numbers, LANES at a time, from one or two tensors of one type without gaps into a new one.
template <class T, class Function>
void for_all(const T* x, const T* y, T* out, int64_t count, Function function) {
  const int64_t whole = count / LANES * LANES;
#pragma omp parallel for schedule(static) if (count > FEW_NUMBERS)
  for (int64_t i = 0; i < whole; i += LANES) round_to(out + i, function(load(x + i), load(y + i)));
  if (whole == count) return;
  T last[3][LANES] = {};
  std::memcpy(last[0], x + whole, (count - whole) * sizeof(T));
  std::memcpy(last[1], y + whole, (count - whole) * sizeof(T));
  round_to(last[2], function(load(last[0]), load(last[1])));
  std::memcpy(out + whole, last[2], (count - whole) * sizeof(T));
}

// x sigmoid(1.702 x)
Tensor quick_gelu(const Tensor& x) {
  check_like(x, "x", x, x.scalar_type());
  Tensor out = torch::stable::empty_like(x);
  with_type(x, [&](auto number) {
    typedef decltype(number) T;
    const T* from = static_cast<const T*>(x.const_data_ptr());
    for_all(from, from, static_cast<T*>(out.mutable_data_ptr()), x.numel(),
            [](Floats x, Floats) { return activated(x); });
  });
  return out;
}

Tensor quick_gelu_backward(const Tensor& grad, const Tensor& x) {
  check_like(x, "x", x, x.scalar_type());
  check_like(grad, "grad", x, x.scalar_type());
  Tensor out = torch::stable::empty_like(x);
  with_type(x, [&](auto number) {
    typedef decltype(number) T;
    for_all(static_cast<const T*>(grad.const_data_ptr()), static_cast<const T*>(x.const_data_ptr()),
            static_cast<T*>(out.mutable_data_ptr()), x.numel(), [](Floats grad, Floats x) {
              const Floats scaled = x * QUICK_GELU_FACTOR, share = sigmoid(scaled);
// Infinite from 2e38 on, and infinity times 0 is no number.
              const Floats finite = scaled > 1e30f ? all(1e30f) : scaled < -1e30f ? all(-1e30f) : scaled;
              return grad * share * (finite * (1 - share) + 1);
            });
  });
  return out;
}

}  // namespace
