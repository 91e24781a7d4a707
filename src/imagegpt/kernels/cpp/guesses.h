// Draws again what was drawn behind a wrong guess: one pixel after the other, each in a fraction of a microsecond.

#pragma once

#include <limits>

#include "checks.h"
#include "tensors.h"
#include "vectors.h"

namespace {

// The best of scores, shifted by how much more likely `after` makes them than `before`; of equals the first.
int64_t best(const float* scores, const float* before, const float* after, int64_t num_colors) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Floats highest = all(lowest);
  Ints where{}, here{};
  for (int64_t lane = 0; lane < LANES; lane++) here[lane] = static_cast<int32_t>(lane);
  int64_t color = 0;
  for (; color + LANES <= num_colors; color += LANES) {
    const Floats score = load(scores + color) + (load(after + color) - load(before + color));
    const Ints better = score > highest;
    highest = better ? score : highest;
    where = better ? here : where;
    here += static_cast<int32_t>(LANES);
  }
  float high = lowest;
  int64_t at = 0;
  for (int64_t lane = 0; lane < LANES; lane++) {
    if (highest[lane] > high || (highest[lane] == high && where[lane] < at)) high = highest[lane], at = where[lane];
  }
  for (; color < num_colors; color++) {
    const float score = scores[color] + (after[color] - before[color]);
    if (score > high) high = score, at = color;
  }
  return at;
}

// Scores (B, n, V), what was fed and where (B, n), the influence of colours on the next pixel (V, V). Gives (B, n).
Tensor redrawn(const Tensor& scores, const Tensor& fed, const Tensor& positions, const Tensor& influence) {
  check_type(scores, "scores", {ScalarType::Float});
  check_shape(scores, "scores", {ANY, ANY, ANY});
  const int64_t images = scores.size(0), num = scores.size(1), num_colors = scores.size(2);
  check_type(fed, "fed", {ScalarType::Long});
  check_shape(fed, "fed", {images, num});
  check_type(positions, "positions", {ScalarType::Long});
  check_shape(positions, "positions", {images, num});
  check_type(influence, "influence", {ScalarType::Float});
  check_shape(influence, "influence", {num_colors, num_colors});
  check_multiple(num_colors, 1, "scores");
  const Tensor in = torch::stable::contiguous(scores), guesses = torch::stable::contiguous(fed);
  const Tensor places = torch::stable::contiguous(positions), table = torch::stable::contiguous(influence);
  Tensor out = torch::stable::new_empty(guesses, {images, num});
  const int64_t* guess = static_cast<const int64_t*>(guesses.const_data_ptr());
  for (int64_t n = 0; n < images * num; n++)  // the first of each image may be the start token
    if (n % num && (guess[n] < 0 || guess[n] >= num_colors))
      refuse("was fed the colour " + std::to_string(guess[n]) + ": it takes 0 to " + std::to_string(num_colors - 1));
  const int64_t* place = static_cast<const int64_t*>(places.const_data_ptr());
  int64_t* drawn = static_cast<int64_t*>(out.mutable_data_ptr());
  const float *score = floats(in), *row = floats(table);
#pragma omp parallel for schedule(static) if (images * num * num_colors > PARALLEL_FROM)
  for (int64_t image = 0; image < images; image++) {
    for (int64_t n = image * num; n < (image + 1) * num; n++) {
      if (n > image * num && place[n] == place[n - 1]) {
        drawn[n] = drawn[n - 1];
        continue;
      }
      const int64_t before = n > image * num ? guess[n] : 0, after = n > image * num ? drawn[n - 1] : 0;
      drawn[n] = best(score + n * num_colors, row + before * num_colors, row + after * num_colors, num_colors);
    }
  }
  return out;
}

}  // namespace
