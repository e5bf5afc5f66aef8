// Address space without memory: ranges that belong to this process and fault when touched.
#pragma once

#include <cstddef>

namespace weave::vmm {

// Reserves `bytes` at a multiple of `alignment`. Returns 0 or an errno.
int reserve_aligned(std::size_t bytes, std::size_t alignment, void** out);

// Puts a hole, which faults when touched, in place of what lies at `address`. Returns 0 or an errno; then what lay
// there still does.
int make_hole(void* address, std::size_t bytes);

}  // namespace weave::vmm
