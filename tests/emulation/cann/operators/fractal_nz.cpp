#include "fractal_nz.h"

#include "call.h"
#include "operator.h"

namespace cann {
namespace {

constexpr int64_t kRows = 16;

int64_t columns(at::ScalarType dtype) { return c10::elementSize(dtype) == 1 ? 32 : 16; }

int64_t blocks_for(int64_t elements, int64_t block) { return (elements + block - 1) / block; }

std::vector<int64_t> joined(at::IntArrayRef first, std::initializer_list<int64_t> last) {
  std::vector<int64_t> all = first.vec();
  all.insert(all.end(), last);
  return all;
}

bool is_dense(at::IntArrayRef sizes, at::IntArrayRef strides) { return strides.equals(c10::contiguous_strides(sizes)); }

std::vector<int64_t> last_two_swapped(std::vector<int64_t> values) {
  std::swap(values[values.size() - 2], values[values.size() - 1]);
  return values;
}

}  // namespace

std::vector<int64_t> fractal_nz_sizes(at::IntArrayRef sizes, at::ScalarType dtype) {
  const int64_t k = sizes[sizes.size() - 2], n = sizes[sizes.size() - 1], c = columns(dtype);
  return joined(sizes.slice(0, sizes.size() - 2), {blocks_for(n, c), blocks_for(k, kRows), kRows, c});
}

at::Tensor to_fractal_nz(const at::Tensor& matrices) {
  const auto stored = fractal_nz_sizes(matrices.sizes(), matrices.scalar_type());
  const int64_t c = columns(matrices.scalar_type());
  const int64_t column_blocks = stored[stored.size() - 4], row_blocks = stored[stored.size() - 3];
  const int64_t k = matrices.size(-2), n = matrices.size(-1);
  const auto padded = at::constant_pad_nd(matrices, {0, column_blocks * c - n, 0, row_blocks * kRows - k});
  const auto outer = matrices.sizes().slice(0, matrices.dim() - 2);
  const auto blocked = padded.reshape(joined(outer, {row_blocks, kRows, column_blocks, c}));
  return blocked.movedim(-2, -4).contiguous();
}

at::Tensor from_fractal_nz(const at::Tensor& blocks, at::IntArrayRef sizes) {
  const int64_t row_blocks = blocks.size(-3), column_blocks = blocks.size(-4), c = blocks.size(-1);
  const auto outer = blocks.sizes().slice(0, blocks.dim() - 4);
  const auto padded = blocks.movedim(-4, -2).reshape(joined(outer, {row_blocks * kRows, column_blocks * c}));
  return padded.narrow(-2, 0, sizes[sizes.size() - 2]).narrow(-1, 0, sizes[sizes.size() - 1]);
}

at::Tensor from_any_format(const aclTensor& tensor) {
  if (tensor.format != ACL_FORMAT_FRACTAL_NZ) return tensor.plain();
  require(tensor.offset == 0, ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a part of FRACTAL_NZ is not emulated");
  if (is_dense(tensor.sizes, tensor.strides)) return from_fractal_nz(tensor.storage(), tensor.sizes);
  const auto sizes = last_two_swapped(tensor.sizes);
  require(is_dense(sizes, last_two_swapped(tensor.strides)), ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
          "a view of FRACTAL_NZ is emulated whole or transposed only");
  return from_fractal_nz(tensor.storage(), sizes).transpose(-1, -2);
}

void NpuFormatCast(Stored source, Stored target) {
  if (target.format == ACL_FORMAT_FRACTAL_NZ)
    target.storage().copy_(to_fractal_nz(source.plain()));
  else
    target.plain().copy_(from_any_format(source));
}

}  // namespace cann

EMULATED_OPERATOR(NpuFormatCast)

// What `aclnnNpuFormatCast` will write; the caller frees `sizes`.
EMULATED aclError aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor* source, int format, int, int64_t** sizes,
                                                           uint64_t* dims, int* actual_format) {
  return cann::answer([=] {
    const bool known = format == ACL_FORMAT_FRACTAL_NZ || format == ACL_FORMAT_ND;
    cann::require(known, ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a cast to format ", format, " is not emulated");
    cann::require(source->sizes.size() >= 2, cann::kBadArgument, "FRACTAL_NZ has two dimensions or more");
    const auto target =
        format == ACL_FORMAT_FRACTAL_NZ ? cann::fractal_nz_sizes(source->sizes, source->dtype) : source->sizes;
    *sizes = new int64_t[target.size()];
    std::copy(target.begin(), target.end(), *sizes);
    *dims = target.size();
    *actual_format = format;
  });
}
