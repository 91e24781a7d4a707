// Attention for training, forward and backward. The arguments are a plain C structure, which `kernels/attention.py`
// mirrors; nothing here depends on torch.

#include <new>

#include "full_attention.h"

namespace {

template <class Compute>
int dispatch_dtype(const Attention& a, Compute compute) {
  try {
    if (!a.is_bfloat16) return compute(float()), 0;
#ifdef __AVX512BF16__
    return compute(BFloat16()), 0;
#endif
    return 2;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

// Both return 0; 1 if there is not enough memory; 2 if the compiler does not support bfloat16.

extern "C" int imagegpt_attention(const Attention* a) {
  return dispatch_dtype(*a, [a](auto value) { attend<decltype(value)>(*a); });
}

extern "C" int imagegpt_attention_backward(const Attention* a) {
  return dispatch_dtype(*a, [a](auto value) { attend_backward<decltype(value)>(*a); });
}
