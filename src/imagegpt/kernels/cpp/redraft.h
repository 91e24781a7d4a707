// Samples pixels in order, correcting the scores after a wrong draft; see `sampling/drafting.py`.

#pragma once

#include <limits>

#include "simd.h"

namespace {

// The argmax of scores + sampled_row - fed_row; of ties, the first.
int64_t argmax_corrected(const float* scores, const float* fed_row, const float* sampled_row, int64_t num_colors) {
  const float lowest = -std::numeric_limits<float>::infinity();
  FloatVec max_vector = broadcast(lowest);
  IntVec argmax_vector{}, lane_index{};
  for (int64_t lane = 0; lane < LANES; lane++) lane_index[lane] = static_cast<int32_t>(lane);
  int64_t color = 0;
  for (; color + LANES <= num_colors; color += LANES) {
    const FloatVec score = load(scores + color) + (load(sampled_row + color) - load(fed_row + color));
    const IntVec is_greater = score > max_vector;
    max_vector = is_greater ? score : max_vector;
    argmax_vector = is_greater ? lane_index : argmax_vector;
    lane_index += static_cast<int32_t>(LANES);
  }
  float max_score = lowest;
  int64_t argmax = 0;
  for (int64_t lane = 0; lane < LANES; lane++) {
    if (max_vector[lane] > max_score || (max_vector[lane] == max_score && argmax_vector[lane] < argmax))
      max_score = max_vector[lane], argmax = argmax_vector[lane];
  }
  for (; color < num_colors; color++) {
    const float score = scores[color] + (sampled_row[color] - fed_row[color]);
    if (score > max_score) max_score = score, argmax = color;
  }
  return argmax;
}

// Scores (images, queries, colours), tokens and positions (images, queries), and the bigram table (colours, colours);
// writes pixels (images, queries).
void redraft(const float* scores, const int64_t* tokens, const int64_t* positions, const float* bigrams, int64_t images,
             int64_t queries, int64_t colors, int64_t* pixels) {
  for (int64_t image = 0; image < images; image++) {
    for (int64_t n = image * queries; n < (image + 1) * queries; n++) {
      const bool is_first = n == image * queries;
      if (!is_first && positions[n] == positions[n - 1]) {
        pixels[n] = pixels[n - 1];
        continue;
      }
      const int64_t fed_row = is_first ? 0 : tokens[n], sampled_row = is_first ? 0 : pixels[n - 1];
      pixels[n] =
          argmax_corrected(scores + n * colors, bigrams + fed_row * colors, bigrams + sampled_row * colors, colors);
    }
  }
}

}  // namespace
