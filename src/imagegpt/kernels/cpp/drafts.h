// Corrects drafts of pixels behind a wrong one: one pixel after the other, each in a fraction of a microsecond.

#pragma once

#include <limits>

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

// Scores (images, queries, colours), the tokens fed and their positions (images, queries), and the influence of colours
// on the next pixel (colours, colours); gives pixels (images, queries).
void redraw(const float* scores, const int64_t* fed, const int64_t* positions, const float* influence,
            int64_t images, int64_t queries, int64_t colors, int64_t* drawn) {
  for (int64_t image = 0; image < images; image++) {
    for (int64_t n = image * queries; n < (image + 1) * queries; n++) {
      const bool is_first = n == image * queries;
      if (!is_first && positions[n] == positions[n - 1]) {
        drawn[n] = drawn[n - 1];
        continue;
      }
      const int64_t before = is_first ? 0 : fed[n], after = is_first ? 0 : drawn[n - 1];
      drawn[n] = best(scores + n * colors, influence + before * colors, influence + after * colors, colors);
    }
  }
}

}  // namespace
