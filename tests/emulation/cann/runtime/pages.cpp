#include "pages.h"

#include <sys/mman.h>

#include "refusal.h"

namespace cann {

char* map_aligned(size_t bytes, int protection) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const raw = mmap(nullptr, bytes + kHugePage, protection, kFlags, -1, 0);
  require(raw != MAP_FAILED, kOutOfMemory, "this machine gives no ", bytes, " bytes of address space");
  char* const start = static_cast<char*>(raw);
  char* const base = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(raw), kHugePage));
  if (base > start) munmap(start, static_cast<size_t>(base - start));
  munmap(base + bytes, static_cast<size_t>(start + kHugePage - base));
  return base;
}

}  // namespace cann
