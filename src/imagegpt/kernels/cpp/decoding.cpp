// What a pixel costs: matrix products with few inputs, and attention of few queries over a long cache. Both read much
// and compute little with it, so what counts is to read everything once, in order, with all lanes of the processor.
// Sums are taken in float32, in an order that does not depend on the number of threads or of other inputs.

#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "guesses.h"
#include "products.h"

STABLE_TORCH_LIBRARY_FRAGMENT(imagegpt, m) {
  m.def("tiled_linear(Tensor x, Tensor weight, Tensor? scale, int num_outputs) -> Tensor");
  m.def(
      "cached_attention(Tensor query, Tensor keys, Tensor values, Tensor lengths, Tensor? shared_keys, "
      "Tensor? shared_values) -> Tensor");
  m.def("quantized_rows(Tensor x) -> Tensor");
  m.def("redrawn(Tensor scores, Tensor fed, Tensor positions, Tensor influence) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(imagegpt, CPU, m) {
  m.impl("tiled_linear", TORCH_BOX(&tiled_linear));
  m.impl("cached_attention", TORCH_BOX(&cached_attention));
  m.impl("quantized_rows", TORCH_BOX(&quantized_rows));
  m.impl("redrawn", TORCH_BOX(&redrawn));
}
