// torch's tensors by its stable interface, which compiles in seconds.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

}  // namespace
