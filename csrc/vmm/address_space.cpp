#include "address_space.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstdint>

namespace weave::vmm {
namespace {

constexpr int kHoleFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

}  // namespace

int reserve_aligned(std::size_t bytes, std::size_t alignment, void** out) {
  if (bytes > SIZE_MAX - alignment) return ENOMEM;
  void* raw = mmap(nullptr, bytes + alignment, PROT_NONE, kHoleFlags, -1, 0);
  if (raw == MAP_FAILED) return errno;
  const auto start = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t base = (start + alignment - 1) / alignment * alignment;
  const std::size_t head = base - start;
  const std::size_t tail = alignment - head;
  if (head > 0) munmap(raw, head);
  if (tail > 0) munmap(reinterpret_cast<void*>(base + bytes), tail);
  *out = reinterpret_cast<void*>(base);
  return 0;
}

int make_hole(void* address, std::size_t bytes) {
  if (mmap(address, bytes, PROT_NONE, kHoleFlags | MAP_FIXED, -1, 0) != MAP_FAILED) return 0;
  const int error = errno;
  // A kernel may have removed the old mapping before it failed: nobody else may be given the address, so the gap, if
  // there is one, is closed. If this succeeds, the hole is there after all.
  void* filled = mmap(address, bytes, PROT_NONE, kHoleFlags | MAP_FIXED_NOREPLACE, -1, 0);
  if (filled == address) return 0;
  if (filled != MAP_FAILED) munmap(filled, bytes);
  return error;
}

}  // namespace weave::vmm
