// Rows on the host, at the speed of memory; torch.equal compares bytes one by one, ten times slower.
#pragma once

#include <ATen/core/Tensor.h>

namespace weave::torch_binding {

// Both take contiguous CPU tensors of equal size in bytes; else std::invalid_argument.

// Whether the bytes are equal.
bool same_bytes(const at::Tensor& left, const at::Tensor& right);

// Writes the bytes of `source` to `row` and reads them back, while the cache has them still. Returns whether `row`
// holds what `source` does; false ends the writing early.
bool write_and_compare(const at::Tensor& row, const at::Tensor& source);

}  // namespace weave::torch_binding
