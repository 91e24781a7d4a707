// Attention for training: all positions at once, forward and backward. A plain C structure goes in, which
// `kernels/training.py` mirrors and fills: nothing here knows of torch.

#include <new>

#include "full_attention.h"

namespace {

template <class Compute>
int with_type(const Attention& a, Compute compute) {
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

// Both return 0; 1 if there is not enough memory; 2 if the compiler has no kernel for bfloat16.

extern "C" int imagegpt_attention(const Attention* a) {
  return with_type(*a, [a](auto number) { attend<decltype(number)>(*a); });
}

extern "C" int imagegpt_attention_backward(const Attention* a) {
  return with_type(*a, [a](auto number) { attend_backward<decltype(number)>(*a); });
}
