#include "row_bytes.h"

#include <cstring>
#include <stdexcept>

namespace weave::torch_binding {

bool same_bytes(const at::Tensor& left, const at::Tensor& right) {
  const bool on_host = left.is_cpu() && right.is_cpu() && left.is_contiguous() && right.is_contiguous();
  if (!on_host || left.nbytes() != right.nbytes()) {
    throw std::invalid_argument("expected contiguous CPU tensors of equal size in bytes");
  }
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

}  // namespace weave::torch_binding
