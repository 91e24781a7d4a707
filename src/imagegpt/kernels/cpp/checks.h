// What a kernel is given is checked before its memory is read. Python turns the errors into a RuntimeError.

#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tensors.h"

namespace {

constexpr int64_t ANY = -1;  // size of an axis

[[noreturn]] inline void refuse(const std::string& what) { throw std::runtime_error("imagegpt's kernel " + what); }

[[noreturn]] inline void refuse(const char* name, const std::string& what) {
  refuse(std::string("was given ") + name + " " + what);
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Char: return "int8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another type";
  }
}

template <class Items, class Function>
std::string listed(const Items& items, const char* between, Function text_of) {
  std::string all;
  for (const auto& item : items) all += (all.empty() ? "" : between) + std::string(text_of(item));
  return all;
}

// That a tensor is on the CPU and of one of the types.
inline void check_type(const Tensor& x, const char* name, std::initializer_list<ScalarType> types) {
  if (!x.is_cpu()) refuse(name, "on another device: move it to the CPU");
  if (std::find(types.begin(), types.end(), x.scalar_type()) == types.end())
    refuse(name, std::string("in ") + name_of(x.scalar_type()) + ": it takes " + listed(types, " or ", name_of));
}

inline void check_shape(const Tensor& x, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = x.dim() == static_cast<int64_t>(shape.size());
  for (int64_t axis = 0; fits && axis < x.dim(); axis++)
    fits = shape.begin()[axis] == ANY || x.size(axis) == shape.begin()[axis];
  if (fits) return;
  const auto text_of = [](int64_t size) { return size == ANY ? std::string("any") : std::to_string(size); };
  refuse(name, "of the shape (" + listed(x.sizes(), ", ", text_of) + "): it takes (" + listed(shape, ", ", text_of) + ")");
}

inline void check_last_axis(const Tensor& x, const char* name) {
  if (x.size(x.dim() - 1) > 1 && x.stride(x.dim() - 1) != 1)
    refuse(name, "with gaps in its last axis: make it contiguous");
}

inline void check_contiguous(const Tensor& x, const char* name) {
  if (!x.is_contiguous()) refuse(name, "with gaps or in another order: make it contiguous");
}

inline void check_multiple(int64_t width, int64_t of, const char* name) {
  if (width % of || !width)
    refuse(name, std::to_string(width) + " wide: it takes multiples of " + std::to_string(of));
}

// Heads (B, H, positions, D): of one type, the last axis without gaps, and pairs of bfloat16 where a word begins.
void check_heads(const Tensor& x, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  check_type(x, name, {type});
  check_shape(x, name, shape);
  check_last_axis(x, name);
  bool is_even = type != ScalarType::BFloat16 || x.storage_offset() % 2 == 0;
  for (int64_t axis = 0; axis < 3; axis++) is_even = is_even && (type != ScalarType::BFloat16 || x.stride(axis) % 2 == 0);
  if (!is_even) refuse(name, "whose heads begin in the middle of a word: make it contiguous");
}

void check_attention(const Tensor& query, const Tensor& key, const Tensor& value, bool is_causal) {
  const ScalarType type = query.scalar_type();
  check_heads(query, "query", type, {ANY, ANY, ANY, ANY});
  check_multiple(query.size(3), 16, "heads");
  check_heads(key, "key", type, {query.size(0), query.size(1), ANY, query.size(3)});
  check_heads(value, "value", type, {query.size(0), query.size(1), key.size(2), query.size(3)});
  if (key.size(2) < 1) refuse("was given no keys: it takes at least one");
  if (is_causal && query.size(2) > key.size(2))
    refuse("was given " + std::to_string(query.size(2)) + " queries for " + std::to_string(key.size(2)) +
           " keys: if causal, it takes a key for each");
}

// Rows of a norm, without gaps, and its gains.
void check_norm(const Tensor& x, const Tensor& weight) {
  check_type(x, "x", {ScalarType::Float});
  check_shape(x, "x", {ANY, ANY});
  check_contiguous(x, "x");
  check_multiple(x.size(1), 16, "x");
  check_type(weight, "weight", {ScalarType::Float});
  check_shape(weight, "weight", {x.size(1)});
  check_contiguous(weight, "weight");
}

// A tensor that goes with x, such as its gradient or the result.
void check_like(const Tensor& other, const char* name, const Tensor& x, ScalarType type) {
  check_type(other, name, {type});
  bool fits = other.dim() == x.dim();
  for (int64_t axis = 0; fits && axis < x.dim(); axis++) fits = other.size(axis) == x.size(axis);
  if (!fits) refuse(name, "of another shape than x");
  check_contiguous(other, name);
}

}  // namespace
