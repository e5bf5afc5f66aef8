// Comparing rows on the host at the speed of memory; torch.equal compares bytes one by one, ten times slower.
#pragma once

#include <ATen/core/Tensor.h>

namespace weave::torch_binding {

// Whether the bytes of two contiguous CPU tensors of equal size are equal; else std::invalid_argument.
bool same_bytes(const at::Tensor& left, const at::Tensor& right);

}  // namespace weave::torch_binding
