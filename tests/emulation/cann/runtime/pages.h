// The sizes that device memory comes in, and address space at such boundaries.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cann {

inline constexpr size_t kHugePage = size_t{2} << 20;
inline constexpr size_t kGiantPage = size_t{1} << 30;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
inline bool aligned(const void* address, size_t unit) { return reinterpret_cast<uintptr_t>(address) % unit == 0; }

// `bytes` (a multiple of kHugePage) of address space from a multiple of kHugePage on, with the protection `protection`
// of mmap; memory comes under it as it is touched. Refuses with "out of memory".
char* map_aligned(size_t bytes, int protection);

}  // namespace cann
