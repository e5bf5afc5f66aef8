// How the reroute kernel cuts its work: plain C++ over shapes, no CANN header, tested where there is no NPU.
#pragma once

#include <cstdint>

#include "../reroute_tiling_data.h"

namespace weave::ascendc {

struct RerouteShape {
  std::int64_t tokens;    // T, 1 or more
  std::int64_t top_k;     // K, 1 or more
  std::int64_t map_rows;  // slots + 1
  std::int64_t experts;   // M
  bool wide_ids;          // expert ids are int64
};

// Fills `tiling` for `vector_cores` cores. Returns nullptr, or why the kernel cannot do this shape.
const char* tile_reroute(const RerouteShape& shape, std::int64_t vector_cores, RerouteTiling* tiling);

}  // namespace weave::ascendc
