// What training costs beside plain products: attention of all positions, where what counts is that a core multiplies in
// every cycle, and norms and activations, where it is to read everything once. Sums are taken in float32, in an order that
// does not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include "full_attention.h"
#include "pointwise.h"

STABLE_TORCH_LIBRARY_FRAGMENT(imagegpt, m) {
  m.def("attention(Tensor query, Tensor key, Tensor value, float scale, bool is_causal) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sums, "
      "float scale, bool is_causal) -> (Tensor, Tensor, Tensor)");
  m.def("norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> Tensor(a!)");
  m.def("norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("quick_gelu(Tensor x) -> Tensor");
  m.def("quick_gelu_backward(Tensor grad, Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(imagegpt, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("norm", TORCH_BOX(&norm));
  m.impl("norm_backward", TORCH_BOX(&norm_backward));
  m.impl("quick_gelu", TORCH_BOX(&quick_gelu));
  m.impl("quick_gelu_backward", TORCH_BOX(&quick_gelu_backward));
}
