// The unified buffer of a vector core of 910B/910C (dav-2201), seen from the host's tiling.
#pragma once

#include <cstdint>

namespace weave::ascendc {

// 192 KiB, of which AscendC's own Select keeps the last 8 KiB for itself.
constexpr std::int64_t kUbBytes = (192 - 8) * 1024;
constexpr std::int64_t kBlockBytes = 32;

constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

constexpr std::int64_t block_aligned(std::int64_t bytes) { return ceil_div(bytes, kBlockBytes) * kBlockBytes; }

}  // namespace weave::ascendc
