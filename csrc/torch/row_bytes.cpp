#include "row_bytes.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace weave::torch_binding {

namespace {

constexpr std::size_t kPieceBytes = 16 << 10;  // source and row together fit the smallest first-level caches
constexpr std::size_t kTurnBytes = 256 << 10;  // as PIECE_BYTES in adapters/pieces.py, which tells why

void demand_comparable(const at::Tensor& left, const at::Tensor& right) {
  const bool on_host = left.is_cpu() && right.is_cpu() && left.is_contiguous() && right.is_contiguous();
  if (!on_host || left.nbytes() != right.nbytes()) {
    throw std::invalid_argument("expected contiguous CPU tensors of equal size in bytes");
  }
}

}  // namespace

bool same_bytes(const at::Tensor& left, const at::Tensor& right) {
  demand_comparable(left, right);
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

bool write_and_compare(const at::Tensor& row, const at::Tensor& source) {
  demand_comparable(row, source);
  char* to = static_cast<char*>(row.mutable_data_ptr());
  const char* from = static_cast<const char*>(source.const_data_ptr());
  const std::size_t size = row.nbytes();
  for (std::size_t at = 0; at < size; at += kPieceBytes) {
    const std::size_t piece = std::min(kPieceBytes, size - at);
    std::memmove(to + at, from + at, piece);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compare what memory holds, not what was just written
    if (std::memcmp(to + at, from + at, piece) != 0) return false;
    if ((at + piece) % kTurnBytes == 0) std::this_thread::yield();
  }
  return true;
}

}  // namespace weave::torch_binding
