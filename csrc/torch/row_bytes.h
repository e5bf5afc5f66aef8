// Rows on the host, at the speed of memory; torch.equal compares bytes one by one, ten times slower.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace weave::torch_binding {

// std::invalid_argument for tensors that they do not take. What takes long is done in turns; `rest` as in turns.h.

// These two take contiguous CPU tensors of equal size in bytes.

// Whether the bytes are equal.
bool same_bytes(const at::Tensor& left, const at::Tensor& right);

// Writes the bytes of `source` to `row` and reads them back, while the cache has them still. Returns whether `row`
// holds what `source` does; false ends the writing early.
bool write_and_compare(const at::Tensor& row, const at::Tensor& source, double rest);

// Copies matrices, each to the place of the same index. CPU tensors of one type; places are contiguous, matrices may be
// columns of wider ones.
void copy_matrices(const std::vector<at::Tensor>& places, const std::vector<at::Tensor>& matrices, double rest);

}  // namespace weave::torch_binding
