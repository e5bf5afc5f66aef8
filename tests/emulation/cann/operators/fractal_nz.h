// FRACTAL_NZ: matrices cut into blocks of 16 rows, the blocks ordered column by column.
//
// [..., K, N] is stored as [..., ceil(N / C), ceil(K / 16), 16, C] with C = 32 for types of one byte and 16 else,
// padded with zeros.
#pragma once

#include <vector>

#include "values.h"

namespace cann {

std::vector<int64_t> fractal_nz_sizes(at::IntArrayRef sizes, at::ScalarType dtype);

at::Tensor to_fractal_nz(const at::Tensor& matrices);

// `blocks` as stored; `sizes` of the matrices that they hold.
at::Tensor from_fractal_nz(const at::Tensor& blocks, at::IntArrayRef sizes);

// The values of a tensor, whatever its format. Strides are those of the view if it is plain, and of a copy if not.
at::Tensor from_any_format(const aclTensor& tensor);

}  // namespace cann
