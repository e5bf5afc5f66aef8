#include "row_bytes.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "turns.h"

namespace weave::torch_binding {

namespace {

constexpr std::size_t kPieceBytes = 16 << 10;  // source and row together fit the smallest first-level caches

void demand_comparable(const at::Tensor& left, const at::Tensor& right) {
  const bool on_host = left.is_cpu() && right.is_cpu() && left.is_contiguous() && right.is_contiguous();
  if (!on_host || left.nbytes() != right.nbytes()) {
    throw std::invalid_argument("expected contiguous CPU tensors of equal size in bytes");
  }
}

void demand_copyable(const at::Tensor& place, const at::Tensor& matrix) {
  const bool on_host = place.is_cpu() && matrix.is_cpu() && place.is_contiguous();
  const bool matrices = matrix.dim() == 2 && place.sizes() == matrix.sizes() && place.dtype() == matrix.dtype();
  if (!on_host || !matrices || (matrix.numel() > 0 && matrix.stride(1) != 1)) {
    throw std::invalid_argument("expected CPU matrices, and contiguous places of their shapes and type");
  }
}

void copy_in_turns(char* to, const char* from, std::size_t size, Turns* turns) {
  while (size > 0) {
    const std::size_t piece = turns->piece(size);
    std::memcpy(to, from, piece);
    to += piece, from += piece, size -= piece;
    turns->done(piece);
  }
}

}  // namespace

bool same_bytes(const at::Tensor& left, const at::Tensor& right) {
  demand_comparable(left, right);
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

bool write_and_compare(const at::Tensor& row, const at::Tensor& source, double rest) {
  demand_comparable(row, source);
  char* to = static_cast<char*>(row.mutable_data_ptr());
  const char* from = static_cast<const char*>(source.const_data_ptr());
  const std::size_t size = row.nbytes();
  static_assert(Turns::kBytes % kPieceBytes == 0);
  Turns turns(rest);
  for (std::size_t at = 0; at < size; at += kPieceBytes) {
    const std::size_t piece = std::min(kPieceBytes, size - at);
    std::memmove(to + at, from + at, piece);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compare what memory holds, not what was just written
    if (std::memcmp(to + at, from + at, piece) != 0) return false;
    turns.done(piece);
  }
  return true;
}

void copy_matrices(const std::vector<at::Tensor>& places, const std::vector<at::Tensor>& matrices, double rest) {
  if (places.size() != matrices.size()) throw std::invalid_argument("expected a place for every matrix");
  for (std::size_t at = 0; at < places.size(); ++at) demand_copyable(places[at], matrices[at]);
  Turns turns(rest);
  for (std::size_t at = 0; at < places.size(); ++at) {
    char* to = static_cast<char*>(places[at].mutable_data_ptr());
    const char* from = static_cast<const char*>(matrices[at].const_data_ptr());
    const auto& matrix = matrices[at];
    const bool dense = matrix.is_contiguous();
    const std::size_t rows = dense ? 1 : matrix.size(0);
    const std::size_t row_bytes = dense ? matrix.nbytes() : matrix.size(1) * matrix.element_size();
    const std::size_t step = dense ? 0 : matrix.stride(0) * matrix.element_size();
    for (std::size_t row = 0; row < rows; ++row) {
      copy_in_turns(to + row * row_bytes, from + row * step, row_bytes, &turns);
    }
  }
}

}  // namespace weave::torch_binding
